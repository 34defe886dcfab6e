"""What a NIfTI file declares, checked before anything of it but its first bytes is read."""

import gzip
import math
import zlib
from dataclasses import dataclass
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import Any

from .fields import one_line
from .geometry import import_nibabel
from .limits import MAX_BYTES_BEFORE_VOXELS, MAX_INFLATION, check_file, check_voxels

NIFTI_SUFFIXES = (".nii", ".nii.gz")
_HEADER_BYTES = 540
_MOST_BEHIND_VOXELS = 2**20
_GZIP_MARK = b"\x1f\x8b"


def read_errors() -> tuple[type[Exception], ...]:
    """Returns what nibabel and the decompressors beneath it raise for a file that is damaged or of another kind."""
    nibabel = import_nibabel()
    damaged_header = (nibabel.spatialimages.HeaderDataError, nibabel.wrapstruct.WrapStructError)
    lacking = (KeyError, IndexError, OverflowError, MemoryError)
    return (
        OSError,
        EOFError,
        ValueError,
        zlib.error,
        nibabel.filebasedimages.ImageFileError,
        *damaged_header,
        *lacking,
    )


def is_nifti_name(path: str | Path) -> bool:
    """Returns whether a file is called as NIfTI files are."""
    return str(path).lower().endswith(NIFTI_SUFFIXES)


@dataclass(frozen=True)
class DeclaredVolume:
    """What the header of a NIfTI file says of its voxels.

    Attributes:
        shape: voxels along x, y, z, and axes of length 1 after them.
        itemsize: bytes of a voxel.
        offset: bytes before the first voxel.
        is_second: whether the header is one of NIfTI-2.
    """

    shape: tuple[int, ...]
    itemsize: int
    offset: int
    is_second: bool = False

    @property
    def size(self) -> int:
        """Bytes of the file, uncompressed, up to the last voxel."""
        return self.offset + math.prod(self.shape) * self.itemsize

    @property
    def sides(self) -> str:
        """The three sides in words."""
        return " x ".join(map(str, self.shape[:3]))


def read_declaration(path: str | Path) -> DeclaredVolume:
    """Returns what a NIfTI file declares, from its first bytes alone.

    Args:
        path: .nii or .nii.gz file.

    Raises:
        ValueError: there is no such file or no NIfTI header in it, the header is damaged, or it has other than three
            axes of at least one voxel.
        ImportError: nibabel is missing.
    """
    check_file(path, "a .nii or .nii.gz file")
    if not is_nifti_name(path):
        raise ValueError(f"{path}: found another kind of file, expected a .nii or .nii.gz file; convert it")
    with (gzip.open if _is_compressed(path) else open)(path, "rb") as file:
        return _declaration(_first_bytes(file, str(path)), str(path))


def check_nifti_header(path: str | Path) -> None:
    """Refuses a NIfTI file that declares what cannot be one scan, or more than it can hold.

    Args:
        path: .nii or .nii.gz file.

    Raises:
        ValueError: as `read_declaration`; there are more voxels than `limits.max_voxels`; the file is too short.
        ImportError: nibabel is missing.
    """
    _check_size(read_declaration(path), Path(path).stat().st_size, _is_compressed(path), str(path))


def decode_nifti(content: bytes, name: str) -> Any:
    """Returns the nibabel image of a NIfTI file, plain or gzipped, that is in memory.

    Args:
        content: the file.
        name: what errors call it.

    Raises:
        ValueError: as `check_nifti_header`.
        ImportError: nibabel is missing.
    """
    compressed = content[:2] == _GZIP_MARK
    stream = BytesIO(content)
    with gzip.GzipFile(fileobj=stream) if compressed else stream as file:
        start = _first_bytes(file, name)
        declared = _declaration(start, name)
        _check_size(declared, len(content), compressed, name)
        try:
            # little of what a file holds beyond its voxels is decompressed, so that the end of a usual one is reached,
            # where the checksum is compared; a bit turned over can make the contents longer
            whole = start + file.read(max(0, declared.size - len(start)))
            file.read(_MOST_BEHIND_VOXELS)
        except read_errors() as error:
            raise ValueError(
                f"{name}: found voxels that cannot be read ({one_line(error)}), expected a whole file; copy it again"
            ) from error
    nibabel = import_nibabel()
    try:
        return (nibabel.Nifti2Image if declared.is_second else nibabel.Nifti1Image).from_bytes(whole)
    except read_errors() as error:
        raise no_nifti(name, one_line(error)) from error


def _first_bytes(file: BufferedIOBase, name: str) -> bytes:
    try:
        return file.read(_HEADER_BYTES)
    except read_errors() as error:
        raise no_nifti(name, one_line(error)) from error


def _declaration(start: bytes, name: str) -> DeclaredVolume:
    """What the first bytes of a NIfTI file declare, refused unless it can be one volume."""
    nibabel = import_nibabel()
    kinds = [kind for kind in (nibabel.Nifti1Header, nibabel.Nifti2Header) if kind.may_contain_header(start)]
    if not kinds or len(start) < kinds[0].sizeof_hdr:
        raise no_nifti(name, "it does not begin as one")
    header = kinds[0](start[: kinds[0].sizeof_hdr], check=False)
    num_axes = int(header["dim"][0])
    if not 1 <= num_axes <= 7:
        raise ValueError(f"{name}: found {num_axes} axes in the header, expected 3 (x, y, z); write the scan again")
    try:
        shape = tuple(int(side) for side in header.get_data_shape())
        itemsize, offset = int(header.get_data_dtype().itemsize), float(header["vox_offset"])
    except read_errors() as error:
        raise ValueError(
            f"{name}: found a damaged NIfTI header ({one_line(error)}), expected a whole one; write the scan again"
        ) from error
    if len(shape) < 3 or set(shape[3:]) - {1} or min(shape) < 1:
        raise ValueError(
            f"{name}: found an array of shape {shape}, expected three axes (x, y, z) of one voxel or more; pass one "
            "volume at a time"
        )
    if not 0 <= offset <= MAX_BYTES_BEFORE_VOXELS:
        raise ValueError(
            f"{name}: found voxels at byte {offset:g}, expected at most {MAX_BYTES_BEFORE_VOXELS} bytes before them; "
            "write the scan again without the header's extensions"
        )
    return DeclaredVolume(shape, itemsize, int(offset), kinds[0] is nibabel.Nifti2Header)


def _check_size(declared: DeclaredVolume, held: int, compressed: bool, name: str) -> None:
    """Raises ValueError when a file of `held` bytes declares too many voxels, or more than it can hold."""
    check_voxels(declared.shape[:3], name)
    if declared.size > held * (MAX_INFLATION if compressed else 1):
        raise ValueError(
            f"{name}: found voxels that cannot be read ({declared.sides} of {declared.itemsize} bytes are declared, "
            f"which a file of {held} bytes cannot hold), expected a whole file; copy it again"
        )


def no_nifti(name: str, reason: str) -> ValueError:
    """Returns the error for a file that is no NIfTI image, for a reason in a few words."""
    return ValueError(
        f"{name}: found no NIfTI image ({reason}), expected a .nii or .nii.gz file; convert the scan to NIfTI, or copy "
        "it again"
    )


def _is_compressed(path: str | Path) -> bool:
    return str(path).lower().endswith(".gz")
