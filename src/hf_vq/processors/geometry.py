"""The one module in which the axis conventions of volumes and views stand.

A volume tensor is (D, H, W), a NIfTI array is (x, y, z); both describe the same grid, so the tensor is the RAS+ array
transposed. World coordinates are millimetres in the RAS+ sense of NIfTI: x grows towards the patient's right, y towards
anterior, z towards superior.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Affine = npt.NDArray[np.float64]

VOLUME_AXES = ("superior", "anterior", "right")
"""Anatomical directions in which the tensor axes D, H, W grow."""

VIEW_AXES = {"frontal": ("inferior", "left"), "lateral": ("inferior", "posterior")}
"""Anatomical directions in which the rows and the columns of each view grow."""

OPPOSITES = {
    "superior": "inferior",
    "inferior": "superior",
    "anterior": "posterior",
    "posterior": "anterior",
    "right": "left",
    "left": "right",
}
"""The direction opposite to each anatomical direction."""


@dataclass(frozen=True)
class VolumeGeometry:
    """Where a model grid lies in the scan it was made from.

    Attributes:
        input_affine: (4, 4) voxel index (x, y, z) to RAS+ world, mm, as stored in the file.
        input_shape: (x, y, z) shape of the stored array.
        affine: (4, 4) voxel index (x, y, z) to RAS+ world, mm, of the model grid.
        shape: (D, H, W) shape of the model grid.
    """

    input_affine: Affine
    input_shape: tuple[int, int, int]
    affine: Affine
    shape: tuple[int, int, int]


def import_nibabel() -> Any:
    """Returns the module `nibabel`; raises ImportError with the command that installs it."""
    try:
        import nibabel
    except ImportError as error:
        raise ImportError("reading and writing NIfTI needs nibabel: pip install hf-vq[medical]") from error
    return nibabel


def voxel_spacing(affine: npt.NDArray[Any]) -> Affine:
    """Returns the voxel size along each array axis, mm, shape (3,)."""
    matrix = np.asarray(affine, dtype=np.float64)[:3, :3]
    return np.sqrt((matrix**2).sum(axis=0))


def check_affine(affine: Any, name: str) -> Affine:
    """Returns the affine as a float64 (4, 4) array.

    Args:
        affine: voxel index to world matrix, mm.
        name: file or field the affine belongs to, named in the error.

    Raises:
        ValueError: the affine is absent, not 4 x 4, not finite, or has a zero spacing or a singular matrix.
    """
    remedy = "write the scan with its voxel spacing (mm) or pass a valid affine in `affines`"
    if affine is None:
        raise ValueError(f"{name}: found no affine, expected a 4 x 4 matrix in mm; {remedy}")
    matrix = np.asarray(affine, dtype=np.float64)
    if matrix.shape != (4, 4):
        raise ValueError(f"{name}: found an affine of shape {matrix.shape}, expected (4, 4); {remedy}")
    spacing = voxel_spacing(matrix)
    if not np.isfinite(matrix).all() or (spacing == 0).any():
        raise ValueError(
            f"{name}: found voxel spacing {spacing.tolist()} mm and offset {matrix[:3, 3].tolist()} mm, "
            f"expected finite numbers and spacing above 0; {remedy}"
        )
    if abs(np.linalg.det(matrix[:3, :3] / spacing)) < 1e-6:
        raise ValueError(f"{name}: found a singular affine, expected three independent axes; {remedy}")
    return matrix


def to_canonical(array: npt.NDArray[Any], affine: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], Affine]:
    """Flips and permutes a stored array to the axis order closest to RAS+, without interpolation.

    Args:
        array: (x, y, z) voxels in storage order.
        affine: (4, 4) voxel index to world, mm.

    Returns:
        The reordered array and its affine.
    """
    orientations = import_nibabel().orientations
    orientation = orientations.io_orientation(affine)
    reordered = orientations.apply_orientation(array, orientation)
    return reordered, affine @ orientations.inv_ornt_aff(orientation, array.shape)


def from_canonical(array: npt.NDArray[Any], affine: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Undoes `to_canonical`: the canonical array in the storage order of a grid with this affine."""
    orientations = import_nibabel().orientations
    canonical = orientations.io_orientation(np.eye(4))
    stored = orientations.io_orientation(affine)
    return np.asarray(orientations.apply_orientation(array, orientations.ornt_transform(canonical, stored)))


def canonical_grid(affine: npt.NDArray[Any], shape: tuple[int, int, int]) -> tuple[Affine, tuple[int, int, int]]:
    """Returns the affine and the (D, H, W) shape of a grid with this affine and (x, y, z) shape once canonical."""
    reordered, canonical = to_canonical(np.broadcast_to(np.int8(0), shape), affine)
    x, y, z = reordered.shape
    return canonical, (z, y, x)


def to_tensor_axes(array: npt.NDArray[Any]) -> torch.Tensor:
    """Turns a canonical (x, y, z) array into a float32 volume tensor (1, 1, D, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 1, 0), dtype=np.float32))[None, None]


def to_array_axes(volume: torch.Tensor) -> npt.NDArray[Any]:
    """Turns a volume tensor (D, H, W) into a canonical (x, y, z) array."""
    return volume.detach().cpu().numpy().transpose(2, 1, 0)


def grid_affine(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], center: npt.NDArray[Any] | None = None
) -> Affine:
    """Returns the affine of an axis-aligned RAS+ grid.

    Args:
        shape: (D, H, W) of the grid.
        spacing: voxel size in (D, H, W) order, mm.
        center: (3,) world coordinates of the grid's middle, mm; the world origin when absent.
    """
    steps = np.asarray(spacing[::-1], dtype=np.float64)
    affine = np.diag([*steps, 1.0])
    middle = np.zeros(3) if center is None else np.asarray(center, dtype=np.float64)
    affine[:3, 3] = middle - steps * (np.asarray(shape[::-1]) - 1) / 2
    return affine


def field_of_view(affine: npt.NDArray[Any], shape: tuple[int, ...]) -> tuple[Affine, Affine]:
    """Returns the centre (3,) and the extent (3,) of an (x, y, z) grid along the world axes, with voxel edges, mm."""
    center = affine[:3, :3] @ ((np.asarray(shape) - 1) / 2) + affine[:3, 3]
    extent = np.abs(affine[:3, :3]) @ np.asarray(shape, dtype=np.float64)
    return center, extent


def view_layout(view: str) -> tuple[int, tuple[int, int], list[int]]:
    """Says how a view looks at a volume tensor (D, H, W).

    Args:
        view: a key of `VIEW_AXES`.

    Returns:
        The axis that the rays run along, the axes that become (rows, columns), and those of them that are flipped.

    Raises:
        ValueError: the view is unknown.
    """
    if view not in VIEW_AXES:
        raise ValueError(f"found view {view!r}, expected one of {sorted(VIEW_AXES)}; add it to VIEW_AXES or rename it")
    positions = []
    flipped = []
    for direction in VIEW_AXES[view]:
        reverse = direction not in VOLUME_AXES
        axis = VOLUME_AXES.index(OPPOSITES[direction] if reverse else direction)
        positions.append(axis)
        if reverse:
            flipped.append(axis)
    (ray_axis,) = set(range(3)) - set(positions)
    return ray_axis, (positions[0], positions[1]), flipped
