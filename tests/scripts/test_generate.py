"""`scripts/generate.py` with a small untrained pipeline: seeds, what a volume depends on, checks of the flags."""

import importlib.util
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from hf_vq import (
    AbsorbingScheduler,
    CodeTransformer,
    CTVolumeProcessor,
    ViewsToVolumePipeline,
    VQTokenizer,
    VQTokenizerConfig,
    XrayImageProcessor,
)
from hf_vq.evaluation.volumes import find_generated
from hf_vq.schedulers.scheduling_absorbing import SAMPLINGS

SCRIPT = Path(__file__).parents[2] / "scripts" / "generate.py"


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_split(folder: Path, subjects: str, views: tuple[str, ...] = ("frontal",)) -> Path:
    """A paired folder whose test split has subjects of one letter each, with random views."""
    split = folder / "test"
    split.mkdir(parents=True)
    lines = [",".join(("file_name", *views, "subject"))]
    for number, name in enumerate(subjects):
        nibabel.Nifti1Image(np.zeros((4, 4, 4), dtype=np.int16), np.eye(4)).to_filename(split / f"{name}.nii.gz")
        images = np.random.default_rng(number).integers(0, 255, (len(views), 16, 16), dtype=np.uint8)
        for view, pixels in zip(views, images, strict=True):
            Image.fromarray(pixels).save(split / f"{name}_{view}.png")
        lines.append(",".join((f"{name}.nii.gz", *(f"{name}_{view}.png" for view in views), name)))
    (split / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    """A saved pipeline of 2 x 2 x 2 codes for the view `frontal`."""
    return save_pipeline(tmp_path_factory.mktemp("generate") / "pipeline", {"frontal": ("inferior", "left")})


@pytest.fixture(scope="module")
def flexible(tmp_path_factory) -> Path:
    """A saved pipeline for two views, either of which may be missing, as may both."""
    axes = {"frontal": ("inferior", "left"), "lateral": ("inferior", "posterior")}
    folder = tmp_path_factory.mktemp("flexible") / "pipeline"
    return save_pipeline(folder, axes, view_dropout=0.5, context_dropout=0.1)


def save_pipeline(folder: Path, view_axes: dict[str, tuple[str, str]], **dropout: float) -> Path:
    """Writes a small untrained pipeline whose volumes differ by hundreds of HU."""
    torch.manual_seed(0)
    fields = {"base_channels": 8, "channel_multipliers": [1], "stem_stride": 4, "num_res_blocks": 1}
    quantizer = {"codebook_size": 11, "codebook_dim": 3}
    volume_tokenizer, view_tokenizer = (
        VQTokenizer(VQTokenizerConfig(spatial_dims=dims, quantizer=quantizer, num_norm_groups=4, **fields))
        for dims in (3, 2)
    )
    view_tokenizer.quantizer.codebook.weight.data.normal_()
    volume_tokenizer.quantizer.codebook.weight.data.normal_()
    grids = {"code_grid": (2, 2, 2), "context_grid": (4, 4), "view_axes": view_axes}
    transformer = CodeTransformer(
        num_codes=11, context_dim=3, hidden_size=16, num_layers=1, num_heads=2, **grids, **dropout
    )
    # so that what a code attends to decides about it, among many likely ones
    transformer.head.weight.data.normal_(std=0.3)
    transformer.blocks[0].to_out.weight.data.mul_(30)
    whole = ViewsToVolumePipeline(
        volume_tokenizer=volume_tokenizer.eval(),
        view_tokenizer=view_tokenizer.eval(),
        transformer=transformer.eval(),
        scheduler=AbsorbingScheduler(11),
        volume_processor=CTVolumeProcessor(size=[8, 8, 8], spacing=[4.0, 4.0, 4.0]),
        view_processor=XrayImageProcessor(size={"height": 16, "width": 16}),
    )
    whole.save_pretrained(folder)
    return folder


def generated(generate, pipeline: Path, data: Path, output_dir: Path, *flags: object) -> dict[str, np.ndarray]:
    """Voxels of each sample that the script writes."""
    common = ["--pipeline", pipeline, "--data", data, "--output_dir", output_dir, "--num_inference_steps", 2]
    generate.main([str(flag) for flag in (*common, *flags)])
    names = [line.split(",")[0] for line in (output_dir / "metadata.csv").read_text().splitlines()[1:]]
    assert sorted(names) == sorted(path.name for path in output_dir.glob("*_[0-9].nii.gz"))
    return {name: np.asarray(nibabel.load(output_dir / name).dataobj) for name in names}


def test_a_volume_depends_neither_on_the_batch_nor_on_the_number_of_samples(generate, pipeline, tmp_path):
    data = write_split(tmp_path / "data", "abc")
    flags = ["--num_volumes_per_prompt", 2, "--batch_size", 2]
    pairs = generated(generate, pipeline, data, tmp_path / "pairs", *flags)
    single = generated(generate, pipeline, data, tmp_path / "single", "--batch_size", 1)
    assert list(pairs) == [f"{name}_{sample}.nii.gz" for name in "abc" for sample in range(2)]
    assert list(single) == [f"{name}_0.nii.gz" for name in "abc"]
    for name, volume in single.items():
        np.testing.assert_allclose(pairs[name], volume, atol=1)
    assert len({volume.tobytes() for volume in pairs.values()}) == 6
    other = generated(generate, pipeline, data, tmp_path / "other", *flags, "--seed", 1)
    assert not {volume.tobytes() for volume in pairs.values()} & {volume.tobytes() for volume in other.values()}


def test_uncertainty_lies_beside_the_samples_and_is_none(generate, pipeline, tmp_path):
    data = write_split(tmp_path / "data", "abc")
    flags = ["--num_volumes_per_prompt", 3, "--batch_size", 2]
    plain = generated(generate, pipeline, data, tmp_path / "plain", *flags)
    volumes = generated(generate, pipeline, data, tmp_path / "both", *flags, "--uncertainty")
    assert list(volumes) == list(plain)
    assert sorted(path.name for path in (tmp_path / "both").glob("*_[a-z]*.nii.gz")) == [
        f"{name}_{kind}.nii.gz" for name in "abc" for kind in ("mean", "std")
    ]
    for name in "abc":
        samples = np.stack([volumes[f"{name}_{sample}.nii.gz"].astype(np.float64) for sample in range(3)])
        mean, std = (nibabel.load(tmp_path / "both" / f"{name}_{kind}.nii.gz").get_fdata() for kind in ("mean", "std"))
        np.testing.assert_allclose(mean, samples.mean(axis=0), atol=1)
        np.testing.assert_allclose(std, samples.std(axis=0, ddof=1), atol=1)
    found = find_generated(tmp_path / "both", list("abc"))
    assert {subject: len(files) for subject, files in found.items()} == dict.fromkeys("abc", 3)


def test_selection_keeps_one_of_the_candidates(generate, pipeline, tmp_path):
    data = write_split(tmp_path / "data", "ab")
    candidates = generated(generate, pipeline, data, tmp_path / "all", "--num_volumes_per_prompt", 4)
    flags = ["--num_volumes_per_prompt", 4, "--select_by_reprojection"]
    kept = generated(generate, pipeline, data, tmp_path / "kept", *flags)
    assert list(kept) == ["a_0.nii.gz", "b_0.nii.gz"]
    for name, volume in kept.items():
        assert volume.tobytes() in {candidates[f"{name[0]}_{sample}.nii.gz"].tobytes() for sample in range(4)}


def test_views_guidance_and_sampling_change_the_volumes(generate, flexible, tmp_path):
    data = write_split(tmp_path / "data", "abcd", ("frontal", "lateral"))
    results = {
        flags: generated(generate, flexible, data, tmp_path / str(number), *flags, "--num_inference_steps", 4)
        for number, flags in enumerate(
            [
                (),
                ("--views", "lateral"),
                ("--guidance_scale", 0),
                ("--guidance_scale", 3),
                *(("--sampling", sampling) for sampling in SAMPLINGS if sampling != "exact_count"),
            ]
        )
    }
    different = {tuple(volume.tobytes() for volume in volumes.values()) for volumes in results.values()}
    assert len(different) == len(results)


def test_one_view_is_enough_on_disk_where_it_is_enough_for_the_model(generate, flexible, pipeline, tmp_path):
    data = write_split(tmp_path / "data", "ab", ("lateral",))
    assert len(generated(generate, flexible, data, tmp_path / "out", "--views", "lateral")) == 2
    with pytest.raises(ValueError, match="this model takes the views"):
        generated(generate, pipeline, data, tmp_path / "refused", "--views", "lateral")
    with pytest.raises(ValueError, match=r"expected \['frontal'\] too"):
        generate.main(
            ["--pipeline", "none", "--data", str(data), "--output_dir", str(tmp_path / "none"), "--views", "frontal"]
        )
    assert {path.name for path in tmp_path.iterdir()} == {"data", "out"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--guidance_scale", "-1"], "--guidance_scale: found -1.0"),
        (["--guidance_scale", "nan"], "--guidance_scale: found nan"),
        (["--uncertainty"], "--uncertainty needs several volumes"),
        (["--select_by_reprojection"], "--select_by_reprojection needs several volumes"),
    ],
)
def test_flags_that_ask_for_nothing_possible_are_named_before_anything_is_loaded(generate, tmp_path, flags, words):
    with pytest.raises(ValueError, match=words):
        generate.main(["--pipeline", "none", "--data", "none", "--output_dir", str(tmp_path / "out"), *flags])
    assert not list(tmp_path.iterdir())


