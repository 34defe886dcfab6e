"""Any views, labels and settings of a call: codes without a mask, or an error that names the argument."""

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_vq import (
    AbsorbingScheduler,
    CodeGenerationPipeline,
    CodeTransformer,
    CTVolumeProcessor,
    ViewsToVolumePipeline,
    VQTokenizer,
    VQTokenizerConfig,
    XrayImageProcessor,
)
from hf_vq.schedulers.checks import SAMPLINGS

K, VIEWS = 5, ("frontal", "lateral")
KINDS = ("volumes", "images")
GRIDS = {"volumes": (1, 2, 2), "images": (2, 2)}
kinds = st.sampled_from(KINDS)
seeds = st.integers(0, 2**31 - 1)
not_counts = st.one_of(st.integers(max_value=0), st.floats(), st.booleans(), st.text(max_size=3), st.just([]))
not_numbers = st.sampled_from([-1.0, math.nan, math.inf, -math.inf, None, "1", [1.0], 1j, True, object()])
dropped = {"view_dropout": 0.1, "context_dropout": 0.1}


def tokenizer(axes):
    quantizer = {"codebook_size": K, "codebook_dim": 2}
    fields = {"base_channels": 4, "channel_multipliers": [1], "num_res_blocks": 1, "num_norm_groups": 2}
    return VQTokenizer(VQTokenizerConfig(spatial_dims=axes, quantizer=quantizer, stem_stride=4, **fields)).eval()


@functools.cache
def make(kind, missing=True, sampling="exact_count"):
    """A pipeline with 3 classes; that of volumes knows samples without some or any of its views, if `missing`."""
    torch.manual_seed(0)
    fields = {"num_codes": K, "code_grid": GRIDS[kind], "hidden_size": 12, "num_layers": 1, "num_heads": 2}
    fields |= {"num_classes": 3, "label_dropout": 0.1}
    views = {"context_dim": 2, "context_grid": (2, 2), **(dropped if missing else {})}
    transformer = CodeTransformer(**fields, **(views if kind == "volumes" else {"context_dim": None})).eval()
    transformer.head.weight.data.normal_()
    scheduler = AbsorbingScheduler(K, sampling=sampling)
    if kind == "images":
        pipeline = CodeGenerationPipeline(tokenizer(2), transformer, scheduler)
    else:
        processors = CTVolumeProcessor(size=[4, 8, 8], spacing=[1.0, 1.0, 1.0]), XrayImageProcessor()
        pipeline = ViewsToVolumePipeline(tokenizer(3), tokenizer(2), transformer, scheduler, *processors)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def image(value=0.5):
    return np.full((8, 8), value, dtype=np.float32)


def views(subjects=1, names=VIEWS):
    return {name: [image()] * subjects for name in names}


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def call(kind, *conditions, **arguments):
    """Codes of a call with two steps, for two subjects or prompts unless conditions say otherwise."""
    conditions = conditions or (views(2) if kind == "volumes" else [0, 1],)
    arguments = {"num_inference_steps": 2, "output_type": "latent", "generator": source(), **arguments}
    return make(kind)(*conditions, **arguments).codes


@pytest.mark.parametrize("kind", KINDS)
@given(
    sampling=st.sampled_from(SAMPLINGS),
    prompts=st.integers(1, 3),
    each=st.integers(1, 2),
    steps=st.integers(1, 6),
    temperature=st.sampled_from([0, 0.5, 1.0, 3]),
    top_p=st.sampled_from([0.1, 0.9, 1]),
    scale=st.sampled_from([0, 1, 2.5]),
    seed=seeds,
)
def test_codes_have_no_mask_and_follow_from_the_seed(
    kind, sampling, prompts, each, steps, temperature, top_p, scale, seed
):
    pipeline, labels = make(kind, sampling=sampling), [index % 3 for index in range(prompts)]
    number = "num_volumes_per_prompt" if kind == "volumes" else "num_images_per_prompt"
    condition = {"views": views(prompts)} if kind == "volumes" else {}
    arguments = {
        **condition,
        number: each,
        "class_labels": labels,
        "num_inference_steps": steps,
        "temperature": temperature,
        "top_p": top_p,
        "guidance_scale": scale,
        "output_type": "latent",
    }
    first, second = (pipeline(**arguments, generator=source(seed)).codes for _ in range(2))
    assert first.shape == (prompts * each, *GRIDS[kind])
    assert bool(((first >= 0) & (first < K)).all())
    assert torch.equal(first, second)


