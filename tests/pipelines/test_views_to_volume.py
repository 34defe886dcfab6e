"""The pipeline from views to volumes, with tiny untrained components."""

import subprocess
import sys

import diffusers
import nibabel as nib
import numpy as np
import pytest
import torch
from diffusers import AmusedScheduler, DiffusionPipeline
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from hf_vq import (
    AbsorbingScheduler,
    CodeTransformer,
    CTVolumeProcessor,
    ViewsToVolumePipeline,
    VQTokenizer,
    VQTokenizerConfig,
    XrayImageProcessor,
)
from hf_vq.processors import BeamGeometry, render_views

TOKENIZER = {
    "base_channels": 8,
    "channel_multipliers": [1],
    "stem_stride": 4,
    "num_res_blocks": 1,
    "num_norm_groups": 4,
}


def make(context_attention="full", **transformer):
    torch.manual_seed(0)
    volume_tokenizer, view_tokenizer = (
        VQTokenizer(
            VQTokenizerConfig(spatial_dims=dims, quantizer={"codebook_size": 11, "codebook_dim": 3}, **TOKENIZER)
        )
        for dims in (3, 2)
    )
    fields = {"num_codes": 11, "code_grid": (2, 3, 4), "context_dim": 3, "context_grid": (4, 4), "hidden_size": 16}
    pipeline = ViewsToVolumePipeline(
        volume_tokenizer=volume_tokenizer.eval(),
        view_tokenizer=view_tokenizer.eval(),
        transformer=CodeTransformer(
            **{**fields, "num_layers": 1, "num_heads": 2, "context_attention": context_attention, **transformer}
        ).eval(),
        scheduler=AbsorbingScheduler(11),
        volume_processor=CTVolumeProcessor(size=[8, 12, 16], spacing=[4.0, 3.0, 2.0]),
        view_processor=XrayImageProcessor(size={"height": 16, "width": 16}),
    )
    # far enough from their small initial values that other inputs give other codes, and other codes other volumes
    pipeline.view_tokenizer.quantizer.codebook.weight.data.normal_()
    codebooks = (part.quantizer.effective_codebook.detach() for part in (volume_tokenizer, view_tokenizer))
    pipeline.transformer.initialize_from_codebooks(*codebooks)
    pipeline.transformer.head.weight.data.normal_()
    pipeline.volume_tokenizer.quantizer.codebook.weight.data.normal_()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def views(subjects=2):
    rng = np.random.default_rng(0)
    return {
        name: [Image.fromarray(rng.integers(0, 255, (20, 16), dtype=np.uint8)) for _ in range(subjects)]
        for name in ("frontal", "lateral")
    }


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def first_logits(pipe, given, **arguments):
    """`(volumes, 24, K)` that the scheduler gets in the first step, where all codes are masks."""
    seen, step = [], pipe.scheduler.step

    def record(logits, *rest, **keywords):
        seen.append(logits.unflatten(0, (-1, 24)))
        return step(logits, *rest, **keywords)

    pipe.scheduler.step = record
    try:
        pipe(given, **{"num_inference_steps": 1, "generator": generator(), "output_type": "latent", **arguments})
    finally:
        del pipe.scheduler.step
    return seen[0]


def context_of(pipe, images):
    """`(subjects, 1, tokens, channels)` of the images of one view, step by step."""
    pixel_values = pipe.view_processor(images)["pixel_values"]
    return pipe.view_tokenizer.embed_codes(pipe.view_tokenizer.encode(pixel_values).codes)[:, None]


def logits_of(pipe, subjects=2, **arguments):
    """The transformer's own logits for volumes of masks alone."""
    return pipe.transformer(torch.full((subjects, 24), 11), **arguments).sample


