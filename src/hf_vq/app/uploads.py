"""Files that anybody may upload: what they declare is checked before anything large is decoded or allocated.

Every check raises ValueError with a message that can be shown as it is: it names the file without its folder.
"""

import math
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from ..evaluation.volumes import GridVolume, read_volume
from ..processors.dicom_radiographs import READ_ERRORS, dicom_errors, import_pydicom, is_deflated, is_dicom
from ..processors.fields import one_line
from ..processors.image_files import open_image
from ..processors.image_processing_xray import read_image
from ..processors.nifti_headers import read_declaration

MAX_VIEW_SIDE = 8192
"""Most rows or columns of an X-ray."""

MAX_VOLUME_SIDE = 1024
MAX_VOXELS = 2**27
"""Most voxels along an axis of an uploaded scan, and in all of it: 512 x 512 x 512."""

MAX_VOXEL_BYTES = 8


def read_view(path: str | Path) -> Image.Image:
    """Reads an uploaded X-ray.

    Args:
        path: PNG file (grey, 8 or 16 bit) or DICOM radiograph.

    Returns:
        The image as `XrayImageProcessor` takes it.

    Raises:
        ValueError: the file is damaged, of another kind, not grey, or has more than `MAX_VIEW_SIDE` rows or columns.
    """
    with _shown_without_folder(path):
        if is_dicom(path):
            _check_dicom(path)
        else:
            _check_png(path)
        image = open_image(path)
        read_image(image)
        return image


def read_views(views: Mapping[str, Any]) -> dict[str, Any]:
    """Images of views by name: paths are read as by `read_view`, which may raise ValueError; images stay."""
    return {name: read_view(view) if isinstance(view, str | Path) else view for name, view in views.items()}


def read_scan(path: str | Path) -> GridVolume:
    """Reads an uploaded CT scan.

    Args:
        path: NIfTI file (.nii or .nii.gz), voxels in HU.

    Returns:
        The scan with its axes in canonical order.

    Raises:
        ValueError: the file is damaged, of another kind, or declares more voxels than `MAX_VOXELS`.
    """
    with _shown_without_folder(path):
        _check_nifti(path)
        return read_volume(path)


@contextmanager
def _shown_without_folder(path: str | Path) -> Iterator[None]:
    """Turns whatever a reader raises for a bad file into a ValueError that does not tell where uploads lie."""
    try:
        yield
    except (*READ_ERRORS, Image.DecompressionBombError) as error:
        message = one_line(error).replace(str(path), Path(path).name)
        if not isinstance(error, ValueError):
            message = f"{Path(path).name}: found a file that cannot be read ({message}); copy or convert it again"
        raise ValueError(message) from error


def _check_png(path: str | Path) -> None:
    """Raises ValueError unless the file begins as a PNG image of a bearable size; its pixels stay unread."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            columns, rows = image.size
    except (OSError, SyntaxError, struct.error, zlib.error) as error:
        raise ValueError(
            f"{path}: found no PNG image and no DICOM file, expected a grey X-ray as one of these; convert it"
        ) from error
    _check_view_size(path, rows, columns)


def _check_dicom(path: str | Path) -> None:
    """Raises ValueError for a DICOM file that would unfold to an unknown size, or declares too large an image."""
    pydicom = import_pydicom()
    try:
        tags = ["Rows", "Columns"]
        header = None if is_deflated(path) else pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
        rows, columns = (0, 0) if header is None else (int(header.get(name) or 0) for name in ("Rows", "Columns"))
    except dicom_errors() as error:
        raise ValueError(
            f"{path}: found no readable DICOM file ({one_line(error)}), expected a radiograph; copy or convert it again"
        ) from error
    if header is None:
        raise ValueError(f"{path}: found a deflated DICOM file, which is not taken here; store it uncompressed")
    _check_view_size(path, rows, columns)


def _check_view_size(path: str | Path, rows: int, columns: int) -> None:
    if not (1 <= rows <= MAX_VIEW_SIDE and 1 <= columns <= MAX_VIEW_SIDE):
        raise ValueError(
            f"{path}: found {rows} x {columns} pixels, expected 1 to {MAX_VIEW_SIDE} along each side; resize it"
        )


def _check_nifti(path: str | Path) -> None:
    """Raises ValueError unless the header declares one volume of a bearable size; the voxels stay unread."""
    declared = read_declaration(path)
    shape, itemsize = declared.shape, declared.itemsize
    if max(shape) > MAX_VOLUME_SIDE or math.prod(shape) > MAX_VOXELS or itemsize > MAX_VOXEL_BYTES:
        raise ValueError(
            f"{path}: found {declared.sides} voxels of {itemsize} bytes, expected at most {MAX_VOLUME_SIDE} along an "
            f"axis, {MAX_VOXELS} in all and {MAX_VOXEL_BYTES} bytes each; crop or resample the scan"
        )
