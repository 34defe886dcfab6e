"""Laws of the scores: closed forms, invariances, and how they fail."""

import math

import numpy as np
import pytest
import torch

from hf_vq.evaluation.metrics import (
    mae_hu,
    mse,
    prdc,
    psnr_3d,
    psnr_slices,
    reprojection_error,
    ssim_3d,
    ssim_slices,
    volume_scores,
)
from hf_vq.processors.radiographs import render_views

WINDOW = (-1000.0, 1000.0)


@pytest.fixture
def volume() -> np.ndarray:
    """A smooth random volume inside the window, not cubic."""
    axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in (12, 14, 16)), indexing="ij")
    phase = np.random.default_rng(0).uniform(0, 3, size=3)
    return 600 * np.sin(3 * axes[0] + phase[0]) * np.cos(4 * axes[1] + phase[1]) * np.sin(5 * axes[2] + phase[2])


def test_psnr_of_known_noise(volume: np.ndarray) -> None:
    """An error of ±20 HU in a window of 2000 HU is 20 log10(2000 / 20) = 40 dB everywhere, slices included."""
    sign = np.random.default_rng(1).choice([-1.0, 1.0], size=volume.shape)
    noisy = volume + 20 * sign
    assert psnr_3d(volume, noisy, WINDOW) == pytest.approx(40.0)
    assert psnr_slices(volume, noisy, WINDOW) == pytest.approx(40.0)
    assert mae_hu(volume, noisy, WINDOW) == pytest.approx(20.0)
    assert mse(volume, noisy, WINDOW) == pytest.approx(1e-4)


def test_psnr_follows_the_width_of_the_window(volume: np.ndarray) -> None:
    inside = np.clip(volume, -390, 390)
    difference = psnr_3d(inside, inside + 10, (-1000, 1000)) - psnr_3d(inside, inside + 10, (-400, 400))
    assert difference == pytest.approx(20 * math.log10(2000 / 800))


def test_psnr_slices_averages_slices_then_axes() -> None:
    """One wrong slice of D slices: each other slice along D counts 100 dB, those along H and W share the error."""
    true = np.zeros((8, 6, 7))
    generated = true.copy()
    generated[3] = 200.0
    along_d = (7 * 100 + 20) / 8
    along_others = 20 + 10 * math.log10(8)
    assert psnr_slices(true, generated, WINDOW) == pytest.approx((along_d + 2 * along_others) / 3)
    assert psnr_3d(true, generated, WINDOW) == pytest.approx(along_others)


def test_scores_ignore_what_lies_beyond_the_window(volume: np.ndarray) -> None:
    """Metal of 3000 or 30000 HU and air of -1024 or -3000 HU look the same in the window."""
    true, generated = volume.copy(), volume + 30
    true[0, 0, :3], true[1, 1, :3] = 1500.0, -1024.0
    other_true, other_generated = true.copy(), generated.copy()
    other_true[0, 0, :3], other_true[1, 1, :3] = 30000.0, -3000.0
    generated[2, 2, :3], other_generated[2, 2, :3] = 1200.0, 9000.0
    assert volume_scores(true, generated, WINDOW) == volume_scores(other_true, other_generated, WINDOW)


def test_equal_volumes_score_best(volume: np.ndarray) -> None:
    scores = volume_scores(volume, volume, WINDOW)
    assert scores["ssim_3d"] == pytest.approx(1.0, abs=1e-6)
    assert scores["ssim_slices"] == pytest.approx(1.0, abs=1e-6)
    assert scores["psnr_3d"] == scores["psnr_slices"] == 100.0
    assert scores["mae_hu"] == scores["mse"] == 0.0


def test_ssim_of_two_constants_is_the_luminance_term() -> None:
    """Without variance only (2 ab + C1) / (a² + b² + C1) is left, with the window mapped onto [0, 1]."""
    low, high = np.full((12, 12, 12), -500.0), np.full((12, 12, 12), 500.0)
    expected = (2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4)
    assert ssim_3d(low, high, WINDOW) == pytest.approx(expected, rel=1e-5)
    assert ssim_slices(low, high, WINDOW) == pytest.approx(expected, rel=1e-5)


def test_ssim_works_at_32_voxels_and_falls_with_noise() -> None:
    generator = np.random.default_rng(2)
    true = generator.normal(0, 300, size=(32, 32, 32))
    scores = [ssim_3d(true, true + generator.normal(0, noise, true.shape), WINDOW) for noise in (20, 100, 400)]
    assert 1 > scores[0] > scores[1] > scores[2] > -1


