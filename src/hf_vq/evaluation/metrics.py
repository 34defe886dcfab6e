"""Scores of generated CT volumes against the true ones.

Every function compares two volumes of the same grid in Hounsfield units (HU). Both are first clipped to the HU window,
which is written beside the numbers: a score means nothing without it. The true volume is always the scan itself, never
its reconstruction by a tokenizer.
"""

import contextlib
import io
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from ..processors.radiographs import BeamGeometry, render_views
from .optional import import_extra

FloatArray: TypeAlias = npt.NDArray[np.floating[Any]]
Window: TypeAlias = tuple[float, float]
_Unit: TypeAlias = npt.NDArray[np.float64]

DEFAULT_WINDOW: Window = (-1000.0, 1000.0)
PSNR_CEILING_DB = 100.0
SSIM_SIGMA = 1.5
SSIM_WINDOW_SIZE = 11
DEFAULT_NEAREST_K = 5
FEWEST_FOR_DISTRIBUTIONS = 200
"""Subjects below which `prdc` is computed but flagged: neighbourhoods of so few say little about a distribution."""


def psnr_3d(true_hu: npt.ArrayLike, generated_hu: npt.ArrayLike, window: Window = DEFAULT_WINDOW) -> float:
    """Peak signal-to-noise ratio over all voxels at once: `10 log10(width² / MSE)`, data range = window width.

    Args:
        true_hu: true volume, shape (D, H, W), in HU.
        generated_hu: volume to be judged, same shape, in HU.
        window: lowest and highest HU; both volumes are clipped to it.

    Returns:
        Decibels, at most 100 (the value of two equal volumes), so that means stay finite.

    Raises:
        ValueError: unequal shapes, not three axes, voxels that are not finite, or an empty window.
    """
    return _psnr_3d(*_unit_pair(true_hu, generated_hu, window))


def psnr_slices(true_hu: npt.ArrayLike, generated_hu: npt.ArrayLike, window: Window = DEFAULT_WINDOW) -> float:
    """Slice-averaged PSNR as X2CT-GAN reports it (Ying et al., CVPR 2019).

    For each of the three axes, the PSNR of every slice perpendicular to it (data range = window width; a slice without
    any error counts 100 dB) is averaged over the slices; the result is the mean of the three axes. Empty slices of air
    raise it, so it isn't comparable with `psnr_3d`.

    Args:
        true_hu: true volume, shape (D, H, W), in HU.
        generated_hu: volume to be judged, same shape, in HU.
        window: lowest and highest HU; both volumes are clipped to it.

    Returns:
        Decibels, at most 100.

    Raises:
        ValueError: as `psnr_3d`.
    """
    return _psnr_slices(*_unit_pair(true_hu, generated_hu, window))


def ssim_3d(true_hu: npt.ArrayLike, generated_hu: npt.ArrayLike, window: Window = DEFAULT_WINDOW) -> float:
    """Structural similarity with a three-dimensional Gaussian window (Wang et al. 2004).

    The HU window is mapped onto [0, 1] and the data range is its width. Window of 11 x 11 x 11 voxels, sigma 1.5
    voxels, K1 = 0.01, K2 = 0.03, averaged over the voxels whose window lies inside the volume, so without a border of
    5 voxels (scikit-image, with the population covariance).

    Args:
        true_hu: true volume, shape (D, H, W), at least 11 voxels along each axis, in HU.
        generated_hu: volume to be judged, same shape, in HU.
        window: lowest and highest HU; both volumes are clipped to it.

    Returns:
        Similarity, 1 for equal volumes.

    Raises:
        ValueError: as `psnr_3d`, or an axis shorter than 11 voxels.
        ImportError: scikit-image isn't installed.
    """
    return _ssim_3d(*_unit_pair(true_hu, generated_hu, window))


def ssim_slices(true_hu: npt.ArrayLike, generated_hu: npt.ArrayLike, window: Window = DEFAULT_WINDOW) -> float:
    """Slice-averaged structural similarity: per axis the mean over its slices, then the mean of the three axes.

    Each slice is compared with an 11 x 11 Gaussian window (sigma 1.5 pixels); constants and data range as `ssim_3d`.

    Args:
        true_hu: true volume, shape (D, H, W), at least 11 voxels along each axis, in HU.
        generated_hu: volume to be judged, same shape, in HU.
        window: lowest and highest HU; both volumes are clipped to it.

    Returns:
        Similarity, 1 for equal volumes.

    Raises:
        ValueError: as `ssim_3d`.
        ImportError: scikit-image isn't installed.
    """
    return _ssim_slices(*_unit_pair(true_hu, generated_hu, window))


