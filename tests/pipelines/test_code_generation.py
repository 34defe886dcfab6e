"""The pipeline that generates images from codes, with tiny untrained components."""

import json
import subprocess
import sys

import diffusers
import numpy as np
import pytest
import torch
from diffusers import AmusedScheduler, DiffusionPipeline
from transformers import AutoModel

from hf_vq import AbsorbingScheduler, CodeGenerationPipeline, CodeTransformer, VQTokenizer, VQTokenizerConfig

NAMES = {0: "shirt", 1: "bag", 2: "boot"}


def make(num_classes=3, label_dropout=0.1, spatial_dims=2, channels=1):
    torch.manual_seed(0)
    config = VQTokenizerConfig(
        spatial_dims=spatial_dims,
        in_channels=channels,
        base_channels=8,
        channel_multipliers=[1],
        stem_stride=4,
        num_res_blocks=1,
        num_norm_groups=4,
        quantizer={"codebook_size": 11, "codebook_dim": 3},
    )
    classes = {"num_classes": num_classes, "label_dropout": label_dropout, "id2label": NAMES} if num_classes else {}
    transformer = CodeTransformer(
        num_codes=11,
        code_grid=(2, 3, 4)[-spatial_dims:],
        context_dim=None,
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        **classes,
    )
    tokenizer = VQTokenizer(config).eval()
    # far enough from their small initial values that other codes give other images
    tokenizer.quantizer.codebook.weight.data.normal_()
    transformer.head.weight.data.normal_()
    pipeline = CodeGenerationPipeline(tokenizer, transformer.eval(), AbsorbingScheduler(11))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def codes_of(pipe, *labels, **arguments):
    return pipe(
        *labels, **{"num_inference_steps": 4, "generator": generator(), "output_type": "latent", **arguments}
    ).codes


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_output_types_agree(channels, mode):
    pipe = make(channels=channels)
    latent, pt, array, pil = (
        pipe([0, 2], num_inference_steps=4, generator=generator(), output_type=kind).images
        for kind in ("latent", "pt", "np", "pil")
    )
    assert latent.shape == (2, 3, 4)
    assert pt.shape == (2, channels, 12, 16)
    torch.testing.assert_close(pt, (pipe.tokenizer.decode(latent).sample / 2 + 0.5).clamp(0, 1))
    np.testing.assert_allclose(array, pt.permute(0, 2, 3, 1).numpy())
    assert [image.mode for image in pil] == [mode, mode]
    shown = np.stack([np.asarray(image).reshape(12, 16, channels) for image in pil])
    np.testing.assert_allclose(shown / 255, array, atol=0.51 / 255)


def test_unconditional_images_come_in_the_number_asked_for():
    pipe = make(num_classes=None)
    assert codes_of(pipe).shape == (1, 3, 4)
    assert codes_of(pipe, batch_size=3, num_images_per_prompt=2).shape == (6, 3, 4)


def test_labels_may_be_numbers_names_lists_and_tensors():
    pipe = make()
    expected = codes_of(pipe, [1, 2])
    for labels in (["bag", "boot"], ("bag", 2), torch.tensor([1, 2]), np.array([1, 2])):
        assert torch.equal(codes_of(pipe, labels), expected)
    for label in ("bag", np.int64(1), torch.tensor(1)):
        assert torch.equal(codes_of(pipe, label, batch_size=3), codes_of(pipe, [1, 1, 1]))
    assert torch.equal(codes_of(pipe, 1, num_images_per_prompt=3), codes_of(pipe, [1, 1, 1]))
    assert torch.equal(codes_of(pipe, [1, 2], num_images_per_prompt=2), codes_of(pipe, [1, 1, 2, 2]))
    for label in (np.array(1), np.str_("bag")):
        assert torch.equal(codes_of(pipe, label), codes_of(pipe, 1))
    assert torch.equal(codes_of(pipe, None, batch_size=2), codes_of(pipe, [-1, -1]))
    assert torch.equal(codes_of(pipe, ["bag", None]), codes_of(pipe, [1, -1]))


def test_labels_and_seeds_change_the_result_and_equal_ones_do_not():
    pipe = make()
    codes = codes_of(pipe, [0, 0])
    assert torch.equal(codes_of(pipe, [0, 0]), codes)
    assert not torch.equal(codes_of(pipe, [1, 1]), codes)
    assert not torch.equal(codes_of(pipe, [0, 0], generator=generator(1)), codes)


def test_an_image_does_not_depend_on_its_batch():
    pipe = make()
    together = codes_of(pipe, [0, 1, 2], generator=[generator(seed) for seed in range(3)])
    assert torch.equal(codes_of(pipe, 2, generator=generator(2)), together[2:])


