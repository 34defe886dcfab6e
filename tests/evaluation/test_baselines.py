"""The trivial predictors do exactly what their names say."""

from pathlib import Path

import numpy as np
import pytest

from hf_vq.evaluation import baselines
from hf_vq.evaluation.baselines import fit_ridge, mean_volume, nearest_subjects


def _linear_data(count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Volumes that are an exact affine function of the views (two views of 3 x 4 pixels, 2 x 3 x 5 voxels)."""
    coefficients = np.random.default_rng(100).normal(size=(24, 30))
    views = generator.random((count, 2, 3, 4))
    volumes = 100 + views.reshape(count, -1) @ coefficients
    return views, volumes.reshape(count, 2, 3, 5)


def test_mean_volume_is_the_mean() -> None:
    volumes = np.random.default_rng(0).normal(size=(5, 2, 3, 4)).astype(np.float32)
    expected = sum(volume.astype(np.float64) for volume in volumes) / 5
    np.testing.assert_allclose(mean_volume(volumes), expected, rtol=1e-12)


def test_every_subject_is_its_own_nearest() -> None:
    views = np.random.default_rng(1).random((6, 2, 3, 4))
    assert nearest_subjects(views, views).tolist() == list(range(6))
    assert nearest_subjects(views, views[::-1] + 1e-3).tolist() == list(range(6))[::-1]


def test_nearest_counts_the_pixels_of_all_views() -> None:
    """Subject 0 matches the first view exactly but is far in the second; subject 1 is near in both."""
    train = np.zeros((2, 2, 1, 1))
    train[0, 1], train[1] = 10.0, 1.0
    assert nearest_subjects(train, np.zeros((1, 2, 1, 1))).tolist() == [1]


def test_ridge_recovers_an_exactly_linear_map() -> None:
    generator = np.random.default_rng(2)
    train, validation, test = (_linear_data(count, generator) for count in (40, 10, 7))
    ridge = fit_ridge(*train, *validation, penalties=[1e-9, 1.0])
    assert ridge.penalty == 1e-9
    np.testing.assert_allclose(ridge.predict(test[0]), test[1], atol=1e-5)


def test_ridge_equals_its_primal_closed_form() -> None:
    """(XᵀX + penalty I)⁻¹ XᵀY with centred X and Y, the penalty a fraction of the Gram matrix's mean eigenvalue."""
    generator = np.random.default_rng(3)
    views, volumes = _linear_data(15, generator)
    volumes += generator.normal(size=volumes.shape)
    query = generator.random((4, 2, 3, 4))
    ridge = fit_ridge(views, volumes, query, np.zeros((4, 2, 3, 5)), penalties=[0.1])
    x, y = views.reshape(15, -1), volumes.reshape(15, -1)
    centred = x - x.mean(axis=0)
    penalty = 0.1 * np.trace(centred @ centred.T) / 15
    solution = np.linalg.solve(centred.T @ centred + penalty * np.eye(24), centred.T @ (y - y.mean(axis=0)))
    expected = y.mean(axis=0) + (query.reshape(4, -1) - x.mean(axis=0)) @ solution
    np.testing.assert_allclose(ridge.predict(query).reshape(4, -1), expected, rtol=1e-9)


def test_ridge_chooses_by_the_mean_squared_error_of_its_predictions() -> None:
    generator = np.random.default_rng(7)
    views, volumes = _linear_data(15, generator)
    queries, truth = _linear_data(6, generator)
    volumes += generator.normal(size=volumes.shape)
    candidates = [1e-4, 1e-2, 1.0]
    errors = fit_ridge(views, volumes, queries, truth, candidates).validation_mse
    for penalty in candidates:
        predicted = fit_ridge(views, volumes, queries, truth, [penalty]).predict(queries)
        assert errors[penalty] == pytest.approx(np.mean(np.square(predicted - truth)), rel=1e-9)


def test_blocks_and_files_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of two voxels or pixels, volumes and predictions in memory-mapped files."""
    generator = np.random.default_rng(8)
    train, validation, test = (_linear_data(count, generator) for count in (12, 5, 3))
    expected = fit_ridge(*train, *validation)
    nearest = nearest_subjects(train[0], test[0])
    files = {}
    for name, volumes in (("train", train[1]), ("validation", validation[1]), ("out", np.empty_like(test[1]))):
        files[name] = np.lib.format.open_memmap(tmp_path / f"{name}.npy", mode="w+", dtype="f8", shape=volumes.shape)
        files[name][:] = volumes
    monkeypatch.setattr(baselines, "BLOCK_ELEMENTS", 30)
    ridge = fit_ridge(train[0], files["train"], validation[0], files["validation"])
    assert ridge.penalty == expected.penalty
    assert ridge.predict(test[0], out=files["out"]) is files["out"]
    np.testing.assert_allclose(files["out"], expected.predict(test[0]), rtol=1e-9)
    np.testing.assert_allclose(mean_volume(files["train"]), mean_volume(train[1]), rtol=1e-12)
    np.testing.assert_array_equal(nearest_subjects(train[0], test[0]), nearest)


def test_ridge_with_a_huge_penalty_is_the_mean_volume() -> None:
    views, volumes = _linear_data(9, np.random.default_rng(4))
    ridge = fit_ridge(views, volumes, views, volumes, penalties=[1e12])
    np.testing.assert_allclose(ridge.predict(views[:2]), np.stack([mean_volume(volumes)] * 2), rtol=1e-6)


def test_ridge_chooses_the_penalty_on_the_validation_split() -> None:
    """Targets that are pure noise ask for the largest penalty, exact ones for the smallest."""
    generator = np.random.default_rng(5)
    views, volumes = _linear_data(20, generator)
    noise = generator.normal(size=(2, *volumes.shape))
    candidates = [1e-9, 1e-3, 1.0, 1e3]
    assert fit_ridge(views, noise[0], views, noise[1], candidates).penalty == 1e3
    exact = fit_ridge(views, volumes, *_linear_data(8, generator), candidates)
    assert exact.penalty == min(exact.validation_mse, key=exact.validation_mse.__getitem__)


def test_ridge_of_equal_views_predicts_the_mean() -> None:
    views, volumes = np.ones((4, 1, 2, 2)), np.random.default_rng(6).normal(size=(4, 2, 2, 2))
    ridge = fit_ridge(views, volumes, views, volumes)
    np.testing.assert_allclose(ridge.predict(views[:1])[0], mean_volume(volumes), atol=1e-12)


def test_bad_stacks_are_named() -> None:
    views, volumes = np.zeros((3, 2, 4, 4)), np.zeros((3, 2, 2, 2))
    with pytest.raises(ValueError, match="train split has views of 3 subjects but 2 volumes"):
        fit_ridge(views, volumes[:2], views, volumes)
    with pytest.raises(ValueError, match="as the training views"):
        nearest_subjects(views, np.zeros((1, 2, 4, 5)))
    with pytest.raises(ValueError, match="at least one subject"):
        mean_volume(np.zeros((0, 2, 2, 2)))
    with pytest.raises(ValueError, match="above 0"):
        fit_ridge(views, volumes, views, volumes, penalties=[0.0])
    with pytest.raises(ValueError, match="NaN"):
        mean_volume(np.full((1, 2, 2, 2), np.nan))