def mae_hu(true_hu: npt.ArrayLike, generated_hu: npt.ArrayLike, window: Window = DEFAULT_WINDOW) -> float:
    """Mean absolute error in HU after clipping to the window.

    Args:
        true_hu: true volume, shape (D, H, W), in HU.
        generated_hu: volume to be judged, same shape, in HU.
        window: lowest and highest HU; both volumes are clipped to it.

    Returns:
        Error in HU.

    Raises:
        ValueError: as `psnr_3d`.
    """
    return _mean_absolute_error(*_unit_pair(true_hu, generated_hu, window)) * (window[1] - window[0])


def mse(true_hu: npt.ArrayLike, generated_hu: npt.ArrayLike, window: Window = DEFAULT_WINDOW) -> float:
    """Mean squared error in units of the window (clipped and mapped onto [0, 1]), so `psnr_3d = -10 log10(mse)`.

    Args:
        true_hu: true volume, shape (D, H, W), in HU.
        generated_hu: volume to be judged, same shape, in HU.
        window: lowest and highest HU; both volumes are clipped to it.

    Returns:
        Error without unit, between 0 and 1.

    Raises:
        ValueError: as `psnr_3d`.
    """
    return _mean_squared_error(*_unit_pair(true_hu, generated_hu, window))


def volume_scores(
    true_hu: npt.ArrayLike, generated_hu: npt.ArrayLike, window: Window = DEFAULT_WINDOW
) -> dict[str, float]:
    """All scores of one volume against the true one, by name.

    Args:
        true_hu: true volume, shape (D, H, W), in HU.
        generated_hu: volume to be judged, same shape, in HU.
        window: lowest and highest HU; both volumes are clipped to it.

    Returns:
        `psnr_3d`, `psnr_slices` (dB), `ssim_3d`, `ssim_slices`, `mae_hu` (HU) and `mse` (window units).

    Raises:
        ValueError: as `ssim_3d`.
        ImportError: scikit-image isn't installed.
    """
    pair = _unit_pair(true_hu, generated_hu, window)
    return {
        "psnr_3d": _psnr_3d(*pair),
        "psnr_slices": _psnr_slices(*pair),
        "ssim_3d": _ssim_3d(*pair),
        "ssim_slices": _ssim_slices(*pair),
        "mae_hu": _mean_absolute_error(*pair) * (window[1] - window[0]),
        "mse": _mean_squared_error(*pair),
    }


def reprojection_error(
    generated_hu: npt.ArrayLike,
    spacing: Sequence[float],
    views: npt.ArrayLike,
    view_names: Sequence[str],
    beam: BeamGeometry | None = None,
) -> float:
    """Mean absolute difference between the input views and the same views rendered from the generated volume.

    Args:
        generated_hu: volume to be judged, shape (D, H, W), in HU; not clipped.
        spacing: voxel size in mm along D, H and W.
        views: input view images in display units, shape (V, rows, cols), values in [0, 1].
        view_names: name of each view, such as `frontal` and `lateral`.
        beam: rays with which the views were made; parallel ones over the whole volume by default.

    Returns:
        Mean over all pixels of all views, in display units (0 to 1).

    Raises:
        ValueError: the shapes don't fit, values that are not finite, a spacing that is not above 0, or a view that
            can't be rendered.
    """
    images = torch.as_tensor(np.asarray(views, dtype=np.float32))
    volume = torch.as_tensor(np.ascontiguousarray(generated_hu, dtype=np.float32))
    if images.ndim != 3 or len(images) != len(view_names):
        raise ValueError(
            f"views has shape {tuple(images.shape)}; expected ({len(view_names)}, rows, cols), one image for each of "
            f"{list(view_names)}"
        )
    if volume.ndim != 3:
        raise ValueError(f"generated_hu has shape {tuple(volume.shape)}; expected (D, H, W)")
    if len(spacing) != 3 or not all(0 < step < np.inf for step in spacing):
        raise ValueError(f"spacing is {list(spacing)}; expected three finite voxel sizes above 0 mm")
    if not bool(volume.isfinite().all()) or not bool(images.isfinite().all()):
        raise ValueError("generated_hu or views contain NaN or infinite values; expected finite numbers")
    size = (images.shape[1], images.shape[2])
    with torch.no_grad():
        rendered = render_views(volume[None, None], tuple(spacing), tuple(view_names), image_size=size, beam=beam)
    return float((rendered[0, :, 0].double() - images.double()).abs().mean())