@pytest.mark.parametrize("context_attention", ["full", "prefix"])
def test_output_types_agree(context_attention):
    pipe = make(context_attention)
    outputs = {
        kind: pipe(views(), num_inference_steps=4, generator=generator(), output_type=kind).volumes
        for kind in ("latent", "pt", "hu", "nifti")
    }
    assert outputs["latent"].shape == (2, 2, 3, 4)
    assert outputs["pt"].shape == (2, 1, 8, 12, 16)
    assert torch.equal(pipe.volume_tokenizer.decode(outputs["latent"]).sample, outputs["pt"])
    np.testing.assert_allclose(outputs["hu"], outputs["pt"][:, 0].clamp(-1, 1).numpy() * 1000, atol=1e-2)
    for index, volume in enumerate(outputs["nifti"]):
        assert isinstance(volume, nib.Nifti1Image)
        assert volume.shape == (16, 12, 8)
        assert nib.aff2axcodes(volume.affine) == ("R", "A", "S")
        np.testing.assert_allclose(volume.header.get_zooms(), (2, 3, 4))
        stored = np.asanyarray(volume.dataobj).transpose(2, 1, 0)
        np.testing.assert_allclose(stored, outputs["hu"][index], atol=0.51)


def test_single_images_and_lists_of_one_agree():
    pipe, one = make(), views(1)
    single = pipe({name: images[0] for name, images in one.items()}, num_inference_steps=3, generator=generator())
    listed = pipe(one, num_inference_steps=3, generator=generator())
    assert torch.equal(single.codes, listed.codes)


