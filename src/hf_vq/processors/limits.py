"""What a file may declare before anything of that size is allocated: a short file can claim any size."""

import os
import stat
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

MAX_VOXELS = 2**30
"""Most voxels of a scan, and of the grid that it is brought onto, unless `HF_VQ_MAX_VOXELS` says otherwise."""

MAX_PIXELS = 2**26
"""Most pixels of an image, 8192 x 8192, unless `HF_VQ_MAX_PIXELS` says otherwise."""

MAX_BYTES_BEFORE_VOXELS = 2**24
"""Most bytes before a NIfTI file's voxels; header extensions, which come there, are read whole."""

MAX_INFLATION = 1032
"""How many times larger than itself what a gzip file holds can be: no deflate stream does better."""


def max_voxels() -> int:
    """Returns the value of `HF_VQ_MAX_VOXELS`, or `MAX_VOXELS`; raises ValueError when it is no positive number."""
    return _limit("HF_VQ_MAX_VOXELS", MAX_VOXELS)


def max_pixels() -> int:
    """Returns the value of `HF_VQ_MAX_PIXELS`, or `MAX_PIXELS`; raises ValueError when it is no positive number."""
    return _limit("HF_VQ_MAX_PIXELS", MAX_PIXELS)


def check_voxels(shape: Iterable[Any], name: str) -> None:
    """Raises ValueError when a volume of this shape has more voxels than `max_voxels` allows.

    Args:
        shape: voxels along each axis.
        name: what the error calls the volume.
    """
    sides = [int(side) for side in shape]
    if prod(sides) > max_voxels():
        raise ValueError(
            f"{name}: found {' x '.join(map(str, sides))} voxels, expected at most {max_voxels()}; crop or resample "
            "the scan, or set HF_VQ_MAX_VOXELS if it is meant"
        )


def check_pixels(rows: int, columns: int, name: str) -> None:
    """Raises ValueError when an image of this size has more pixels than `max_pixels` allows, or none.

    Args:
        rows: of the image.
        columns: of the image.
        name: what the error calls the image.
    """
    if rows < 1 or columns < 1 or rows * columns > max_pixels():
        raise ValueError(
            f"{name}: found {rows} x {columns} pixels, expected at least one and at most {max_pixels()}; resize the "
            "image, or set HF_VQ_MAX_PIXELS if it is meant"
        )


def check_file(path: str | Path, expected: str, remedy: str = "check the path") -> None:
    """Raises ValueError unless a path leads to an ordinary file with something in it that may be read.

    Args:
        path: the file; links are followed.
        expected: what errors say that it should be, such as "an image".
        remedy: what to do where there is no such file.
    """
    try:
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):
            with open(path, "rb"):
                pass
    except FileNotFoundError:
        raise ValueError(f"{path}: found no such file, expected {expected}; {remedy}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"{path}: found a file that cannot be opened ({reason}), expected {expected}; check its permissions and "
            "links"
        ) from error
    if not stat.S_ISREG(status.st_mode):
        kind = "folder" if stat.S_ISDIR(status.st_mode) else "device or pipe"
        raise ValueError(f"{path}: found a {kind}, expected {expected}; {remedy}")
    if not status.st_size:
        raise ValueError(f"{path}: found an empty file, expected {expected}; copy it again")


def _limit(variable: str, default: int) -> int:
    text = os.environ.get(variable, "")
    if text and not (text.isdecimal() and int(text) > 0):
        raise ValueError(f"{variable}: found {text!r}, expected a whole number above 0; correct or unset it")
    return int(text or default)
