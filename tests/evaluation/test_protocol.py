"""How each row of a report is made, on subjects small enough to check by hand."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from hf_vq.data import PairedDataset
from hf_vq.data.radiographs import render_views
from hf_vq.evaluation.metrics import psnr_3d
from hf_vq.evaluation.protocol import Subject, baseline_volumes, read_subjects, reprojection_row, sample_rows, score_row
from hf_vq.evaluation.volumes import GridVolume

WINDOW = (-1000.0, 1000.0)
VIEWS = ("frontal", "lateral")


def _subject(name: str, seed: int, affine: np.ndarray | None = None, views: tuple[str, ...] = VIEWS) -> Subject:
    """A random blob with its own rendered views."""
    generator = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1, 1, 12)] * 3, indexing="ij")
    centre = generator.uniform(-0.4, 0.4, size=3)
    distance = sum((axis - middle) ** 2 for axis, middle in zip(axes, centre, strict=True))
    hu = np.where(distance < 0.3, 100.0 + 50 * seed, -1000.0).astype(np.float32)
    truth = GridVolume(hu, np.diag([20.0, 20.0, 20.0, 1.0]) if affine is None else affine)
    images = render_views(torch.from_numpy(hu)[None, None], truth.spacing, VIEWS)[0, :, 0].numpy()
    return Subject(name, truth, images[: len(views)], views)


@pytest.fixture
def subjects() -> list[Subject]:
    return [_subject(f"s{seed}", seed) for seed in range(4)]


def test_each_subject_is_held_against_its_own_truth(subjects: list[Subject]) -> None:
    truths = [subject.truth.hu for subject in subjects]
    right = score_row(subjects, truths, WINDOW)
    wrong = score_row(subjects, [*truths[1:], truths[0]], WINDOW)
    for own, other in zip(right, wrong, strict=True):
        assert own["psnr_3d"] == 100.0 > other["psnr_3d"]
        assert own["reprojection"] == pytest.approx(0.0, abs=1e-7)
        assert other["reprojection"] > 0.001


def test_averaging_samples_halves_independent_errors(subjects: list[Subject]) -> None:
    """Errors of +40 and -40 HU: each sample scores the same, and their mean has no error at all."""
    inside = [np.clip(subject.truth.hu, -900, 900) for subject in subjects]
    subjects = [
        Subject(one.name, one.truth.with_hu(hu), one.views, one.view_names)
        for one, hu in zip(subjects, inside, strict=True)
    ]
    rows = sample_rows(subjects, [[hu + 40, hu - 40] for hu in inside], WINDOW)
    expected = 20 * np.log10(2000 / 40)
    assert list(rows) == ["one sample", "one sample, scores averaged over 2 samples", "mean of 2 samples"]
    assert rows["one sample"][0]["psnr_3d"] == pytest.approx(expected, rel=1e-5)
    assert rows["one sample, scores averaged over 2 samples"][1]["psnr_3d"] == pytest.approx(expected, rel=1e-5)
    assert rows["mean of 2 samples"][2]["psnr_3d"] > 90


def test_the_first_sample_is_the_one_sample(subjects: list[Subject]) -> None:
    samples = [[subject.truth.hu + 100, subject.truth.hu] for subject in subjects]
    rows = sample_rows(subjects, samples, WINDOW)
    assert rows["one sample"] == score_row(subjects, [volumes[0] for volumes in samples], WINDOW)
    scores = [psnr_3d(subjects[0].truth.hu, volume, WINDOW) for volume in samples[0]]
    assert rows["one sample, scores averaged over 2 samples"][0]["psnr_3d"] == pytest.approx(np.mean(scores))


def test_a_single_sample_makes_a_single_row(subjects: list[Subject]) -> None:
    assert list(sample_rows(subjects, [[subject.truth.hu] for subject in subjects], WINDOW)) == ["one sample"]


def test_baselines_of_known_subjects(subjects: list[Subject]) -> None:
    train, validation = subjects, [_subject("v0", 7), _subject("v1", 8)]
    volumes, penalty = baseline_volumes(train, validation, subjects, WINDOW)
    assert list(volumes) == ["mean volume", "nearest subject", "ridge regression"]
    mean = np.mean([subject.truth.hu for subject in train], axis=0)
    for index, subject in enumerate(subjects):
        np.testing.assert_allclose(volumes["mean volume"][index], mean, rtol=1e-5)
        np.testing.assert_array_equal(volumes["nearest subject"][index], subject.truth.hu)
    assert penalty > 0


def test_baselines_are_clipped_to_the_window(subjects: list[Subject]) -> None:
    metal = [
        Subject(one.name, one.truth.with_hu(np.where(one.truth.hu > 0, 9000.0, -3000.0)), one.views, one.view_names)
        for one in subjects
    ]
    volumes, _ = baseline_volumes(metal, metal, metal, WINDOW)
    assert set(np.unique(volumes["nearest subject"][0])) == {-1000.0, 1000.0}


def test_baselines_come_on_the_grid_of_the_true_volume(subjects: list[Subject]) -> None:
    """A subject scanned with twice the voxels gets its baselines on its own grid."""
    coarse = subjects[0]
    fine = GridVolume(np.kron(coarse.truth.hu, np.ones((2, 2, 2), dtype=np.float32)), np.diag([10.0, 10.0, 10.0, 1.0]))
    query = Subject("fine", fine, coarse.views, coarse.view_names)
    volumes, _ = baseline_volumes(subjects, subjects, [query], WINDOW)
    assert all(row[0].shape == (24, 24, 24) for row in volumes.values())
    assert psnr_3d(fine.hu, volumes["nearest subject"][0]) > psnr_3d(fine.hu, volumes["mean volume"][0])


def test_a_data_set_is_read_as_stored(tmp_path: Path) -> None:
    """Volumes keep their HU beyond any window; full scale of any view is 1; views take the size of the first."""
    folder = tmp_path / "test"
    folder.mkdir()
    hu = np.arange(-2000, 1000, 5, dtype=np.int16).reshape(10, 10, 6)
    nib.save(nib.Nifti1Image(hu, np.diag([3.0, 4.0, 5.0, 1.0])), folder / "a.nii.gz")
    Image.fromarray(np.full((8, 6), 65535, dtype=np.uint16)).save(folder / "frontal.png")
    Image.fromarray(np.full((4, 4), 51, dtype=np.uint8)).save(folder / "lateral.png")
    (folder / "metadata.csv").write_text("file_name,frontal,lateral,subject\na.nii.gz,frontal.png,lateral.png,a\n")
    (subject,) = read_subjects(PairedDataset(tmp_path, "test"))
    np.testing.assert_array_equal(subject.truth.hu, hu.transpose(2, 1, 0))
    assert subject.truth.spacing == (5.0, 4.0, 3.0)
    assert subject.views.shape == (2, 8, 6)
    np.testing.assert_allclose(subject.views[0], 1.0)
    np.testing.assert_allclose(subject.views[1], 0.2, rtol=1e-6)
    assert subject.view_names == ("frontal", "lateral")


def test_baselines_pair_views_by_name(subjects: list[Subject]) -> None:
    """Queries and validation subjects whose views come in another order are predicted as if they did not."""

    def swapped(group: list[Subject]) -> list[Subject]:
        return [Subject(one.name, one.truth, one.views[::-1], one.view_names[::-1]) for one in group]

    validation = [_subject("v0", 7), _subject("v1", 8)]
    expected, penalty = baseline_volumes(subjects, validation, subjects, WINDOW)
    volumes, other_penalty = baseline_volumes(subjects, swapped(validation), swapped(subjects), WINDOW)
    assert penalty == other_penalty
    for name, row in expected.items():
        np.testing.assert_array_equal(volumes[name], row)


def test_splits_with_other_views_are_refused(subjects: list[Subject]) -> None:
    oblique = [Subject(one.name, one.truth, one.views, ("frontal", "oblique")) for one in subjects]
    with pytest.raises(ValueError, match=r"s0: found views \['frontal', 'oblique'\]"):
        baseline_volumes(subjects, subjects, oblique, WINDOW)


def test_views_must_be_the_same_in_all_subjects(subjects: list[Subject]) -> None:
    odd = _subject("odd", 9, views=("frontal",))
    with pytest.raises(ValueError, match=r"odd: found views \['frontal'\]"):
        baseline_volumes([*subjects, odd], subjects, subjects, WINDOW)


def test_views_that_cannot_be_rendered_have_no_reprojection(subjects: list[Subject]) -> None:
    named = [Subject(one.name, one.truth, one.views, ("oblique", "lateral")) for one in subjects]
    assert all("reprojection" not in scores for scores in score_row(named, [one.truth.hu for one in named], WINDOW))
    with pytest.raises(ValueError, match="oblique"):
        reprojection_row(named, [one.truth.hu for one in named])