def test_ssim_3d_sees_disorder_along_depth_that_slices_do_not() -> None:
    """Offsets that are constant within each axial slice: axial windows find no texture there, 3D windows do."""
    generator = np.random.default_rng(3)
    true = np.zeros((16, 16, 16))
    generated = true + generator.normal(0, 200, size=(16, 1, 1))
    assert ssim_3d(true, generated, WINDOW) < ssim_slices(true, generated, WINDOW)


def test_a_wrong_subject_changes_the_score() -> None:
    generator = np.random.default_rng(4)
    subjects = generator.uniform(-900, 900, size=(3, 12, 12, 12))
    generated = subjects + generator.normal(0, 50, size=subjects.shape)
    for index in range(3):
        right = volume_scores(subjects[index], generated[index], WINDOW)
        wrong = volume_scores(subjects[index], generated[(index + 1) % 3], WINDOW)
        assert right["psnr_3d"] > wrong["psnr_3d"] + 10
        assert right["ssim_3d"] > wrong["ssim_3d"]
        assert right["mae_hu"] < wrong["mae_hu"]


@pytest.mark.parametrize(
    ("true", "generated", "window", "message"),
    [
        (np.zeros((8, 8, 8)), np.zeros((8, 8, 7)), WINDOW, "one shape"),
        (np.zeros((8, 8)), np.zeros((8, 8)), WINDOW, "one shape"),
        (np.zeros((8, 8, 8)), np.full((8, 8, 8), np.nan), WINDOW, "NaN"),
        (np.zeros((8, 8, 8)), np.zeros((8, 8, 8)), (1000.0, -1000.0), "low < high"),
        (np.zeros((8, 8, 8)), np.zeros((8, 8, 8)), (0.0, math.inf), "low < high"),
        (np.zeros((8, 12, 12)), np.zeros((8, 12, 12)), WINDOW, "needs at least"),
    ],
)
def test_bad_volumes_are_named(true: np.ndarray, generated: np.ndarray, window: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ssim_3d(true, generated, window)


def test_reprojection_of_the_volume_that_made_the_views_is_zero(volume: np.ndarray) -> None:
    spacing = (30.0, 20.0, 25.0)
    tensor = torch.from_numpy(volume).float()[None, None]
    views = render_views(tensor, spacing, ("frontal", "lateral"), image_size=(16, 16))[0, :, 0].numpy()
    assert reprojection_error(volume, spacing, views, ("frontal", "lateral")) == pytest.approx(0.0, abs=1e-7)
    assert reprojection_error(volume[::-1], spacing, views, ("frontal", "lateral")) > 1e-3


def test_reprojection_of_air_is_the_mean_of_the_views() -> None:
    views = np.random.default_rng(5).random((2, 10, 12))
    air = np.full((6, 6, 6), -1000.0)
    assert reprojection_error(air, (1, 1, 1), views, ("frontal", "lateral")) == pytest.approx(views.mean(), rel=1e-6)


def test_reprojection_needs_one_image_per_view() -> None:
    with pytest.raises(ValueError, match="one image for each"):
        reprojection_error(np.zeros((6, 6, 6)), (1, 1, 1), np.zeros((1, 8, 8)), ("frontal", "lateral"))


def test_prdc_of_a_set_with_itself() -> None:
    features = np.random.default_rng(6).normal(size=(30, 4))
    scores = prdc(features, features, nearest_k=3)
    assert scores["precision"] == scores["recall"] == scores["coverage"] == 1.0
    assert scores["density"] >= 1.0


def test_prdc_of_distant_sets_is_zero() -> None:
    features = np.random.default_rng(7).normal(size=(20, 4))
    assert set(prdc(features, features + 100, nearest_k=3).values()) == {0.0}


def test_prdc_sees_the_whole_set_at_once() -> None:
    """Generated volumes that copy one half of the real set cover that half, whatever the order of the rows."""
    generator = np.random.default_rng(8)
    first, second = generator.normal(size=(20, 3)), generator.normal(size=(20, 3)) + 50
    real = generator.permutation(np.concatenate([first, second]))
    scores = prdc(real, first, nearest_k=3)
    assert scores["coverage"] == 0.5
    assert scores["precision"] == 1.0


def test_prdc_is_silent_and_names_too_few_rows(capsys: pytest.CaptureFixture[str]) -> None:
    features = np.random.default_rng(9).normal(size=(7, 2))
    prdc(features, features, nearest_k=5)
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="nearest_k=6 with 7 real"):
        prdc(features, features, nearest_k=6)