def test_same_seed_same_volumes_and_another_seed_others():
    pipe = make()
    runs = [
        pipe(views(), num_inference_steps=4, generator=generator(seed), output_type="pt").volumes for seed in (1, 1, 2)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_a_volume_does_not_depend_on_its_batch():
    pipe, both = make(), views()
    together = pipe(
        both, num_inference_steps=4, num_volumes_per_prompt=2, generator=[generator(s) for s in range(4)]
    ).codes
    second = {name: images[1] for name, images in both.items()}
    alone = pipe(second, num_inference_steps=4, generator=generator(3)).codes
    assert torch.equal(together[3:], alone)


def test_views_change_the_result():
    pipe, right = make(), views()
    codes = pipe(right, num_inference_steps=4, generator=generator()).codes
    wrong = {name: images[::-1] for name, images in right.items()}
    assert not torch.equal(pipe(wrong, num_inference_steps=4, generator=generator()).codes, codes)


def test_cached_context_gives_the_same_codes():
    pipe = make("prefix")
    codes = pipe(views(), num_inference_steps=4, generator=generator()).codes
    pipe._view_arguments = lambda given, _: {"context": pipe.encode_views(given)}
    assert torch.equal(pipe(views(), num_inference_steps=4, generator=generator()).codes, codes)


def test_given_codes_are_kept():
    pipe = make()
    latents = torch.full((2, 2, 3, 4), 11)
    latents[:, 1] = torch.randint(11, (2, 3, 4))
    codes = pipe(views(), num_inference_steps=3, latents=latents, generator=generator(), output_type="latent").volumes
    assert torch.equal(codes[:, 1], latents[:, 1])
    assert bool((codes < 11).all())


@pytest.mark.parametrize("context_attention", ["full", "prefix"])
def test_guidance_is_linear_in_the_logits(context_attention):
    pipe, given = make(context_attention, context_dropout=0.1), views()
    context = torch.cat([context_of(pipe, given[name]) for name in ("frontal", "lateral")], dim=1)
    shown, hidden = logits_of(pipe, context=context), logits_of(pipe)
    assert (shown - hidden).abs().max() > 0.1
    for scale in (1.0, 0.0, 3.0):
        torch.testing.assert_close(
            first_logits(pipe, given, guidance_scale=scale), hidden + scale * (shown - hidden), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize(("scale", "evaluations"), [(1.0, 4), (2.0, 8)])
@pytest.mark.parametrize(("context_attention", "encoded"), [("full", 4), ("prefix", 1)])
def test_only_guidance_evaluates_twice_and_a_prefix_is_encoded_once(scale, evaluations, context_attention, encoded):
    pipe, calls = make(context_attention, context_dropout=0.1), []
    pipe.transformer.register_forward_hook(lambda *_: calls.append("evaluation"))
    pipe.transformer.context_projection.register_forward_hook(lambda *_: calls.append("context"))
    pipe(views(), num_inference_steps=4, guidance_scale=scale, generator=generator())
    assert (calls.count("evaluation"), calls.count("context")) == (evaluations, encoded)


def test_guidance_strengthens_the_views_in_half_precision_too():
    pipe, given = make(context_dropout=0.1), views()
    expected = first_logits(pipe, given, guidance_scale=3.0)
    logits = first_logits(pipe.to(torch.bfloat16), given, guidance_scale=3.0)
    assert logits.dtype == torch.float32
    assert (logits - expected).abs().mean() < 0.1 * expected.abs().mean()
    output = pipe(
        given,
        **{"num_inference_steps": 2, "num_volumes_per_prompt": 2, "generator": generator(), "output_type": "pt"},
        return_uncertainty=True,
        select_by_reprojection=True,
    )
    assert {output.volumes.dtype, output.mean.dtype, output.std.dtype} == {torch.bfloat16}
    assert bool(output.reprojection_errors.isfinite().all())


@pytest.mark.parametrize("context_attention", ["full", "prefix"])
@pytest.mark.parametrize("name", ["frontal", "lateral"])
def test_some_of_the_views_are_a_model_call_with_them(context_attention, name):
    pipe, given = make(context_attention, view_dropout=0.5), views()
    view_ids = torch.full((2, 1), pipe.transformer.view_names.index(name))
    expected = logits_of(pipe, context=context_of(pipe, given[name]), view_ids=view_ids)
    torch.testing.assert_close(first_logits(pipe, {name: given[name]}), expected)
    torch.testing.assert_close(
        pipe.encode_views({name: given[name]}), context_of(pipe, given[name]), atol=1e-6, rtol=1e-6
    )


def test_the_order_of_the_views_does_not_matter():
    pipe, given = make(), views()
    assert list(given) != list(reversed(given))
    outputs = [
        pipe({name: given[name] for name in names}, num_inference_steps=4, generator=generator()).codes
        for names in (given, reversed(given))
    ]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("context_attention", ["full", "prefix"])
def test_each_subject_may_lack_other_views(context_attention):
    pipe, given = make(context_attention, view_dropout=0.5, context_dropout=0.1), views(4)
    frontal, lateral = given["frontal"], given["lateral"]
    ragged = {"lateral": [lateral[0], None, lateral[2], None], "frontal": [None, frontal[1], frontal[2], None]}
    logits = first_logits(pipe, ragged, num_volumes_per_prompt=2)
    for subject in range(4):
        alone = {name: images[subject : subject + 1] for name, images in ragged.items()}
        expected = first_logits(pipe, {name: images for name, images in alone.items() if images != [None]} or alone)
        torch.testing.assert_close(logits[2 * subject : 2 * subject + 2], expected.expand(2, -1, -1))
    torch.testing.assert_close(logits[-1:], logits_of(pipe, 1))


@pytest.mark.parametrize("output_type", ["pt", "hu", "nifti"])
def test_uncertainty_is_mean_and_deviation_of_the_volumes_drawn(output_type):
    pipe, given = make(), views()
    arguments = {"num_inference_steps": 3, "num_volumes_per_prompt": 3}
    plain = pipe(given, **arguments, generator=generator(), output_type=output_type)
    output = pipe(given, **arguments, generator=generator(), output_type=output_type, return_uncertainty=True)
    volumes, same, mean, std = (array_of(each) for each in (plain.volumes, output.volumes, output.mean, output.std))
    np.testing.assert_array_equal(volumes, same)
    by_subject = volumes.reshape(2, 3, *volumes.shape[1:]).astype(np.float64)
    # the images that are compared with are rounded to whole HU
    tolerance = {"pt": 1e-5, "hu": 1e-2, "nifti": 1.0}[output_type]
    np.testing.assert_allclose(mean, by_subject.mean(axis=1), atol=tolerance)
    np.testing.assert_allclose(std, by_subject.std(axis=1, ddof=1), atol=tolerance)
    assert std.max() > 10 * tolerance
    assert type(output.mean) is type(output.std) is type(output.volumes)
    if output_type == "nifti":
        for image in (*output.mean, *output.std):
            np.testing.assert_array_equal(image.affine, output.volumes[0].affine)
            assert image.header.get_xyzt_units() == output.volumes[0].header.get_xyzt_units()


def array_of(volumes):
    if isinstance(volumes, list):
        return np.stack([np.asanyarray(volume.dataobj) for volume in volumes])
    return np.asarray(volumes)


@pytest.mark.parametrize("output_type", ["pt", "hu", "nifti", "latent"])
def test_selection_returns_the_candidate_of_the_least_error(output_type):
    pipe, given = make(), views()
    arguments = {"num_inference_steps": 3, "num_volumes_per_prompt": 4, "output_type": output_type}
    candidates = pipe(given, **arguments, generator=generator())
    output = pipe(given, **arguments, generator=generator(), select_by_reprojection=True)
    assert output.reprojection_errors.shape == (2, 4)
    for subject, best in enumerate(output.reprojection_errors.argmin(dim=1).tolist()):
        assert torch.equal(output.codes[subject], candidates.codes[4 * subject + best])
        np.testing.assert_array_equal(
            array_of(output.volumes)[subject], array_of(candidates.volumes)[4 * subject + best]
        )
    assert len(output.codes) == len(array_of(output.volumes)) == 2


@pytest.mark.parametrize("beam", [None, BeamGeometry(source_detector_distance=300.0, source_isocentre_distance=200.0)])
def test_selection_finds_the_volume_that_the_views_show(beam):
    pipe = make()
    latents = torch.randint(11, (6, 2, 3, 4), generator=generator())
    hu = torch.from_numpy(pipe.decode_codes(latents, "hu"))[[2, 3], None]
    images = render_views(hu, pipe.volume_processor.spacing, image_size=(16, 16), beam=beam)[:, :, 0]
    given = {name: list(images[:, index]) for index, name in enumerate(("frontal", "lateral"))}
    output = pipe(given, num_volumes_per_prompt=3, latents=latents, select_by_reprojection=True, beam=beam)
    assert output.reprojection_errors.argmin(dim=1).tolist() == [2, 0]
    assert torch.equal(output.codes, latents[2:4])
    torch.testing.assert_close(output.reprojection_errors.amin(dim=1), torch.zeros(2), atol=1e-8, rtol=0)


def test_selection_with_uncertainty_keeps_the_deviation_of_all_candidates():
    pipe, given = make(), views()
    arguments = {"num_inference_steps": 2, "num_volumes_per_prompt": 3, "output_type": "hu"}
    both = pipe(given, **arguments, generator=generator(), return_uncertainty=True, select_by_reprojection=True)
    alone = pipe(given, **arguments, generator=generator(), return_uncertainty=True)
    np.testing.assert_array_equal(both.mean, alone.mean)
    np.testing.assert_array_equal(both.std, alone.std)
    assert (len(both.volumes), len(alone.volumes)) == (2, 6)
    assert alone.reprojection_errors is None
    outputs = pipe(
        given,
        **arguments,
        generator=generator(),
        return_uncertainty=True,
        select_by_reprojection=True,
        return_dict=False,
    )
    volumes, codes, mean, std, errors = outputs
    np.testing.assert_array_equal(volumes, both.volumes)
    assert torch.equal(codes, both.codes)
    np.testing.assert_array_equal(mean, both.mean)
    np.testing.assert_array_equal(std, both.std)
    assert torch.equal(errors, both.reprojection_errors)


CLASSES = {"num_classes": 3, "id2label": {0: "chest", 1: "knee", 2: "baggage"}}


def test_class_labels_and_views_condition_together():
    pipe, given = make(**CLASSES, label_dropout=0.1, context_dropout=0.1), views()
    context = torch.cat([context_of(pipe, given[name]) for name in ("frontal", "lateral")], dim=1)
    labels = torch.tensor([2, -1])
    expected = logits_of(pipe, context=context, class_labels=labels)
    for class_labels in (labels, ["baggage", None], [2, -1]):
        torch.testing.assert_close(first_logits(pipe, given, class_labels=class_labels), expected)
    unlabelled = first_logits(pipe, given)
    assert (unlabelled[0] - expected[0]).abs().max() > 0.1
    torch.testing.assert_close(unlabelled[1], expected[1])
    repeated = first_logits(pipe, given, class_labels=[2, -1], num_volumes_per_prompt=2)
    torch.testing.assert_close(repeated, expected.repeat_interleave(2, dim=0))
    hidden = logits_of(pipe, class_labels=labels)
    guided = first_logits(pipe, given, class_labels=labels, guidance_scale=2.0)
    torch.testing.assert_close(guided, hidden + 2 * (expected - hidden), atol=1e-4, rtol=1e-4)


def test_one_class_label_serves_all_subjects():
    pipe, given = make(**CLASSES), views()
    expected = first_logits(pipe, given, class_labels=[1, 1])
    assert torch.equal(first_logits(pipe, given, class_labels="knee"), expected)
    assert not torch.equal(first_logits(pipe, given, class_labels="chest"), expected)


@pytest.mark.parametrize(
    ("fields", "arguments", "words"),
    [
        ({}, {"guidance_scale": 2.0}, r"guidance_scale=2\.0.*context_dropout=0; leave it at 1, or train"),
        ({"context_dropout": 0.1}, {"guidance_scale": -1.0}, "guidance_scale must be finite"),
        ({"context_dropout": 0.1}, {"guidance_scale": float("inf")}, "guidance_scale must be finite"),
        ({"context_dropout": 0.1}, {"guidance_scale": float("nan")}, "guidance_scale must be finite"),
        (
            {"context_dropout": 0.1},
            {"views": {"frontal": views()["frontal"]}},
            r"missing: \['lateral'\], for 2 of 2 subjects, .* view_dropout=0: give them, or train with view_dropout",
        ),
        (
            {},
            {"views": {"frontal": views()["frontal"], "lateral": [views()["lateral"][0], None]}},
            r"missing: \['lateral'\], for 1 of 2 subjects",
        ),
        (
            {"view_dropout": 0.5},
            {"views": {"frontal": [views()["frontal"][0], None]}},
            r"missing: \['frontal', 'lateral'\], for 1 of 2 subjects, .* context_dropout=0",
        ),
        ({"view_dropout": 0.5}, {"views": {}}, "at least one"),
        ({}, {"return_uncertainty": True}, "num_volumes_per_prompt=1"),
        (
            {},
            {"return_uncertainty": True, "num_volumes_per_prompt": 2, "output_type": "latent"},
            "output_type='latent'",
        ),
        (
            {"view_dropout": 0.5, "context_dropout": 0.1},
            {"select_by_reprojection": True, "views": {"frontal": [views()["frontal"][0], None]}},
            r"subjects \[1\] have none",
        ),
        ({}, {"class_labels": [0, 1]}, "0 classes"),
        (CLASSES, {}, "label_dropout=0"),
        (CLASSES, {"class_labels": "hat"}, r"\['hat', 'hat'\].*'knee'"),
        (CLASSES, {"class_labels": [0, 1, 2]}, "each of 2 subjects, and at least one; got 3"),
    ],
)
def test_what_the_model_was_not_trained_for_is_refused(fields, arguments, words):
    with pytest.raises(ValueError, match=words):
        make(**fields)(**{"views": views(), "num_inference_steps": 2, **arguments})


def test_views_that_nobody_can_render_select_nothing():
    pipe = make(view_axes={"frontal": ("inferior", "left"), "sketch": ("inferior", "posterior")})
    given = dict(zip(("frontal", "sketch"), views().values(), strict=True))
    with pytest.raises(ValueError, match=r"\['sketch'\] cannot be rendered"):
        pipe(given, num_inference_steps=2, select_by_reprojection=True)
    pipe.volume_processor.spacing = None
    with pytest.raises(ValueError, match="select_by_reprojection=True needs the voxel size"):
        pipe(given, num_inference_steps=2, select_by_reprojection=True, output_type="hu")


def test_amused_scheduler_takes_its_place():
    pipe = make()
    pipe.scheduler = AmusedScheduler(mask_token_id=11)
    codes = pipe(views(), num_inference_steps=5, generator=generator()).codes
    assert bool((codes < 11).all())


@pytest.mark.parametrize("dropout", [{}, {"view_dropout": 0.1, "context_dropout": 0.1}])
def test_views_may_come_as_one_dict_for_each_subject(dropout):
    pipe, by_name = make(**dropout), views(3)
    by_subject = [dict(zip(by_name, images, strict=True)) for images in zip(*by_name.values(), strict=True)]
    if dropout:
        by_name["lateral"][1] = by_subject[1]["lateral"] = None
        by_name["frontal"][2] = by_name["lateral"][2] = None
        by_subject[2] = {}
    assert torch.equal(first_logits(pipe, by_subject), first_logits(pipe, by_name))


@pytest.mark.parametrize("scales", [(1.0, 3.0), (3.0, 1.0)])
def test_a_callback_may_change_the_guidance(scales):
    pipe, given, before, after = make(context_dropout=0.1), views(), [], []
    step = pipe.scheduler.step

    def record(logits, timestep, codes, **arguments):
        before.append((codes, arguments["positions"]))
        after.append(logits)
        return step(logits, timestep, codes, **arguments)

    def callback(pipeline, index, timestep, tensors):
        assert pipeline.guidance_scale == scales[min(index, 1)]
        pipeline._guidance_scale = scales[1]
        return tensors

    pipe.scheduler.step = record
    arguments = {"generator": generator(), "output_type": "latent", "callback_on_step_end": callback}
    pipe(given, num_inference_steps=2, guidance_scale=scales[0], **arguments)
    context = pipe.encode_views(given)
    for (codes, chosen), logits, scale in zip(before, after, scales, strict=True):
        shown, hidden = pipe.transformer(codes, context=context).sample, pipe.transformer(codes).sample
        torch.testing.assert_close(logits, (hidden + scale * (shown - hidden))[chosen], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("context_attention", ["full", "prefix"])
def test_the_views_are_encoded_once_for_all_volumes_of_a_subject(context_attention):
    pipe, given, rows = make(context_attention), views(), []
    pipe.transformer.context_projection.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    codes = pipe(given, num_inference_steps=4, num_volumes_per_prompt=3, generator=generator()).codes
    subjects = len(codes) // 3
    # the paper's view tokens depend on the codes, so each step computes them anew for every volume
    assert rows == ([subjects] if context_attention == "prefix" else [3 * subjects] * 4)


def test_callback_sees_every_step():
    pipe, seen = make(), []

    def callback(pipeline, step, timestep, tensors):
        seen.append((step, int((tensors["latents"] == 11).sum())))
        return tensors

    pipe(views(), num_inference_steps=6, generator=generator(), callback_on_step_end=callback)
    assert [step for step, _ in seen] == list(range(6))
    assert [masks for _, masks in seen] == sorted((masks for _, masks in seen), reverse=True)
    assert seen[-1][1] == 0
    assert pipe.num_timesteps == 6


def test_tuple_output():
    volumes, codes = make()(
        views(), num_inference_steps=2, generator=generator(), output_type="latent", return_dict=False
    )
    assert torch.equal(volumes, codes)


def test_a_fresh_process_reproduces_the_volumes(tmp_path):
    pipe = make()
    pipe.save_pretrained(tmp_path / "pipe")
    for name, images in views().items():
        for index, image in enumerate(images):
            image.save(tmp_path / f"{name}{index}.png")
    paths = {name: [str(tmp_path / f"{name}{index}.png") for index in range(2)] for name in ("frontal", "lateral")}
    torch.save(
        pipe(paths, num_inference_steps=4, generator=generator(5), output_type="pt").volumes, tmp_path / "here.pt"
    )
    program = f"""
import torch, hf_vq
from diffusers import DiffusionPipeline
for cls in (hf_vq.ViewsToVolumePipeline, DiffusionPipeline):
    pipe = cls.from_pretrained({str(tmp_path / "pipe")!r})
    assert type(pipe) is hf_vq.ViewsToVolumePipeline
    source = torch.Generator().manual_seed(5)
    volumes = pipe({paths!r}, num_inference_steps=4, generator=source, output_type="pt").volumes
    assert torch.equal(volumes, torch.load({str(tmp_path / "here.pt")!r}))
print("same to the bit")
"""
    # one thread as in this process: the order of a parallel sum may change its last bit
    program = f"import torch; torch.set_num_threads({torch.get_num_threads()})\n" + program
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "same to the bit" in result.stdout, result.stderr


def test_parts_load_through_the_auto_classes(tmp_path):
    make().save_pretrained(tmp_path)
    assert diffusers.ViewsToVolumePipeline is ViewsToVolumePipeline
    assert type(DiffusionPipeline.from_pretrained(tmp_path)) is ViewsToVolumePipeline
    for part in ("volume_tokenizer", "view_tokenizer"):
        assert isinstance(AutoModel.from_pretrained(tmp_path / part), VQTokenizer)
    assert isinstance(AutoImageProcessor.from_pretrained(tmp_path / "volume_processor"), CTVolumeProcessor)
    assert isinstance(AutoImageProcessor.from_pretrained(tmp_path / "view_processor"), XrayImageProcessor)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"views": {"frontal": views()["frontal"]}}, r"missing: \['lateral'\]"),
        ({"views": {**views(), "oblique": views()["frontal"]}}, r"unknown: \['oblique'\]"),
        ({"views": {"frontal": views(2)["frontal"], "lateral": views(1)["lateral"]}}, "same number of images"),
        ({"views": {"frontal": [], "lateral": []}}, "at least one"),
        ({"views": views()["frontal"]}, "dict of images"),
        ({"views": []}, "at least one"),
        ({"views": [{"oblique": views()["frontal"][0]}]}, r"unknown: \['oblique'\]"),
        ({"output_type": "dicom"}, "output_type='dicom'"),
        ({"num_volumes_per_prompt": 0}, "num_volumes_per_prompt"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"temperature": -1.0}, "temperature"),
        ({"generator": [generator()]}, "1 generators for 2 samples"),
        ({"latents": torch.zeros(2, 2, 3, 3, dtype=torch.int64)}, "latents"),
        ({"latents": torch.full((2, 2, 3, 4), 12)}, r"\[0, 11\]"),
        ({"callback_on_step_end_tensor_inputs": ["logits"]}, "logits"),
        ({"views": {name: [image.convert("RGBA") for image in images] for name, images in views().items()}}, "RGBA"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        make()(**{"views": views(), "num_inference_steps": 2, **arguments})


def test_nifti_without_a_voxel_size_is_refused_before_any_work():
    pipe = make()
    pipe.volume_processor.spacing = None
    with pytest.raises(ValueError, match="spacing"):
        pipe(views(), callback_on_step_end=lambda *_: pytest.fail("a step was made"))


def test_components_that_do_not_fit_are_refused():
    pipe = make()
    with pytest.raises(ValueError, match="mask_token_id"):
        ViewsToVolumePipeline(**{**pipe.components, "scheduler": AbsorbingScheduler(99)})
    for name, fields in (
        ("num_codes", {"num_codes": 12}),
        ("context_dim", {"context_dim": 4}),
    ):
        transformer = CodeTransformer(**{**dict(pipe.transformer.config), **fields})
        scheduler = AbsorbingScheduler(transformer.mask_token_id)
        with pytest.raises(ValueError, match=name):
            ViewsToVolumePipeline(**{**pipe.components, "transformer": transformer, "scheduler": scheduler})
