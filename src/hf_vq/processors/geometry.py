"""The one module in which the axis conventions of volumes and views stand.

A volume tensor is (D, H, W), a NIfTI array is (x, y, z); both describe the same grid, so the tensor is the RAS+ array
transposed. World coordinates are millimetres in the RAS+ sense of NIfTI: x grows towards the patient's right, y towards
anterior, z towards superior.
"""

import re
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

VIEW_ANGLES = {"frontal": (0.0, 0.0), "lateral": (90.0, 0.0)}
"""Azimuth and elevation of the views that have a name of their own, degrees; see `RadiographView`."""

SPACING_LIMITS = (1e-4, 1e4)
"""Smallest and largest voxel size that is taken for one, mm."""

MAX_OFFSET = 1e6
"""Farthest that the first voxel may lie from the world's origin, mm; beyond it float32 affines lose the voxels."""

_NUMBER = r"-?[0-9]+(?:\.[0-9]+)?"
_ANGLES_PATTERN = re.compile(rf"azimuth_({_NUMBER})(?:_elevation_({_NUMBER}))?")


@dataclass(frozen=True)
class RadiographView:
    """From where a radiograph is taken.

    The detector stands in front of the patient at azimuth 0 (postero-anterior) and moves about the superior axis to
    the patient's left at azimuth 90 (left lateral). A positive elevation lifts it towards the head. The source is
    opposite, and the image is seen from the detector's side, superior up.

    Attributes:
        azimuth: turn about the superior axis, degrees.
        elevation: angle above the axial plane, degrees, -90 ... 90.

    Raises:
        ValueError: an angle is not finite, or the elevation is out of range.
    """

    azimuth: float
    elevation: float = 0.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.azimuth) and abs(self.elevation) <= 90):
            raise ValueError(
                f"found azimuth {self.azimuth} and elevation {self.elevation}, expected finite degrees and an "
                "elevation in -90 ... 90; correct the angles"
            )

    @property
    def name(self) -> str:
        """Name that `find_view` understands, such as `azimuth_30` or `azimuth_30_elevation_-10`."""
        azimuth, elevation = (np.format_float_positional(angle, trim="-") for angle in (self.azimuth, self.elevation))
        return f"azimuth_{azimuth}" + (f"_elevation_{elevation}" if self.elevation else "")

    def directions(self) -> npt.NDArray[np.float64]:
        """Returns three unit vectors in (superior, anterior, right) order, shape (3, 3).

        They are the rows of the matrix: from the source to the detector along the central ray; in which the image's
        rows grow; in which its columns grow.
        """
        # rounded so that views at right angles are so exactly
        (cos_azimuth, cos_elevation), (sin_azimuth, sin_elevation) = (
            np.round(function(np.deg2rad([self.azimuth, self.elevation])), 15) for function in (np.cos, np.sin)
        )
        level = np.array([0.0, cos_azimuth, -sin_azimuth])
        superior = np.array([1.0, 0.0, 0.0])
        towards_detector = cos_elevation * level + sin_elevation * superior
        down = sin_elevation * level - cos_elevation * superior
        return np.stack([towards_detector, down, np.array([0.0, -sin_azimuth, -cos_azimuth])])

    @property
    def is_axis_aligned(self) -> bool:
        """Whether parallel rays run along an axis of the volume and the image's sides along the others."""
        return set(np.abs(self.directions()).flat) == {0.0, 1.0}

    @property
    def axes(self) -> tuple[str, str]:
        """Anatomical directions nearest to those in which the rows and the columns grow, of two different axes."""
        _, down, across = self.directions()
        columns = _nearest_axis(across, exclude=None)
        rows = _nearest_axis(down, exclude=columns)
        return _direction(rows, down), _direction(columns, across)


def _nearest_axis(vector: npt.NDArray[np.float64], exclude: int | None) -> int:
    """Index in `VOLUME_AXES` of the axis along which a vector is longest; the later one where two are equal."""
    lengths = np.round(np.abs(vector), 9)
    if exclude is not None:
        lengths[exclude] = -1
    return int(2 - lengths[::-1].argmax())