@given(kind=kinds, steps=not_counts)
def test_steps_that_make_no_sense_are_refused(kind, steps):
    with pytest.raises(ValueError, match="num_inference_steps"):
        call(kind, num_inference_steps=steps)


@given(kind=kinds, count=not_counts)
def test_counts_that_make_no_sense_are_refused(kind, count):
    name = "num_volumes_per_prompt" if kind == "volumes" else "num_images_per_prompt"
    with pytest.raises(ValueError, match=name):
        call(kind, **{name: count})
    with pytest.raises(ValueError, match="batch_size"):
        call("images", 0, batch_size=count)


@given(kind=kinds, name=st.sampled_from(["guidance_scale", "temperature", "top_p"]), value=not_numbers)
def test_settings_that_make_no_sense_are_refused(kind, name, value):
    with pytest.raises(ValueError, match=name):
        call(kind, **{name: value})


@given(kind=kinds, output_type=st.one_of(st.text(max_size=6), st.none(), st.integers(), st.just([])))
def test_unknown_output_types_are_refused(kind, output_type):
    with pytest.raises(ValueError, match="output_type"):
        call(kind, output_type=output_type)


@given(kind=kinds, count=st.integers(0, 4))
def test_a_list_of_generators_has_one_for_each_sample(kind, count):
    generators = [source(seed) for seed in range(count)]
    if count == 2:
        assert call(kind, generator=generators).shape == (2, *GRIDS[kind])
    else:
        with pytest.raises(ValueError, match=f"{count} generators for 2"):
            call(kind, generator=generators)


@given(kind=kinds, generator=st.sampled_from([0, "seed", object(), [1, 2], (None, 3), {}]))
def test_generators_of_another_kind_are_refused(kind, generator):
    with pytest.raises(ValueError, match="generator"):
        call(kind, generator=generator)


@given(
    kind=kinds,
    shape=st.lists(st.integers(0, 3), max_size=4),
    dtype=st.sampled_from([torch.int64, torch.int32, torch.float32, torch.bool]),
)
def test_latents_of_another_form_are_refused(kind, shape, dtype):
    if shape == [2, *GRIDS[kind]] and dtype == torch.int64:
        return
    with pytest.raises(ValueError, match="latents"):
        call(kind, latents=torch.zeros(shape, dtype=dtype))


@given(kind=kinds, code=st.one_of(st.integers(-(2**60), -1), st.integers(K + 1, 2**60)))
def test_latents_out_of_range_are_refused(kind, code):
    latents = torch.full((2, *GRIDS[kind]), K)
    latents.view(-1)[3] = code
    with pytest.raises(ValueError, match=f"latents.*{code}"):
        call(kind, latents=latents)


@given(kind=kinds, seed=seeds)
def test_given_codes_stay(kind, seed):
    latents = torch.randint(0, K + 1, (2, *GRIDS[kind]), generator=source(seed))
    codes = call(kind, latents=latents, generator=source(seed))
    assert torch.equal(codes[latents < K], latents[latents < K])


@given(
    kind=kinds,
    label=st.one_of(st.integers(max_value=-2), st.integers(3), st.text(max_size=4), st.floats(), st.just(b"")),
)
def test_unknown_labels_are_refused(kind, label):
    conditions = [label, 0] if kind == "images" else views(2)
    more = {"class_labels": [label, 0]} if kind == "volumes" else {}
    with pytest.raises(ValueError, match="class_labels"):
        call(kind, conditions, **more)


