"""Opening image files and DICOM radiographs, whatever is wrong with them."""

from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from .dicom_radiographs import READ_ERRORS, is_dicom, quiet, read_radiograph
from .fields import one_line
from .limits import check_file, check_pixels

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "PPM", "WEBP", "JPEG2000")
"""Formats that are read, as Pillow calls them. It starts other programs for some of the rest, Ghostscript for one."""


def open_image(path: str | Path) -> Image.Image:
    """Reads an image file or a DICOM radiograph, its pixels included.

    Args:
        path: file in one of `FORMATS`, whatever its name, or DICOM radiograph.

    Raises:
        ValueError: the file is missing, holds no image that can be read, or declares more pixels than
            `limits.max_pixels`.
        ImportError: it is a DICOM file, and pydicom is not installed.
    """
    check_file(path, "an image")
    return read_radiograph(path) if is_dicom(path) else _opened(path, str(path))


def decode_image(content: bytes, name: str) -> Image.Image:
    """Reads an image file that is in memory.

    Args:
        content: the file, in one of `FORMATS`.
        name: what errors call it.

    Raises:
        ValueError: as `open_image`.
    """
    return _opened(BytesIO(content), name)


def _opened(source: Any, name: str) -> Image.Image:
    """An image with its pixels, whose size was checked before they were read."""
    try:
        with quiet(Image.DecompressionBombWarning):
            image: Image.Image = Image.open(source, formats=FORMATS)
        columns, rows = image.size
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{name}: found too large an image ({one_line(error)}), expected less; resize it, or set Pillow's "
            "Image.MAX_IMAGE_PIXELS too if it is meant"
        ) from error
    except (*READ_ERRORS, SyntaxError) as error:
        raise _unreadable(name, error) from error
    check_pixels(rows, columns, name)
    load_pixels(image, name)
    return image


def load_pixels(image: Image.Image, name: str) -> None:
    """Reads the pixels of an image that may only have been opened; raises ValueError, with this name, if they can't."""
    try:
        image.load()
    except (*READ_ERRORS, SyntaxError) as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> ValueError:
    return ValueError(f"{name}: found no readable image ({one_line(error)}), expected for example a PNG; convert it")
