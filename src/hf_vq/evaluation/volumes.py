"""True and generated volumes brought onto one grid, and the folders in which generated volumes lie."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..processors.geometry import (
    field_of_view,
    import_nibabel,
    to_canonical,
    to_tensor_axes,
    voxel_spacing,
)
from ..processors.resampling import resample
from ..processors.scans import read_scan
from ..tables import listed_file, read_table

METADATA_COLUMNS = ("file_name", "subject", "sample")
AIR_HU = -1000.0
_SPACING_TOLERANCE = 1e-3


class Alignment(str, Enum):
    """How a volume is laid on another one's grid.

    `CENTRE` lays the centres of the two fields of view on each other, as `CTVolumeProcessor` does, because X-rays don't
    know the world's origin; `WORLD` trusts the world coordinates of both affines.
    """

    CENTRE = "centre"
    WORLD = "world"


@dataclass(frozen=True)
class Grid:
    """The voxels' places, without the voxels.

    Attributes:
        shape: (D, H, W).
        affine: voxel index (x, y, z) to RAS+ world, mm, shape (4, 4).
    """

    shape: tuple[int, int, int]
    affine: npt.NDArray[np.float64]


@dataclass(frozen=True)
class ValueRange:
    """What the numbers in a volume mean: linear, `low` standing for `low_hu` and `high` for `high_hu`.

    Raises:
        ValueError: numbers that aren't finite, or a range without width.
    """

    low: float
    high: float
    low_hu: float
    high_hu: float

    def __post_init__(self) -> None:
        numbers = (self.low, self.high, self.low_hu, self.high_hu)
        if not np.isfinite(numbers).all() or self.low == self.high or self.low_hu == self.high_hu:
            raise ValueError(
                f"value range: found {self.low:g} to {self.high:g} for {self.low_hu:g} to {self.high_hu:g} HU, "
                "expected finite numbers and two different ends on either side, such as -1 to 1 for -1000 to 1000 HU"
            )

    def to_hu(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The values in HU, not clipped."""
        unit = (values - np.float32(self.low)) / np.float32(self.high - self.low)
        return np.asarray(self.low_hu + unit * np.float32(self.high_hu - self.low_hu), dtype=np.float32)


@dataclass(frozen=True)
class GridVolume:
    """A volume in canonical orientation.

    Attributes:
        hu: shape (D, H, W), float32, in HU; axes grow towards superior, anterior, right.
        affine: voxel index (x, y, z) to RAS+ world, mm, shape (4, 4).
    """

    hu: npt.NDArray[np.float32]
    affine: npt.NDArray[np.float64]

    @property
    def grid(self) -> Grid:
        """The grid alone."""
        depth, height, width = self.hu.shape
        return Grid((depth, height, width), self.affine)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along D, H and W."""
        x, y, z = (float(size) for size in voxel_spacing(self.affine))
        return z, y, x

    def with_hu(self, hu: npt.NDArray[Any]) -> "GridVolume":
        """Another volume on the same grid."""
        return GridVolume(np.asarray(hu, dtype=np.float32), self.affine)

    def to_nifti(self) -> Any:
        """The volume as a float32 `nibabel.Nifti1Image`."""
        return import_nibabel().Nifti1Image(np.ascontiguousarray(self.hu.transpose(2, 1, 0)), self.affine)


def read_volume(source: Any, label: str = "volume") -> GridVolume:
    """Read a volume in HU and bring its axes into canonical order, without interpolation.

    Args:
        source: path of a NIfTI file or a nibabel image.
        label: what errors call an image that has no file name.

    Returns:
        The volume.

    Raises:
        ValueError: not a readable NIfTI file, other than three axes, no valid affine, or voxels that aren't finite.
    """
    array, affine = read_scan(source, label=label)
    reordered, affine = to_canonical(array, affine)
    return GridVolume(to_tensor_axes(reordered)[0, 0].numpy(), affine)


def same_grid(volume: GridVolume, target: Grid, alignment: Alignment = Alignment.CENTRE) -> bool:
    """Whether a volume lies on a grid already: equal shapes, voxel sizes and directions, and with `WORLD` origins."""
    columns = 3 if alignment is Alignment.CENTRE else 4
    return volume.hu.shape == target.shape and np.allclose(
        volume.affine[:3, :columns], target.affine[:3, :columns], rtol=0, atol=_SPACING_TOLERANCE
    )


def onto_grid(
    volume: GridVolume, target: Grid, fill_value: float = AIR_HU, alignment: Alignment = Alignment.CENTRE
) -> npt.NDArray[np.float32]:
    """Voxels of a volume on another grid; resampled, linearly and in mm, only when the grids differ.

    Args:
        volume: the volume to move.
        target: the grid wanted.
        fill_value: HU outside the field of view of `volume`.
        alignment: which points of the two are laid on each other.

    Returns:
        Shape of `target`, in HU.
    """
    if same_grid(volume, target, alignment):
        return volume.hu
    affine = volume.affine.copy()
    if alignment is Alignment.CENTRE:
        centre, _ = field_of_view(volume.affine, _array_shape(volume.grid))
        target_centre, _ = field_of_view(target.affine, _array_shape(target))
        affine[:3, 3] += target_centre - centre
    moved = resample(torch.from_numpy(volume.hu), affine, target.affine, target.shape, fill_value)
    return np.asarray(moved.numpy(), dtype=np.float32)


def find_generated(folder: str | Path, subjects: Sequence[str], allow_missing: bool = False) -> dict[str, list[Path]]:
    """Find the generated volumes of each subject.

    A folder written by `generate.py` has a `metadata.csv` with the columns file_name, subject, sample; any other
    program may write one `<subject>.nii.gz` (or `.nii`) for each subject. In a control with shuffled views, `subject`
    names the subject whose true volume the generated one is held against, not the one whose views were used.

    Args:
        folder: folder of generated volumes.
        subjects: names of the subjects to be evaluated; further subjects in the folder are left alone.
        allow_missing: leave out subjects without a volume; without it they are an error.

    Returns:
        For each subject its files in the order of their samples, equally many for each.

    Raises:
        ValueError: no such folder, an empty one, columns, files or subjects that are missing, or unequal counts.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: found no such folder, expected one of generated volumes; run generate.py first")
    metadata = folder / "metadata.csv"
    if metadata.is_file():
        found = _from_metadata(metadata)
    else:
        found = {_subject_name(path): [path] for path in sorted(folder.iterdir()) if _is_nifti(path)}
    if not found:
        raise ValueError(f"{folder}: found no volumes, expected metadata.csv or <subject>.nii.gz; run generate.py")
    present = [subject for subject in subjects if subject in found]
    _check_present(folder, subjects, present, allow_missing)
    _check_counts(folder, present, found)
    return {subject: found[subject] for subject in present}


