"""Files of MNIST's format."""

import gzip
import math
import zlib
from io import BufferedIOBase
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..processors.fields import one_line
from ..processors.limits import MAX_INFLATION, max_voxels


def read_idx(folder: Path, name: str, num_axes: int) -> npt.NDArray[np.uint8]:
    """Returns the array in an IDX file of bytes: a magic number, big-endian sides, then the bytes.

    Args:
        folder: holds the file, plain or with `.gz` added to its name.
        name: of the file.
        num_axes: of the array.

    Raises:
        ValueError: the file is missing, damaged or of another format, or declares more than it can hold or than
            `limits.max_voxels`.
    """
    path = next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
    if path is None:
        raise ValueError(f"{folder}: found no {name} or {name}.gz, expected the four files of MNIST's format; add it")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _parse_idx(file, str(path), num_axes, path.stat().st_size)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path}: found no readable file ({one_line(error)}), expected a whole one; copy it again"
        ) from error


def _parse_idx(file: BufferedIOBase, name: str, num_axes: int, num_stored: int) -> npt.NDArray[np.uint8]:
    """The array in an open IDX file; never more is read than its header declares and `num_stored` bytes can hold."""
    header = 4 + 4 * num_axes
    start = file.read(header)
    if start[:4] != bytes([0, 0, 8, num_axes]):
        raise ValueError(
            f"{name}: found the first bytes {start[:4].hex(' ')}, expected 00 00 08 0{num_axes} of an IDX file of "
            f"bytes with {num_axes} axes; copy it again"
        )
    sides = [int.from_bytes(start[place : place + 4], "big") for place in range(4, header, 4)]
    size = math.prod(sides)
    if size > min(max_voxels(), MAX_INFLATION * num_stored):
        raise ValueError(
            f"{name}: found an array of {sides} declared in a file of {num_stored} bytes, expected one that fits and "
            f"has at most {max_voxels()} bytes; copy the file again"
        )
    content = file.read(size + 1)
    if len(start) < header or len(content) != size:
        found = "more" if len(content) > size else len(start) + len(content)
        raise ValueError(f"{name}: found {found} bytes, expected {header} and then an array of {sides}; copy it again")
    return np.frombuffer(content, np.uint8).reshape(sides)
