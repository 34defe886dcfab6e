"""The baselines' predictions for subjects small enough to check by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hf_vq.evaluation import baseline_volumes, baselines
from hf_vq.evaluation.baseline_volumes import BaselineVolumes
from hf_vq.evaluation.metrics import psnr_3d
from hf_vq.evaluation.protocol import Subject
from hf_vq.evaluation.volumes import GridVolume
from hf_vq.processors.radiographs import render_views

WINDOW = (-1000.0, 1000.0)
VIEWS = ("frontal", "lateral")


def _subject(name: str, seed: int, views: tuple[str, ...] = VIEWS) -> Subject:
    """A random blob with its own rendered views."""
    generator = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1, 1, 12)] * 3, indexing="ij")
    centre = generator.uniform(-0.4, 0.4, size=3)
    distance = sum((axis - middle) ** 2 for axis, middle in zip(axes, centre, strict=True))
    hu = np.where(distance < 0.3, 100.0 + 50 * seed, -1000.0).astype(np.float32)
    truth = GridVolume(hu, np.diag([20.0, 20.0, 20.0, 1.0]))
    images = render_views(torch.from_numpy(hu)[None, None], truth.spacing, VIEWS)[0, :, 0].numpy()
    return Subject(name, truth, images[: len(views)], views)


@pytest.fixture
def subjects() -> list[Subject]:
    return [_subject(f"s{seed}", seed) for seed in range(4)]


def _swapped(group: list[Subject]) -> list[Subject]:
    return [Subject(one.name, one.truth, one.views[::-1], one.view_names[::-1]) for one in group]


def test_baselines_of_known_subjects(subjects: list[Subject], tmp_path: Path) -> None:
    made = BaselineVolumes(subjects, [_subject("v0", 7), _subject("v1", 8)], subjects, WINDOW, tmp_path)
    mean = np.mean([subject.truth.hu for subject in subjects], axis=0)
    for index, subject in enumerate(subjects):
        volumes = made.volumes(index, subject)
        assert list(volumes) == ["mean volume", "nearest subject", "ridge regression"]
        np.testing.assert_allclose(volumes["mean volume"], mean, rtol=1e-5)
        np.testing.assert_array_equal(volumes["nearest subject"], subject.truth.hu)
    assert made.penalty > 0


def test_ridge_from_files_is_ridge_from_memory(subjects: list[Subject], tmp_path: Path) -> None:
    validation, queries = [_subject("v0", 7), _subject("v1", 8)], [_subject("q0", 20), _subject("q1", 21)]
    made = BaselineVolumes(subjects, validation, queries, WINDOW, tmp_path)
    views = [np.stack([one.views for one in group]) for group in (subjects, validation)]
    volumes = [np.stack([one.truth.hu for one in group]) for group in (subjects, validation)]
    ridge = baselines.fit_ridge(views[0], volumes[0], views[1], volumes[1])
    expected = ridge.predict(np.stack([one.views for one in queries]))
    for index, query in enumerate(queries):
        np.testing.assert_allclose(made.volumes(index, query)["ridge regression"], expected[index], atol=1e-3)


def test_each_subject_is_read_once_and_forgotten(subjects: list[Subject], tmp_path: Path) -> None:
    reads: list[int] = []

    class Reader(list):
        def __getitem__(self, index: int) -> Subject:
            reads.append(index)
            return super().__getitem__(index)

    BaselineVolumes(Reader(subjects), subjects, subjects, WINDOW, tmp_path)
    assert sorted(reads) == [0, 0, 1, 2, 3]  # the first one also tells grid and views


def test_baselines_are_clipped_to_the_window(subjects: list[Subject], tmp_path: Path) -> None:
    metal = [
        Subject(one.name, one.truth.with_hu(np.where(one.truth.hu > 0, 9000.0, -3000.0)), one.views, one.view_names)
        for one in subjects
    ]
    made = BaselineVolumes(metal, metal, metal, WINDOW, tmp_path)
    assert set(np.unique(made.volumes(0, metal[0])["nearest subject"])) == {-1000.0, 1000.0}


def test_baselines_come_on_the_grid_of_the_true_volume(subjects: list[Subject], tmp_path: Path) -> None:
    """A subject scanned with twice the voxels gets its baselines on its own grid."""
    coarse = subjects[0]
    fine = GridVolume(np.kron(coarse.truth.hu, np.ones((2, 2, 2), dtype=np.float32)), np.diag([10.0, 10.0, 10.0, 1.0]))
    query = Subject("fine", fine, coarse.views, coarse.view_names)
    volumes = BaselineVolumes(subjects, subjects, [query], WINDOW, tmp_path).volumes(0, query)
    assert all(volume.shape == (24, 24, 24) for volume in volumes.values())
    assert psnr_3d(fine.hu, volumes["nearest subject"]) > psnr_3d(fine.hu, volumes["mean volume"])


def test_baselines_pair_views_by_name(subjects: list[Subject], tmp_path: Path) -> None:
    """Queries and validation subjects whose views come in another order are predicted as if they did not."""
    validation = [_subject("v0", 7), _subject("v1", 8)]
    (tmp_path / "other").mkdir()
    expected = BaselineVolumes(subjects, validation, subjects, WINDOW, tmp_path)
    made = BaselineVolumes(subjects, _swapped(validation), _swapped(subjects), WINDOW, tmp_path / "other")
    assert made.penalty == expected.penalty
    for name, volume in expected.volumes(0, subjects[0]).items():
        np.testing.assert_array_equal(made.volumes(0, subjects[0])[name], volume)


def test_views_must_be_the_same_in_all_subjects(subjects: list[Subject], tmp_path: Path) -> None:
    oblique = [Subject(one.name, one.truth, one.views, ("frontal", "oblique")) for one in subjects]
    with pytest.raises(ValueError, match=r"s0: found views \['frontal', 'oblique'\]"):
        BaselineVolumes(subjects, subjects, oblique, WINDOW, tmp_path)
    with pytest.raises(ValueError, match=r"odd: found views \['frontal'\]"):
        BaselineVolumes([*subjects, _subject("odd", 9, views=("frontal",))], subjects, subjects, WINDOW, tmp_path)


def test_a_disk_that_is_too_small_is_named_before_anything_is_read(
    subjects: list[Subject], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 volumes of 12^3 voxels of 4 bytes need 82 944 bytes."""
    usage = baseline_volumes.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(baseline_volumes.shutil, "disk_usage", lambda _: usage._replace(free=82_943))
    with pytest.raises(ValueError, match="--scratch_dir"):
        BaselineVolumes(subjects, subjects, subjects, WINDOW, tmp_path)
    monkeypatch.setattr(baseline_volumes.shutil, "disk_usage", lambda _: usage._replace(free=82_944))
    BaselineVolumes(subjects, subjects, subjects, WINDOW, tmp_path)