def _check_present(folder: Path, subjects: Sequence[str], present: Sequence[str], allow_missing: bool) -> None:
    """Every subject must be there, or with `allow_missing` at least one."""
    missing = [subject for subject in subjects if subject not in present]
    if missing and (not present or not allow_missing):
        listed = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        remedy = "name files as their subjects" if not present else "generate the whole split or pass --allow_missing"
        raise ValueError(
            f"{folder}: found no volume for {len(missing)} of {len(subjects)} subjects ({listed}), expected one for "
            f"each subject of the split; {remedy}"
        )


def _check_counts(folder: Path, subjects: Sequence[str], found: Mapping[str, Sequence[Path]]) -> None:
    """All subjects must have equally many samples."""
    counts = {subject: len(found[subject]) for subject in subjects}
    if len(set(counts.values())) > 1:
        least, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
        raise ValueError(
            f"{folder}: found {counts[least]} samples of {least} but {counts[most]} of {most}, expected equally many; "
            "generate the whole split again"
        )


def _array_shape(grid: Grid) -> tuple[int, int, int]:
    """Shape in (x, y, z) order."""
    depth, height, width = grid.shape
    return width, height, depth


def _is_nifti(path: Path) -> bool:
    return path.name.endswith((".nii", ".nii.gz")) and not path.name.startswith(".")


def _subject_name(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def _from_metadata(metadata: Path) -> dict[str, list[Path]]:
    """Files of each subject in the order of their samples."""
    rows, columns = read_table(metadata)
    missing = [column for column in METADATA_COLUMNS if column not in columns]
    if missing:
        raise ValueError(f"{metadata}: found the columns {columns}, expected {list(METADATA_COLUMNS)}; add {missing}")
    samples: dict[str, dict[int, Path]] = {}
    for row in rows:
        number = _sample_number(metadata, row["sample"])
        files = samples.setdefault(row["subject"], {})
        if number in files:
            raise ValueError(f"{metadata}: found sample {number} of {row['subject']} twice, expected it once")
        files[number] = listed_file(metadata, row["file_name"], "file_name")
    return {subject: [files[number] for number in sorted(files)] for subject, files in samples.items()}


def _sample_number(metadata: Path, text: str | None) -> int:
    """Number in the column `sample`."""
    if text is None or not text.isdecimal():
        raise ValueError(f"{metadata}: found sample {text!r}, expected a whole number from 0; correct the column")
    return int(text)