@given(count=st.integers(0, 5).filter(lambda number: number != 2))
def test_labels_of_another_number_are_refused(count):
    with pytest.raises(ValueError, match="class_labels"):
        call("volumes", class_labels=[0] * count)
    with pytest.raises(ValueError, match="class_labels"):
        call("images", [0] * count, batch_size=2)


@given(kind=kinds, name=st.text(max_size=8).filter(lambda text: text != "latents"))
def test_unknown_inputs_of_the_callback_are_refused(kind, name):
    with pytest.raises(ValueError, match="callback_on_step_end_tensor_inputs"):
        call(kind, callback_on_step_end_tensor_inputs=[name])
    with pytest.raises(ValueError, match="callback_on_step_end returned"):
        call(kind, callback_on_step_end=lambda *_: {name: None})


@given(name=st.one_of(st.text(max_size=9), st.integers(), st.none()).filter(lambda each: each not in VIEWS))
def test_views_of_another_name_are_refused(name):
    with pytest.raises(ValueError, match="unknown"):
        call("volumes", {**views(1), name: [image()]})
    with pytest.raises(ValueError, match="unknown"):
        call("volumes", [{name: image()}])


@given(present=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=3), as_list=st.booleans())
def test_missing_views_need_a_model_that_was_trained_so(present, as_list):
    subjects = [{name: image() for name, is_there in zip(VIEWS, row, strict=True) if is_there} for row in present]
    given_views = subjects if as_list else {name: [subject.get(name) for subject in subjects] for name in VIEWS}
    codes = call("volumes", given_views)
    assert codes.shape == (len(present), *GRIDS["volumes"])
    if all(map(all, present)):
        return
    with pytest.raises(ValueError, match="missing"):
        make("volumes", missing=False)(given_views, num_inference_steps=1, output_type="latent")


@given(counts=st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_every_view_needs_the_same_number_of_images(counts):
    given_views = {name: [image()] * count for name, count in zip(VIEWS, counts, strict=True)}
    if counts[0] == counts[1] > 0:
        assert len(call("volumes", given_views)) == counts[0]
    else:
        with pytest.raises(ValueError, match="same number of images"):
            call("volumes", given_views)


@given(given_views=st.one_of(st.none(), st.integers(), st.text(max_size=4), st.just([]), st.just({}), st.just([None])))
def test_what_are_no_views_is_refused(given_views):
    with pytest.raises(ValueError, match="view"):
        call("volumes", given_views)


@given(
    sides=st.tuples(st.integers(1, 20), st.integers(1, 20)).filter(lambda pair: pair != (8, 8)),
    value=st.sampled_from([-0.1, 1.1, math.nan, math.inf]),
)
def test_views_of_another_size_or_range_are_refused(sides, value):
    with pytest.raises(ValueError, match=r"multiples of 4|context must be|one size"):
        call("volumes", {name: [np.zeros(sides, dtype=np.float32)] for name in VIEWS})
    with pytest.raises(ValueError, match=r"floats in \[0, 1\]"):
        call("volumes", {name: [image(value)] for name in VIEWS})


@given(each=st.integers(1, 3), kind=st.sampled_from(["hu", "pt", "nifti", "latent"]))
def test_uncertainty_needs_two_volumes(each, kind):
    arguments = {"num_volumes_per_prompt": each, "output_type": kind, "return_uncertainty": True}
    if each == 1 or kind == "latent":
        with pytest.raises(ValueError, match="return_uncertainty"):
            make("volumes")(views(1), **arguments)
    else:
        output = make("volumes")(views(1), **arguments, num_inference_steps=1)
        assert len(output.volumes) == each
        assert len(output.mean) == len(output.std) == 1
