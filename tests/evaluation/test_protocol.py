"""How each row of a report is made, on subjects small enough to check by hand."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from hf_vq.data import PairedDataset
from hf_vq.evaluation.metrics import psnr_3d
from hf_vq.evaluation.protocol import Scorer, Subject, SubjectSet, score_subjects
from hf_vq.evaluation.volumes import GridVolume
from hf_vq.processors.radiographs import BeamGeometry, render_views

WINDOW = (-1000.0, 1000.0)
VIEWS = ("frontal", "lateral")
SCORER = Scorer(WINDOW)


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
    for subject, own, other in zip(subjects, truths, [*truths[1:], truths[0]], strict=True):
        right, wrong = SCORER.scores(subject, own), SCORER.scores(subject, other)
        assert right["psnr_3d"] == 100.0 > wrong["psnr_3d"]
        assert right["reprojection"] == pytest.approx(0.0, abs=1e-7)
        assert wrong["reprojection"] > 0.001


def test_averaging_samples_halves_independent_errors(subjects: list[Subject]) -> None:
    """Errors of +40 and -40 HU: each sample scores the same, and their mean has no error at all."""
    hu = np.clip(subjects[0].truth.hu, -900, 900)
    subject = Subject("a", subjects[0].truth.with_hu(hu), subjects[0].views, VIEWS)
    rows = SCORER.sample_rows(subject, [hu + 40, hu - 40])
    expected = 20 * np.log10(2000 / 40)
    assert list(rows) == ["one sample", "one sample, scores averaged over 2 samples", "mean of 2 samples"]
    assert rows["one sample"]["psnr_3d"] == pytest.approx(expected, rel=1e-5)
    assert rows["one sample, scores averaged over 2 samples"]["psnr_3d"] == pytest.approx(expected, rel=1e-5)
    assert rows["mean of 2 samples"]["psnr_3d"] > 90


def test_the_first_sample_is_the_one_sample(subjects: list[Subject]) -> None:
    subject = subjects[0]
    samples = [subject.truth.hu + 100, subject.truth.hu]
    rows = SCORER.sample_rows(subject, samples)
    assert rows["one sample"] == SCORER.scores(subject, samples[0])
    scores = [psnr_3d(subject.truth.hu, volume, WINDOW) for volume in samples]
    assert rows["one sample, scores averaged over 2 samples"]["psnr_3d"] == pytest.approx(np.mean(scores))


def test_a_single_sample_makes_a_single_row(subjects: list[Subject]) -> None:
    assert list(SCORER.sample_rows(subjects[0], [subjects[0].truth.hu])) == ["one sample"]


@pytest.mark.parametrize("num_workers", [1, 3])
def test_the_table_has_every_subject_in_its_place_whatever_the_workers(
    subjects: list[Subject], num_workers: int
) -> None:
    def place(index: int, subject: Subject) -> dict[str, dict[str, float]]:
        return {"place": {"psnr_3d": float(index)}, "brightest": {"psnr_3d": float(subject.truth.hu.max())}}

    def other(index: int, subject: Subject) -> dict[str, dict[str, float]]:
        return {"other": {"mse": 0.0}}

    table = score_subjects(subjects, [place, other], num_workers)
    assert list(table) == ["place", "brightest", "other"]
    assert [scores["psnr_3d"] for scores in table["place"]] == [0, 1, 2, 3]
    assert [scores["psnr_3d"] for scores in table["brightest"]] == [100, 150, 200, 250]


def test_errors_of_a_subject_end_the_scoring(subjects: list[Subject]) -> None:
    def fail(index: int, subject: Subject) -> dict[str, dict[str, float]]:
        raise ValueError(f"{subject.name} cannot be scored")

    with pytest.raises(ValueError, match=r"s\d cannot be scored"):
        score_subjects(subjects, [fail], 2)


def test_a_data_set_is_read_as_stored(tmp_path: Path) -> None:
    """Volumes keep their HU beyond any window; full scale of any view is 1; views take the size of the first."""
    folder = tmp_path / "test"
    folder.mkdir()
    hu = np.arange(-2000, 1000, 5, dtype=np.int16).reshape(10, 10, 6)
    nib.save(nib.Nifti1Image(hu, np.diag([3.0, 4.0, 5.0, 1.0])), folder / "a.nii.gz")
    Image.fromarray(np.full((8, 6), 65535, dtype=np.uint16)).save(folder / "frontal.png")
    Image.fromarray(np.full((4, 4), 51, dtype=np.uint8)).save(folder / "lateral.png")
    (folder / "metadata.csv").write_text("file_name,frontal,lateral,subject\na.nii.gz,frontal.png,lateral.png,a\n")
    (subject,) = SubjectSet(PairedDataset(tmp_path, "test"))
    np.testing.assert_array_equal(subject.truth.hu, hu.transpose(2, 1, 0))
    assert subject.truth.spacing == (5.0, 4.0, 3.0)
    assert subject.views.shape == (2, 8, 6)
    np.testing.assert_allclose(subject.views[0], 1.0)
    np.testing.assert_allclose(subject.views[1], 0.2, rtol=1e-6)
    assert subject.view_names == ("frontal", "lateral")


def test_some_subjects_of_a_data_set(tmp_path: Path) -> None:
    """In the data set's order, each read when it is asked for: a broken one hurts only where it is wanted."""
    folder = tmp_path / "test"
    folder.mkdir()
    lines = []
    for number, name in enumerate("abc"):
        hu = np.full((4, 4, 4), number, dtype=np.int16)
        nib.save(nib.Nifti1Image(hu, np.eye(4)), folder / f"{name}.nii.gz")
        Image.fromarray(np.full((4, 4), number, dtype=np.uint8)).save(folder / f"{name}.png")
        lines.append(f"{name}.nii.gz,{name}.png,{name}")
    (folder / "metadata.csv").write_text("\n".join(["file_name,frontal,subject", *lines]) + "\n")
    (folder / "b.nii.gz").write_bytes(b"broken")
    every = SubjectSet(PairedDataset(tmp_path, "test"))
    chosen = every.subset(["c", "a"])
    assert (every.names, chosen.names, len(chosen)) == (["a", "b", "c"], ["a", "c"], 2)
    assert [float(subject.truth.hu.max()) for subject in chosen] == [0.0, 2.0]
    assert [subject.name for subject in chosen[1:]] == ["c"]
    np.testing.assert_allclose(chosen[1].views, 2 / 255, rtol=1e-6)
    with pytest.raises(ValueError, match=r"b\.nii\.gz"):
        every[1]