def test_guidance_is_linear_in_the_logits():
    pipe = make()
    seen = []
    step = pipe.scheduler.step

    def record(logits, *arguments, **keywords):
        seen.append(logits.view(2, 12, -1))
        return step(logits, *arguments, **keywords)

    pipe.scheduler.step = record
    for labels, scale in (([0, 1], 1.0), (None, 1.0), ([0, 1], 0.0), ([0, 1], 3.0)):
        pipe(labels, batch_size=2, num_inference_steps=1, guidance_scale=scale, generator=generator())
    plain, unlabelled, without, strong = seen
    masks = torch.full((2, 12), 11)
    torch.testing.assert_close(plain, pipe.transformer(masks, class_labels=torch.tensor([0, 1])).sample)
    torch.testing.assert_close(unlabelled, pipe.transformer(masks).sample)
    torch.testing.assert_close(without, unlabelled)
    torch.testing.assert_close(strong, unlabelled + 3 * (plain - unlabelled))


def test_given_codes_are_kept():
    pipe = make()
    latents = torch.full((2, 3, 4), 11)
    latents[:, 1] = torch.randint(11, (2, 4))
    for scheduler in (pipe.scheduler, AmusedScheduler(mask_token_id=11)):
        pipe.scheduler = scheduler
        codes = codes_of(pipe, [0, 1], latents=latents)
        assert torch.equal(codes[:, 1], latents[:, 1])
        assert bool((codes < 11).all())


def test_given_codes_are_kept_where_nothing_is_masked():
    pipe = make()
    latents = torch.full((2, 3, 4), 11)
    latents[1] = torch.randint(11, (3, 4))
    for scheduler in (pipe.scheduler, AmusedScheduler(mask_token_id=11)):
        pipe.scheduler = scheduler
        codes = codes_of(pipe, [0, 1], latents=latents)
        assert torch.equal(codes[1], latents[1])
        assert bool((codes < 11).all())


def test_amused_scheduler_takes_its_place(tmp_path):
    pipe = make()
    pipe.scheduler = AmusedScheduler(mask_token_id=11)
    codes = codes_of(pipe, [0, 1], guidance_scale=2.0)
    assert bool((codes < 11).all())
    pipe.save_pretrained(tmp_path)
    loaded = CodeGenerationPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(codes_of(loaded, [0, 1], guidance_scale=2.0), codes)
    with pytest.raises(ValueError, match="one generator"):
        codes_of(pipe, [0], generator=[generator()])


def test_callback_sees_every_step_and_may_change_the_codes():
    pipe, seen = make(), []

    def callback(pipeline, step, timestep, tensors):
        seen.append((step, int((tensors["latents"] == 11).sum())))
        return {"latents": torch.where(tensors["latents"] == 11, 11, 0)}

    codes = codes_of(pipe, [0, 1], callback_on_step_end=callback)
    assert [step for step, _ in seen] == list(range(4))
    assert [masks for _, masks in seen] == sorted((masks for _, masks in seen), reverse=True)
    assert pipe.num_timesteps == 4
    assert bool((codes == 0).all())


def test_a_callback_may_change_the_guidance():
    pipe, seen = make(), []
    step = pipe.scheduler.step

    def record(logits, timestep, codes, **arguments):
        seen.append((logits, codes, arguments["positions"]))
        return step(logits, timestep, codes, **arguments)

    def callback(pipeline, index, timestep, tensors):
        assert pipeline.guidance_scale == (1 if index == 0 else 3)
        pipeline._guidance_scale = 3.0
        return tensors

    pipe.scheduler.step = record
    codes_of(pipe, [0, 1], num_inference_steps=2, callback_on_step_end=callback)
    for (logits, codes, chosen), scale in zip(seen, (1, 3), strict=True):
        labelled, without = (
            pipe.transformer(codes, class_labels=torch.tensor(ids)).sample for ids in ([0, 1], [-1, -1])
        )
        torch.testing.assert_close(logits, (without + scale * (labelled - without))[chosen])


def test_a_callback_cannot_guide_a_model_that_never_saw_images_without_a_label():
    def callback(pipeline, step, timestep, tensors):
        pipeline._guidance_scale = 3.0
        return tensors

    with pytest.raises(ValueError, match="label_dropout=0"):
        codes_of(make(label_dropout=0.0), 0, callback_on_step_end=callback)


@pytest.mark.parametrize(("asked", "given"), [(None, ["latents"]), (["latents"], ["latents"]), ([], [])])
def test_the_callback_gets_the_tensors_asked_for(asked, given):
    seen = []

    def callback(pipeline, step, timestep, tensors):
        seen.append(list(tensors))
        return tensors

    codes_of(make(), 0, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=asked)
    assert seen == [given] * 4


def test_codes_that_a_callback_returns_under_another_name_are_not_lost_in_silence():
    with pytest.raises(ValueError, match=r"returned \['codes'\], which change nothing"):
        codes_of(make(), 0, callback_on_step_end=lambda pipeline, step, timestep, tensors: {"codes": 0})


def test_tuple_output():
    images, codes = make()(0, num_inference_steps=2, generator=generator(), output_type="latent", return_dict=False)
    assert torch.equal(images, codes)


def test_volumes_are_generated_as_tensors():
    pipe = make(spatial_dims=3)
    assert pipe(0, num_inference_steps=2, output_type="pt").images.shape == (1, 1, 8, 12, 16)
    with pytest.raises(ValueError, match="output_type='pil'"):
        pipe(0, num_inference_steps=2)