def prdc(
    real_features: npt.ArrayLike, fake_features: npt.ArrayLike, nearest_k: int = DEFAULT_NEAREST_K
) -> dict[str, float]:
    """Precision, recall, density and coverage of one set of volumes against another (Naeem et al., ICML 2020).

    Computed once over the whole sets: neighbourhoods within batches would be other quantities.

    Args:
        real_features: one row per real volume, shape (N, F).
        fake_features: one row per generated volume, shape (M, F).
        nearest_k: the neighbour whose distance is the radius of a neighbourhood.

    Returns:
        `precision`, `recall`, `density`, `coverage`; density may exceed 1.

    Raises:
        ValueError: other shapes, features that are not finite, or fewer than `nearest_k + 2` rows.
        ImportError: prdc isn't installed.
    """
    real, fake = np.asarray(real_features, dtype=np.float64), np.asarray(fake_features, dtype=np.float64)
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(f"features have shapes {real.shape} and {fake.shape}; expected (N, F) and (M, F)")
    if not (np.isfinite(real).all() and np.isfinite(fake).all()):
        raise ValueError("features contain NaN or infinite values; expected finite numbers")
    if nearest_k < 1 or min(len(real), len(fake)) < nearest_k + 2:
        raise ValueError(
            f"nearest_k={nearest_k} with {len(real)} real and {len(fake)} generated volumes; expected at least "
            "nearest_k + 2 of each, so lower nearest_k or add volumes"
        )
    library = import_extra("prdc")
    with contextlib.redirect_stdout(io.StringIO()):  # the library prints the sizes of the sets
        scores = library.compute_prdc(real, fake, nearest_k)
    return {name: float(scores[name]) for name in ("precision", "recall", "density", "coverage")}


def _unit_pair(
    true_hu: npt.ArrayLike, generated_hu: npt.ArrayLike, window: Window
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Check both volumes, clip them to the window and map the window onto [0, 1] in float64."""
    low, high = window
    if not (np.isfinite([low, high]).all() and low < high and np.isfinite(float(high) - float(low))):
        raise ValueError(f"window is [{low:g}, {high:g}]; expected finite low < high in HU, such as [-1000, 1000]")
    true, generated = np.asarray(true_hu, dtype=np.float64), np.asarray(generated_hu, dtype=np.float64)
    if true.ndim != 3 or true.shape != generated.shape or true.size == 0:
        raise ValueError(
            f"volumes have shapes {true.shape} (true) and {generated.shape} (generated); expected one shape (D, H, W), "
            "so resample the generated volume onto the true grid first"
        )
    if not (np.isfinite(true).all() and np.isfinite(generated).all()):
        raise ValueError("a volume contains NaN or infinite voxels; expected finite HU")
    true, generated = (np.clip(volume, low, high) for volume in (true, generated))
    return (true - low) / (high - low), (generated - low) / (high - low)


def _psnr_3d(true: _Unit, generated: _Unit) -> float:
    return float(_decibels(np.mean(np.square(true - generated))))


def _psnr_slices(true: _Unit, generated: _Unit) -> float:
    error = np.square(true - generated)
    return float(np.mean([_decibels(error.mean(axis=plane)).mean() for plane in ((1, 2), (0, 2), (0, 1))]))


def _ssim_3d(true: _Unit, generated: _Unit) -> float:
    _check_ssim_size(true.shape)
    return _ssim(true, generated)


def _ssim_slices(true: _Unit, generated: _Unit) -> float:
    _check_ssim_size(true.shape)
    per_axis = []
    for axis in range(3):
        slices = zip(np.moveaxis(true, axis, 0), np.moveaxis(generated, axis, 0), strict=True)
        per_axis.append(np.mean([_ssim(*pair) for pair in slices]))
    return float(np.mean(per_axis))


def _mean_absolute_error(true: _Unit, generated: _Unit) -> float:
    return float(np.abs(true - generated).mean())


def _mean_squared_error(true: _Unit, generated: _Unit) -> float:
    return float(np.mean(np.square(true - generated)))


def _decibels(mean_squared_error: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """PSNR of errors in window units, limited to `PSNR_CEILING_DB`."""
    smallest = 10.0 ** (-PSNR_CEILING_DB / 10.0)
    return -10.0 * np.log10(np.maximum(np.asarray(mean_squared_error, dtype=np.float64), smallest))


def _check_ssim_size(shape: tuple[int, ...]) -> None:
    """The Gaussian window must fit into the volume."""
    if min(shape) < SSIM_WINDOW_SIZE:
        raise ValueError(
            f"volume has shape {shape}; SSIM with a window of {SSIM_WINDOW_SIZE} voxels needs at least as many along "
            "each axis"
        )


def _ssim(true: npt.NDArray[np.float64], generated: npt.NDArray[np.float64]) -> float:
    """SSIM of two images or volumes with values in [0, 1]."""
    similarity = import_extra("skimage.metrics").structural_similarity
    return float(
        similarity(
            true, generated, data_range=1.0, gaussian_weights=True, sigma=SSIM_SIGMA, use_sample_covariance=False
        )
    )
