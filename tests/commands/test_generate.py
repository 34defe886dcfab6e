"""`hf-vq generate` with a small untrained pipeline: what a volume depends on, one subject, checks of the flags."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from hf_vq import ViewsToVolumePipeline
from hf_vq.commands.generate import generator_of, main
from hf_vq.evaluation.volumes import find_generated
from hf_vq.schedulers.checks import SAMPLINGS


def generated(pipeline: Path, data: Path, output_dir: Path, *flags: object) -> dict[str, np.ndarray]:
    """Voxels of each sample that the command writes."""
    common = ["--pipeline", pipeline, "--data", data, "--output_dir", output_dir, "--num_inference_steps", 2]
    main([str(flag) for flag in (*common, *flags)])
    names = [line.split(",")[0] for line in (output_dir / "metadata.csv").read_text().splitlines()[1:]]
    assert sorted(names) == sorted(path.name for path in output_dir.glob("*_[0-9].nii.gz"))
    return {name: np.asarray(nibabel.load(output_dir / name).dataobj) for name in names}


def test_a_volume_depends_neither_on_the_batch_nor_on_the_number_of_samples(pipeline, write_split, tmp_path):
    data = write_split(tmp_path / "data", "abc")
    flags = ["--num_volumes_per_prompt", 2, "--batch_size", 2]
    pairs = generated(pipeline, data, tmp_path / "pairs", *flags)
    single = generated(pipeline, data, tmp_path / "single", "--batch_size", 1)
    assert list(pairs) == [f"{name}_{sample}.nii.gz" for name in "abc" for sample in range(2)]
    assert list(single) == [f"{name}_0.nii.gz" for name in "abc"]
    for name, volume in single.items():
        np.testing.assert_allclose(pairs[name], volume, atol=1)
    assert len({volume.tobytes() for volume in pairs.values()}) == 6
    other = generated(pipeline, data, tmp_path / "other", *flags, "--seed", 1)
    assert not {volume.tobytes() for volume in pairs.values()} & {volume.tobytes() for volume in other.values()}


def test_uncertainty_lies_beside_the_samples_and_is_none(pipeline, write_split, tmp_path):
    data = write_split(tmp_path / "data", "abc")
    flags = ["--num_volumes_per_prompt", 3, "--batch_size", 2]
    plain = generated(pipeline, data, tmp_path / "plain", *flags)
    volumes = generated(pipeline, data, tmp_path / "both", *flags, "--uncertainty")
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


def test_selection_keeps_one_of_the_candidates(pipeline, write_split, tmp_path):
    data = write_split(tmp_path / "data", "ab")
    candidates = generated(pipeline, data, tmp_path / "all", "--num_volumes_per_prompt", 4)
    flags = ["--num_volumes_per_prompt", 4, "--select_by_reprojection"]
    kept = generated(pipeline, data, tmp_path / "kept", *flags)
    assert list(kept) == ["a_0.nii.gz", "b_0.nii.gz"]
    for name, volume in kept.items():
        assert volume.tobytes() in {candidates[f"{name[0]}_{sample}.nii.gz"].tobytes() for sample in range(4)}


def test_views_guidance_and_sampling_change_the_volumes(flexible, write_split, tmp_path):
    data = write_split(tmp_path / "data", "abcd", ("frontal", "lateral"))
    results = {
        flags: generated(flexible, data, tmp_path / str(number), *flags, "--num_inference_steps", 4)
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


def test_one_view_is_enough_on_disk_where_it_is_enough_for_the_model(flexible, pipeline, write_split, tmp_path):
    data = write_split(tmp_path / "data", "ab", ("lateral",))
    assert len(generated(flexible, data, tmp_path / "out", "--views", "lateral")) == 2
    with pytest.raises(ValueError, match="this model takes the views"):
        generated(pipeline, data, tmp_path / "refused", "--views", "lateral")
    with pytest.raises(ValueError, match=r"expected \['frontal'\] too"):
        main(["--pipeline", "none", "--data", str(data), "--output_dir", str(tmp_path / "none"), "--views", "frontal"])
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".lock"} == {"data", "out"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--guidance_scale", "-1"], "--guidance_scale: found -1.0"),
        (["--guidance_scale", "nan"], "--guidance_scale: found nan"),
        (["--uncertainty"], "--uncertainty needs several volumes"),
        (["--select_by_reprojection"], "--select_by_reprojection needs several volumes"),
    ],
)
def test_flags_that_ask_for_nothing_possible_are_named_before_anything_is_loaded(tmp_path, flags, words):
    with pytest.raises(ValueError, match=words):
        main(["--pipeline", "none", "--data", "none", "--output_dir", str(tmp_path / "out"), *flags])
    assert not list(tmp_path.iterdir())


def test_an_unknown_sampling_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--pipeline", "none", "--data", "none", "--output_dir", "none", "--sampling", "sorted"])
    assert "exact_count" in capsys.readouterr().err


def test_every_volume_of_every_seed_has_its_own_randomness():
    draws = {
        tuple(torch.randint(2**31, (4,), generator=generator_of(seed, subject, sample)).tolist())
        for seed in range(6)
        for subject in range(8)
        for sample in range(5)
    }
    assert len(draws) == 6 * 8 * 5


def test_the_same_volume_has_the_same_randomness():
    draws = [torch.rand(3, generator=generator_of(7, 2, 1)) for _ in range(2)]
    assert torch.equal(*draws)


@pytest.mark.parametrize(
    ("flag", "value"), [("num_inference_steps", 0), ("batch_size", 0), ("num_volumes_per_prompt", -1), ("seed", -1)]
)
def test_a_number_that_is_too_small_is_named_before_anything_is_loaded(tmp_path, flag, value):
    with pytest.raises(ValueError, match=f"--{flag}: found {value}, expected at least"):
        main(["--pipeline", "none", "--data", "none", "--output_dir", str(tmp_path / "out"), f"--{flag}", str(value)])
    assert not list(tmp_path.iterdir())


def test_views_of_one_subject_cannot_be_shuffled(write_split, tmp_path):
    one_subject = write_split(tmp_path / "data", "a")
    flags = ["--pipeline", "none", "--data", str(one_subject), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(ValueError, match=r"--shuffle_views: found 1 subject in .*, expected at least 2; choose"):
        main([*flags, "--shuffle_views"])
    assert not (tmp_path / "out").exists()


def draw(folder: Path, name: str, seed: int) -> Path:
    """A grey image file."""
    pixels = np.random.default_rng(seed).integers(0, 255, (16, 16), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / name)
    return folder / name


def generate_one(pipeline: Path, output: Path, *flags: object) -> None:
    """Runs the form for one subject."""
    main([str(flag) for flag in ("--pipeline", pipeline, "--output", output, "--num_inference_steps", 2, *flags)])


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


def test_one_subject_gets_the_volumes_of_calls_with_the_following_seeds(flexible, tmp_path, capsys):
    images = {view: draw(tmp_path, f"{view}.png", seed) for seed, view in enumerate(("frontal", "lateral"))}
    files = [f"{view}={path}" for view, path in images.items()]
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    pipeline = ViewsToVolumePipeline.from_pretrained(flexible)
    calls = [pipeline(images, num_inference_steps=2, generator=generator).volumes[0] for generator in generators]
    expected = [np.asarray(volume.dataobj) for volume in calls]
    generate_one(flexible, tmp_path / "ct.nii.gz", "--views", *files, "--num_volumes_per_prompt", 2, "--uncertainty")
    names = [f"ct_{kind}.nii.gz" for kind in ("0", "1", "mean", "std")]
    assert sorted(path.name for path in tmp_path.glob("*.nii.gz")) == names
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == [str(tmp_path / n) for n in names]
    for sample in range(2):
        np.testing.assert_array_equal(voxels(tmp_path / f"ct_{sample}.nii.gz"), expected[sample])
    samples = np.stack([volume.astype(np.float64) for volume in expected])
    np.testing.assert_allclose(voxels(tmp_path / "ct_mean.nii.gz"), samples.mean(axis=0), atol=1)
    np.testing.assert_allclose(voxels(tmp_path / "ct_std.nii.gz"), samples.std(axis=0, ddof=1), atol=1)
    generate_one(flexible, tmp_path / "alone.nii", "--views", *files)
    np.testing.assert_array_equal(voxels(tmp_path / "alone.nii"), expected[0])


def test_one_subject_may_lack_a_view_where_the_model_allows_it(flexible, tmp_path):
    frontal = draw(tmp_path, "frontal.png", 0)
    generate_one(flexible, tmp_path / "ct.nii.gz", "--views", f"frontal={frontal}")
    image = nibabel.load(tmp_path / "ct.nii.gz")
    assert image.shape == (12, 12, 12)
    np.testing.assert_allclose(np.diag(image.affine), [4, 4, 4, 1])


def test_selection_of_one_subject_follows_the_rays(pipeline, tmp_path):
    views = ["--views", f"frontal={draw(tmp_path, 'frontal.png', 0)}"]
    many = [*views, "--num_volumes_per_prompt", 4]
    generate_one(pipeline, tmp_path / "all.nii.gz", *many)
    candidates = {voxels(tmp_path / f"all_{sample}.nii.gz").tobytes() for sample in range(4)}
    generate_one(pipeline, tmp_path / "kept.nii.gz", *many, "--select_by_reprojection")
    generate_one(pipeline, tmp_path / "cone.nii.gz", *many, "--select_by_reprojection", "--cone_beam", 500, 400)
    for name in ("kept", "cone"):
        assert voxels(tmp_path / f"{name}.nii.gz").tobytes() in candidates
    with pytest.raises(ValueError, match="source_isocentre_distance: found 10"):
        generate_one(pipeline, tmp_path / "in.nii", *many, "--select_by_reprojection", "--cone_beam", 500, 10)


def test_the_class_of_one_subject_goes_by_name_or_number(labelled, tmp_path):
    views = ["--views", f"frontal={draw(tmp_path, 'frontal.png', 0)}"]
    for label in ("small", "large", "1"):
        generate_one(labelled, tmp_path / f"{label}.nii", *views, "--class_label", label)
    small, large, one = (voxels(tmp_path / f"{label}.nii").tobytes() for label in ("small", "large", "1"))
    assert large == one != small
    with pytest.raises(ValueError, match=r"class_labels \['huge'\] are unknown"):
        generate_one(labelled, tmp_path / "huge.nii", *views, "--class_label", "huge")


def test_nothing_is_replaced_unasked(pipeline, tmp_path):
    views = ["--views", f"frontal={draw(tmp_path, 'frontal.png', 0)}"]
    (tmp_path / "ct.nii.gz").write_text("precious")
    with pytest.raises(ValueError, match=r"ct\.nii\.gz: found a file, expected a new name"):
        generate_one(pipeline, tmp_path / "ct.nii.gz", *views)
    assert (tmp_path / "ct.nii.gz").read_text() == "precious"
    generate_one(pipeline, tmp_path / "ct.nii.gz", *views, "--overwrite")
    assert voxels(tmp_path / "ct.nii.gz").shape == (12, 12, 12)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "found none of the flags that say for whom"),
        (["--data", "cohort"], r"found \['--data'\], expected"),
        (["--output", "ct.nii"], r"found \['--output'\], expected"),
        (["--views", "a.png", "b.png", "--output", "ct.nii"], r"--views: found a\.png b\.png, expected NAME=FILE"),
        (["--views", "frontal=a.png"], r"found \['--views NAME=FILE'\], expected"),
        (["--views", "frontal=a.png", "--data", "cohort", "--output_dir", "out"], "give one of the two pairs"),
        (["--views", "frontal=a.png", "lateral", "--output", "ct.nii"], "expected NAME=FILE for each"),
        (["--views", "frontal=a.png", "frontal=b.png", "--output", "ct.nii"], "every name once"),
        (["--views", "frontal=", "--output", "ct.nii"], "--views: found frontal=, expected NAME=FILE"),
        (
            ["--views", "frontal=a.png", "--output", "ct.png"],
            r"--output: found ct\.png, expected a name with \.nii",
        ),
        (["--views", "frontal=no.png", "--output", "ct.nii"], "--views frontal=no.png: found no such file"),
        (["--views", "frontal=a.png", "--output", "ct.nii", "--shuffle_views"], "--shuffle_views: found it beside"),
        (["--data", "cohort", "--output_dir", "out", "--class_label", "1"], "--class_label: found it beside --data"),
    ],
)
def test_the_two_forms_are_told_apart_before_anything_is_loaded(tmp_path, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        main(["--pipeline", "none", *flags])
    assert not list(tmp_path.iterdir())


def test_a_view_that_the_model_does_not_know_is_named(pipeline, tmp_path):
    with pytest.raises(ValueError, match=r"this model takes the views \['frontal'\]; unknown: \['oblique'\]"):
        generate_one(pipeline, tmp_path / "ct.nii", "--views", f"oblique={draw(tmp_path, 'a.png', 0)}")
    assert not (tmp_path / "ct.nii").exists()
