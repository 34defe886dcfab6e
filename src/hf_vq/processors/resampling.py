"""Resampling a volume between two grids in millimetres, with anti-aliasing when the target is coarser."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

Shape = tuple[int, int, int]
Matrix = npt.NDArray[np.float64]

SNAP_TOLERANCE = 1e-3
"""Voxels by which two grids may differ and still count as equal: the affine of a NIfTI file is stored in float32."""

_SLAB = 16


def resample(
    volume: torch.Tensor,
    source_affine: npt.NDArray[Any],
    target_affine: npt.NDArray[Any],
    shape: Shape,
    fill_value: float,
) -> torch.Tensor:
    """Resamples a volume onto another grid.

    Args:
        volume: (D, H, W) float tensor in canonical axis order.
        source_affine: (4, 4) voxel index (x, y, z) to world of `volume`, mm.
        target_affine: (4, 4) voxel index (x, y, z) to world of the result, mm.
        shape: (D, H, W) of the result.
        fill_value: value outside the source's field of view.

    Returns:
        The (D, H, W) volume; along an axis on which the grids differ by whole voxels, whole numbers are copied exactly.
    """
    matrix = _snap(np.linalg.inv(source_affine) @ target_affine, shape)
    if tuple(volume.shape) == tuple(shape) and np.array_equal(matrix, np.eye(4)):
        return volume.clone()
    linear = matrix[:3, :3]
    aligned = np.array_equal(linear, np.diag(np.diag(linear))) and (np.diag(linear) > 0).all()
    resample_shifted = _resample_aligned if aligned else _resample_oblique
    return resample_shifted(volume - fill_value, matrix, shape) + fill_value


def _snap(matrix: Matrix, shape: Shape) -> Matrix:
    """Rounds what moves no target voxel by more than the tolerance: couplings of axes, unit steps, whole offsets."""
    snapped = matrix.copy()
    counts = np.asarray(shape[::-1])
    nearest = np.where(np.eye(3) == 1, np.where(np.abs(matrix[:3, :3] - 1) < 0.5, 1, matrix[:3, :3]), 0)
    close = np.abs(matrix[:3, :3] - nearest) * counts < SNAP_TOLERANCE
    snapped[:3, :3] = np.where(close, nearest, matrix[:3, :3])
    whole = np.round(matrix[:3, 3])
    snapped[:3, 3] = np.where(np.abs(matrix[:3, 3] - whole) < SNAP_TOLERANCE, whole, matrix[:3, 3])
    return snapped


def axis_weights(num_source: int, num_target: int, step: float, start: float) -> torch.Tensor:
    """Builds the weights that resample one axis.

    Target voxel i lies at source index `start + step * i`. The kernel is a triangle as wide as the coarser of the two
    voxels, so that it interpolates linearly when the target is finer and averages when it is coarser. A row sums to
    the fraction of the target voxel that lies inside the source's field of view.

    Args:
        num_source: number of source voxels.
        num_target: number of target voxels.
        step: target voxel size in source voxels, > 0.
        start: source index of the first target voxel.

    Returns:
        (num_target, num_source) float64 weights.
    """
    positions = start + step * torch.arange(num_target, dtype=torch.float64)
    inside = positions.clamp(0, num_source - 1)
    distances = (inside[:, None] - torch.arange(num_source, dtype=torch.float64)).abs()
    weights = (1 - distances / max(step, 1.0)).clamp_min(0)
    upper = (positions + step / 2).clamp(max=num_source - 0.5)
    lower = (positions - step / 2).clamp(min=-0.5)
    coverage = ((upper - lower) / step).clamp(0, 1)
    return coverage[:, None] * weights / weights.sum(dim=1, keepdim=True)


def _apply_along(volume: torch.Tensor, weights: torch.Tensor, axis: int) -> torch.Tensor:
    """Multiplies one axis of a (D, H, W) tensor with (target, source) weights."""
    return torch.tensordot(volume, weights.to(volume), dims=([axis], [1])).movedim(-1, axis)


def _resample_aligned(volume: torch.Tensor, matrix: Matrix, shape: Shape) -> torch.Tensor:
    """Resamples axis by axis, the one that shrinks most first; `matrix` scales and shifts (x, y, z) indices."""
    for axis in sorted(range(3), key=lambda axis: shape[axis] / volume.shape[axis]):
        step, start = matrix[2 - axis, 2 - axis], matrix[2 - axis, 3]
        if (shape[axis], step, start) != (volume.shape[axis], 1, 0):
            volume = _apply_along(volume, axis_weights(volume.shape[axis], shape[axis], step, start), axis)
    return volume


def _resample_oblique(volume: torch.Tensor, matrix: Matrix, shape: Shape) -> torch.Tensor:
    """Resamples onto a rotated or sheared grid; a voxel whose centre lies outside the source becomes 0."""
    for axis, width in enumerate(np.abs(matrix[:3, :3]).max(axis=1)[::-1]):
        if width > 1:
            index = torch.arange(volume.shape[axis], dtype=torch.float64)
            kernel = (1 - (index[:, None] - index).abs() / width).clamp_min(0)
            volume = _apply_along(volume, kernel / kernel.sum(dim=1, keepdim=True), axis)
    slabs = [_sample_slab(volume, matrix, shape, start) for start in range(0, shape[0], _SLAB)]
    return torch.cat(slabs)


def _sample_slab(volume: torch.Tensor, matrix: Matrix, shape: Shape, start: int) -> torch.Tensor:
    """Interpolates the target slices from `start` on, a slab at a time to bound the memory of the sampling grid."""
    depths = torch.arange(start, min(start + _SLAB, shape[0]), dtype=torch.float64)
    rows, columns = (torch.arange(count, dtype=torch.float64) for count in shape[1:])
    target = torch.stack(torch.meshgrid(depths, rows, columns, indexing="ij")[::-1], dim=-1)
    source = target @ torch.tensor(matrix[:3, :3].T) + torch.tensor(matrix[:3, 3])
    size = torch.tensor(volume.shape[::-1], dtype=torch.float64)
    grid = ((2 * source + 1) / size - 1).to(volume)
    sampled = functional.grid_sample(
        volume[None, None], grid[None], mode="bilinear", padding_mode="border", align_corners=False
    )[0, 0]
    return torch.where((grid.abs() <= 1).all(dim=-1), sampled, torch.zeros_like(sampled))