def test_a_fresh_process_reproduces_the_images(tmp_path):
    pipe = make()
    pipe.save_pretrained(tmp_path / "pipe")
    arguments = {"class_labels": ["bag", "boot"], "num_inference_steps": 4, "guidance_scale": 2.0, "output_type": "pt"}
    torch.save(pipe(**arguments, generator=generator(5)).images, tmp_path / "here.pt")
    program = f"""
import torch; torch.set_num_threads({torch.get_num_threads()})
import hf_vq
from diffusers import DiffusionPipeline
for cls in (hf_vq.CodeGenerationPipeline, DiffusionPipeline):
    pipe = cls.from_pretrained({str(tmp_path / "pipe")!r})
    assert type(pipe) is hf_vq.CodeGenerationPipeline
    images = pipe(**{arguments!r}, generator=torch.Generator().manual_seed(5)).images
    assert torch.equal(images, torch.load({str(tmp_path / "here.pt")!r}))
print("same to the bit")
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "same to the bit" in result.stdout, result.stderr


def test_saved_components_are_named_by_the_package(tmp_path):
    make().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "CodeGenerationPipeline"
    assert {name: index[name] for name in ("tokenizer", "transformer", "scheduler")} == {
        "tokenizer": ["hf_vq", "VQTokenizer"],
        "transformer": ["hf_vq", "CodeTransformer"],
        "scheduler": ["hf_vq", "AbsorbingScheduler"],
    }
    assert diffusers.CodeGenerationPipeline is CodeGenerationPipeline
    assert type(DiffusionPipeline.from_pretrained(tmp_path)) is CodeGenerationPipeline
    assert isinstance(AutoModel.from_pretrained(tmp_path / "tokenizer"), VQTokenizer)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"class_labels": 3}, r"class_labels \[3\] are unknown"),
        ({"class_labels": ["bag", "hat"]}, r"\['hat'\].*'shirt', 'bag', 'boot'"),
        ({"class_labels": 1.5}, r"\[1\.5\]"),
        ({"class_labels": [0, 1.0]}, r"\[1\.0\]"),
        ({"class_labels": np.array([0.0])}, r"\[0\.0\]"),
        ({"class_labels": torch.tensor([[0, 1]])}, r"\[\[0, 1\]\]"),
        ({"class_labels": []}, "at least one"),
        ({"class_labels": [0, 1], "batch_size": 3}, "batch_size=3"),
        ({"batch_size": 0}, "batch_size"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt"),
        ({"guidance_scale": 2.0}, "give class_labels"),
        ({"class_labels": 0, "guidance_scale": -1.0}, "guidance_scale"),
        ({"class_labels": 0, "guidance_scale": float("nan")}, "guidance_scale"),
        ({"output_type": "jpg"}, "output_type='jpg'"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"temperature": -1.0}, "temperature"),
        ({"generator": [generator(), generator()]}, "2 generators for 1 samples"),
        ({"latents": torch.zeros(1, 3, 3, dtype=torch.int64)}, "latents"),
        ({"latents": torch.full((1, 3, 4), 12)}, r"\[0, 11\]"),
        ({"callback_on_step_end_tensor_inputs": ["logits"]}, "logits"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        make()(**{"num_inference_steps": 2, **arguments})


@pytest.mark.parametrize("arguments", [{}, {"class_labels": 0, "guidance_scale": 2.0}, {"class_labels": [0, -1]}])
def test_a_model_that_never_saw_images_without_a_label_makes_none(arguments):
    pipe = make(label_dropout=0.0)
    assert codes_of(pipe, 0).shape == (1, 3, 4)
    with pytest.raises(ValueError, match="label_dropout=0"):
        pipe(num_inference_steps=2, **arguments)


def test_labels_need_a_model_with_classes():
    with pytest.raises(ValueError, match="0 classes"):
        make(num_classes=None)(0, num_inference_steps=2)


def test_components_that_do_not_fit_are_refused():
    pipe = make()
    with pytest.raises(ValueError, match="mask_token_id"):
        CodeGenerationPipeline(**{**pipe.components, "scheduler": AbsorbingScheduler(99)})
    with pytest.raises(ValueError, match="spatial_dims"):
        CodeGenerationPipeline(**{**pipe.components, "tokenizer": make(spatial_dims=3).tokenizer})
    fields = dict(pipe.transformer.config)
    for changed, words in (({"num_codes": 12}, "num_codes"), ({"context_dim": 3, "view_axes": {}}, "context_dim")):
        transformer = CodeTransformer(**{**fields, **changed})
        scheduler = AbsorbingScheduler(transformer.mask_token_id)
        with pytest.raises(ValueError, match=words):
            CodeGenerationPipeline(pipe.tokenizer, transformer, scheduler)
    quantizer = {"codebook_size": 11, "codebook_dim": 4, "structure": "grouped", "num_codebooks": 2}
    config = {**pipe.tokenizer.config.to_dict(), "quantizer": quantizer}
    with pytest.raises(ValueError, match="codebooks of tokenizer and 1"):
        CodeGenerationPipeline(**{**pipe.components, "tokenizer": VQTokenizer(VQTokenizerConfig(**config))})