def test_an_unknown_sampling_is_refused(generate, capsys):
    with pytest.raises(SystemExit):
        generate.main(["--pipeline", "none", "--data", "none", "--output_dir", "none", "--sampling", "sorted"])
    assert "exact_count" in capsys.readouterr().err


def test_every_volume_of_every_seed_has_its_own_randomness(generate):
    draws = {
        tuple(torch.randint(2**31, (4,), generator=generate.generator_of(seed, subject, sample)).tolist())
        for seed in range(6)
        for subject in range(8)
        for sample in range(5)
    }
    assert len(draws) == 6 * 8 * 5


def test_the_same_volume_has_the_same_randomness(generate):
    draws = [torch.rand(3, generator=generate.generator_of(7, 2, 1)) for _ in range(2)]
    assert torch.equal(*draws)


@pytest.mark.parametrize(
    ("flag", "value"), [("num_inference_steps", 0), ("batch_size", 0), ("num_volumes_per_prompt", -1), ("seed", -1)]
)
def test_a_number_that_is_too_small_is_named_before_anything_is_loaded(generate, tmp_path, flag, value):
    with pytest.raises(ValueError, match=f"--{flag}: found {value}, expected at least"):
        generate.main(
            ["--pipeline", "none", "--data", "none", "--output_dir", str(tmp_path / "out"), f"--{flag}", str(value)]
        )
    assert not list(tmp_path.iterdir())


def test_views_of_one_subject_cannot_be_shuffled(generate, tmp_path):
    one_subject = write_split(tmp_path / "data", "a")
    flags = ["--pipeline", "none", "--data", str(one_subject), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(ValueError, match=r"--shuffle_views: found 1 subject in .*, expected at least 2; choose"):
        generate.main([*flags, "--shuffle_views"])
    assert not (tmp_path / "out").exists()


def test_the_command_line_in_the_help_is_whole(generate):
    command = generate.__doc__.split("\n\n")[1]
    assert [line.strip()[:2] for line in command.replace("\\\n", "").splitlines()] == ["py"]