def test_a_data_set_without_views_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "test"
    folder.mkdir()
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), dtype=np.int16), np.eye(4)), folder / "a.nii.gz")
    (folder / "metadata.csv").write_text("file_name,subject\na.nii.gz,a\n")
    with pytest.raises(ValueError, match="no view columns"):
        SubjectSet(PairedDataset(tmp_path, "test"))


def test_views_of_a_cone_beam_are_rendered_with_that_beam() -> None:
    subject = _subject("a", 0)
    beam = BeamGeometry(1500.0, 1000.0)
    volume = torch.from_numpy(subject.truth.hu)[None, None]
    views = render_views(volume, subject.truth.spacing, VIEWS, image_size=(16, 16), beam=beam)[0, :, 0].numpy()
    taken = Subject("a", subject.truth, views, VIEWS)
    with_beam, without = (Scorer(WINDOW, one).reprojection(taken, taken.truth.hu) for one in (beam, None))
    assert with_beam["reprojection"] == pytest.approx(0.0, abs=1e-6)
    assert without["reprojection"] > 0.001


def test_views_that_cannot_be_rendered_have_no_reprojection(subjects: list[Subject]) -> None:
    named = Subject("a", subjects[0].truth, subjects[0].views, ("oblique", "lateral"))
    assert "reprojection" not in SCORER.scores(named, named.truth.hu)
    with pytest.raises(ValueError, match="oblique"):
        SCORER.reprojection(named, named.truth.hu)