def _direction(axis: int, vector: npt.NDArray[np.float64]) -> str:
    """Name of the direction in which a vector goes along an axis."""
    return VOLUME_AXES[axis] if vector[axis] > 0 else OPPOSITES[VOLUME_AXES[axis]]


def find_view(name: str) -> RadiographView:
    """Returns the view of a name.

    Args:
        name: a key of `VIEW_ANGLES`, or `azimuth_<degrees>` or `azimuth_<degrees>_elevation_<degrees>`, such as
            `azimuth_30` and `azimuth_-22.5_elevation_10`.

    Raises:
        ValueError: the name is none of these, or an angle is out of range.
    """
    if name in VIEW_ANGLES:
        return RadiographView(*VIEW_ANGLES[name])
    match = _ANGLES_PATTERN.fullmatch(name)
    if match is None:
        raise ValueError(
            f"found view {name!r}, expected one of {sorted(VIEW_ANGLES)}, or azimuth_<degrees> with or without "
            "_elevation_<degrees>; rename it"
        )
    return RadiographView(*(float(angle or 0) for angle in match.groups()))


def is_view(name: str) -> bool:
    """Returns whether `find_view` knows the name, so that the view can be rendered."""
    try:
        find_view(name)
    except ValueError:
        return False
    return True


def view_axes(name: str) -> tuple[str, str]:
    """Returns the anatomical directions nearest to those in which the rows and the columns of a named view grow.

    They are what `CodeTransformer.view_axes` holds for the view; those of `VIEW_AXES` for the views named there.

    Raises:
        ValueError: as `find_view`.
    """
    return VIEW_AXES[name] if name in VIEW_AXES else find_view(name).axes


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
    return np.hypot.reduce(matrix, axis=0)  # squares of what a broken header holds would overflow


def check_affine(affine: Any, name: str) -> Affine:
    """Returns the affine as a float64 (4, 4) array.

    Args:
        affine: voxel index to world matrix, mm.
        name: file or field the affine belongs to, named in the error.

    Raises:
        ValueError: the affine is absent, not 4 x 4, not finite or singular, or its spacing or offset lies beyond
            `SPACING_LIMITS` or `MAX_OFFSET`.
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
    smallest, largest = SPACING_LIMITS
    if spacing.min() < smallest or spacing.max() > largest or np.abs(matrix[:3, 3]).max() > MAX_OFFSET:
        raise ValueError(
            f"{name}: found voxel spacing {spacing.tolist()} mm and offset {matrix[:3, 3].tolist()} mm, expected "
            f"spacing from {smallest:g} to {largest:g} and offsets up to {MAX_OFFSET:g} mm; {remedy}"
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
    contiguous = np.ascontiguousarray(array.transpose(2, 1, 0), dtype=np.float32)
    # numpy leaves the negative stride of a flipped axis of one voxel as it is, and torch takes none
    return torch.from_numpy(contiguous.copy() if min(contiguous.strides) < 0 else contiguous)[None, None]


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
    """Says how a view at right angles looks at a volume tensor (D, H, W).

    Args:
        view: name of a view whose rays run along an axis of the volume, such as `frontal`.

    Returns:
        The axis that the rays run along, the axes that become (rows, columns), and those of them that are flipped.

    Raises:
        ValueError: the view is unknown or oblique.
    """
    if not find_view(view).is_axis_aligned:
        raise ValueError(f"found the oblique view {view!r}, expected angles that are multiples of 90; choose another")
    positions = []
    flipped = []
    for direction in view_axes(view):
        reverse = direction not in VOLUME_AXES
        axis = VOLUME_AXES.index(OPPOSITES[direction] if reverse else direction)
        positions.append(axis)
        if reverse:
            flipped.append(axis)
    (ray_axis,) = set(range(3)) - set(positions)
    return ray_axis, (positions[0], positions[1]), flipped
