"""Reading one CT scan, from a file or from memory, with every check that a scan must pass."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .fields import one_line
from .geometry import check_affine, import_nibabel
from .limits import check_voxels
from .nifti_headers import check_nifti_header, decode_nifti, no_nifti, read_errors


def read_scan(
    source: Any, affine: Any = None, label: str = "volume"
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Reads a scan in HU, in its storage order.

    Args:
        source: path of a NIfTI file, nibabel image, or (x, y, z) array or tensor.
        affine: (4, 4) voxel index to RAS+ world, mm; required for arrays and tensors, refused for the others.
        label: what errors call a scan that has no file name.

    Returns:
        The (x, y, z) float32 voxels and the (4, 4) affine, mm.

    Raises:
        ValueError: the file is not a readable NIfTI file or declares more than `limits.max_voxels`, the array is not
            3D and finite, or the affine is missing or invalid.
    """
    if isinstance(source, torch.Tensor):
        source = source.detach().cpu().numpy()
    if isinstance(source, np.ndarray):
        return _checked(source, label), check_affine(affine, label)
    image = _whole_nifti(source) if isinstance(source, str | Path) else source
    if not hasattr(image, "dataobj"):
        raise ValueError(
            f"{label}: found {type(image).__name__}, expected a path, a nibabel image, or an array with its affine; "
            "convert it to one of these"
        )
    name = str(source) if isinstance(source, str | Path) else image.get_filename() or label
    if affine is not None:
        raise ValueError(f"{name}: found an affine beside an image that has its own, expected none; drop `affines`")
    return _checked(_voxels(image, name), name), _image_affine(image, name)


def open_nifti(path: str | Path) -> Any:
    """Opens a NIfTI file as a nibabel image, its voxels unread.

    Raises:
        ValueError: as `nifti_headers.check_nifti_header`, or the header cannot be read.
        ImportError: nibabel is missing.
    """
    check_nifti_header(path)
    try:
        return import_nibabel().load(path)
    except read_errors() as error:
        raise no_nifti(str(path), one_line(error)) from error


def _whole_nifti(path: str | Path) -> Any:
    """A NIfTI file as a nibabel image; nibabel itself stops before the checksum of a gzip file, and so takes one with a
    bit turned over for a scan."""
    if not str(path).lower().endswith(".gz"):
        return open_nifti(path)
    check_nifti_header(path)
    return decode_nifti(Path(path).read_bytes(), str(path))


def _image_affine(image: Any, name: str) -> npt.NDArray[np.float64]:
    """The affine of a nibabel image; one that nibabel made up because the header has none is refused."""
    header = image.header
    if "sform_code" in header and int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
        raise ValueError(
            f"{name}: found neither sform nor qform in the header, expected the voxel spacing and orientation; "
            "write the scan with its affine in mm"
        )
    return check_affine(image.affine, name)


def _voxels(image: Any, name: str) -> npt.NDArray[Any]:
    """The scaled voxels of a nibabel image."""
    if image.get_data_dtype().kind not in "iuf":
        raise ValueError(f"{name}: found voxels of type {image.get_data_dtype()}, expected one HU value per voxel")
    check_voxels(image.shape, name)
    try:
        return np.asarray(image.dataobj, dtype=np.float32)
    except read_errors() as error:
        raise ValueError(
            f"{name}: found voxels that cannot be read ({one_line(error)}), expected a whole file; copy it again"
        ) from error


def _checked(array: npt.NDArray[Any], name: str) -> npt.NDArray[np.float32]:
    """A 3D, finite, float32 version of the array; trailing axes of length one are dropped."""
    if array.ndim > 3 and set(array.shape[3:]) == {1}:
        array = array.reshape(array.shape[:3])
    if array.ndim != 3 or 0 in array.shape:
        raise ValueError(
            f"{name}: found an array of shape {array.shape}, expected three axes (x, y, z) of one voxel or more; pass "
            "one volume at a time"
        )
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{name}: found voxels of type {array.dtype}, expected one HU value per voxel")
    array = array.astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        count = int(np.count_nonzero(~np.isfinite(array)))
        raise ValueError(
            f"{name}: found {count} NaN or infinite voxels, expected finite HU; repair or exclude the scan"
        )
    return array
