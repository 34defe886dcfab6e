"""The pipeline from views to volumes, with tiny untrained components."""

import subprocess
import sys

import diffusers
import nibabel as nib
import numpy as np
import pytest
import torch
from diffusers import AmusedScheduler, DiffusionPipeline
from tiny_views_to_volume import generator, make, views
from transformers import AutoImageProcessor, AutoModel

from hf_vq import (
    AbsorbingScheduler,
    CodeTransformer,
    CTVolumeProcessor,
    ViewsToVolumePipeline,
    VQTokenizer,
    XrayImageProcessor,
)
from hf_vq.processors import BeamGeometry, render_views


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
