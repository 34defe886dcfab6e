"""Reading digital radiographs (DICOM CR and DX) as grey images.

Only the elements that describe the pixels are read from a file: who the patient is never enters memory or a message.
"""

import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from .fields import one_line
from .limits import check_file, check_pixels

DICOM_SUFFIXES = (".dcm", ".dicom")

PROJECTION_MODALITIES = ("CR", "DX", "RG", "RF", "XA")
"""Modalities whose images are projections; many files that were made anonymous name none, and pass."""

PIXEL_ELEMENTS = (
    "Modality",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "VOILUTSequence",
    "VOILUTFunction",
    "WindowCenter",
    "WindowWidth",
    "PixelData",
)

_REAL_RADIOGRAPH = "real_radiograph"
_FILTERS = threading.RLock()
READ_ERRORS = (
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    MemoryError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What pydicom and the decoders beneath it raise for files that are damaged, incomplete or encoded in a way they lack,
beside pydicom's own errors; see `dicom_errors`."""


def import_pydicom() -> Any:
    """Returns the module `pydicom`; raises ImportError with the command that installs it."""
    try:
        import pydicom
    except ImportError as error:
        raise ImportError("reading DICOM needs pydicom: pip install hf-vq[medical]") from error
    return pydicom


def dicom_errors() -> tuple[type[Exception], ...]:
    """What reading a damaged DICOM file raises: `READ_ERRORS` and pydicom's own errors, which are no ValueErrors."""
    errors = import_pydicom().errors
    return (errors.InvalidDicomError, errors.BytesLengthException, *READ_ERRORS)


def has_dicom_mark(path: str | Path) -> bool:
    """Returns whether an existing file begins as DICOM does: a preamble of 128 bytes, then DICM."""
    with Path(path).open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def is_dicom(path: str | Path) -> bool:
    """Returns whether an existing file says that it is DICOM, by its first bytes or its suffix."""
    return Path(path).suffix.lower() in DICOM_SUFFIXES or has_dicom_mark(path)


def is_whole_dicom(path: Path) -> bool:
    """Returns whether a path leads to a DICOM file; raises ValueError for one that only says so by its name.

    Raises:
        ValueError: it is called DICOM and is missing, no file or without the mark of the format, or it may not be read;
            the message does not say where it lies.
    """
    named = path.suffix.lower() in DICOM_SUFFIXES
    if not named and not path.is_file():
        return False  # links that lead nowhere, pipes, and what else is no scan
    try:
        check_file(path, "a DICOM file")
    except ValueError as error:
        if not named and not path.stat().st_size:
            return False
        raise ValueError(str(error).removeprefix(f"{path}: ")) from error
    if has_dicom_mark(path):
        return True
    if named:
        raise ValueError(
            f"found no DICM behind a preamble of 128 bytes in {path.stat().st_size} bytes, expected it in a DICOM "
            "file; copy the file again or convert it to DICOM's file format"
        )
    return False


def is_deflated(path: str | Path) -> bool:
    """Returns whether a DICOM file is compressed as a whole, so that nothing says how large it becomes.

    Raises:
        pydicom's errors and others: see `dicom_errors`.
    """
    pydicom = import_pydicom()
    with quiet():
        syntax = pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID")
    return bool(syntax == pydicom.uid.DeflatedExplicitVRLittleEndian)


@contextmanager
def quiet(category: type[Warning] = Warning) -> Iterator[None]:
    """Keeps back warnings: pydicom's quote values that may tell who the patient is. One thread at a time, because the
    filters are those of the whole process, and threads that overlap would put back each other's."""
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore", category)
        yield


def is_real_radiograph(image: Any) -> bool:
    """Returns whether an image comes from `read_radiograph`."""
    return isinstance(image, Image.Image) and bool(image.info.get(_REAL_RADIOGRAPH))


def read_radiograph(path: str | Path) -> Image.Image:
    """Reads a DICOM radiograph as its maker meant it to be shown, dense structures bright.

    The stored values go through the modality's rescaling, then through the first look-up table or window that the file
    holds, and without one the range of all values that its stored bits can hold becomes black to white. MONOCHROME1,
    in which low values are bright, is inverted.

    Args:
        path: DICOM file with one grey frame of a projection.

    Returns:
        Image of mode F, values in [0, 1].

    Raises:
        ValueError: the file is unreadable, holds something else, or declares more pixels than `limits.max_pixels`.
        ImportError: pydicom is not installed.
    """
    dataset = _read_elements(path)
    _check_kind(dataset, str(path))
    try:
        with quiet():
            shown = _displayed(dataset.pixel_array, dataset)
    except dicom_errors() as error:
        raise ValueError(
            f"{path}: found pixels that cannot be read ({one_line(error)}), expected a whole DICOM image; copy it "
            "again, or install the decoder that is named"
        ) from error
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shown = 1 - shown
    image = Image.fromarray(shown.astype(np.float32))
    image.info[_REAL_RADIOGRAPH] = True
    return image


def _read_elements(path: str | Path) -> Any:
    """The elements of a DICOM file that describe its pixels."""
    pydicom = import_pydicom()
    try:
        if not is_deflated(path):
            with quiet():
                dataset = pydicom.dcmread(path, specific_tags=list(PIXEL_ELEMENTS))
                # pydicom decodes an element when it is first asked for, and says then what is wrong with it
                list(dataset)
            return dataset
    except dicom_errors() as error:
        raise ValueError(
            f"{path}: found no readable DICOM file ({one_line(error)}), expected a radiograph; copy or convert it again"
        ) from error
    raise ValueError(f"{path}: found a deflated DICOM file, expected one that tells its size; store it uncompressed")


def _check_kind(dataset: Any, name: str) -> None:
    """Raises ValueError unless the file holds one grey frame of a projection."""
    modality = dataset.get("Modality") or PROJECTION_MODALITIES[0]
    if modality not in PROJECTION_MODALITIES:
        raise ValueError(
            f"{name}: found modality {modality}, expected a radiograph, one of {list(PROJECTION_MODALITIES)}; "
            "choose another file"
        )
    colours = dataset.get("PhotometricInterpretation")
    if colours not in ("MONOCHROME1", "MONOCHROME2") or dataset.get("SamplesPerPixel", 1) != 1:
        raise ValueError(
            f"{name}: found photometric interpretation {colours}, expected MONOCHROME1 or MONOCHROME2; convert it"
        )
    if _whole(dataset, "NumberOfFrames", name, 1) != 1:
        raise ValueError(f"{name}: found {dataset.NumberOfFrames} frames, expected one image; choose one frame")
    if not 1 <= _whole(dataset, "BitsStored", name) <= 16:
        raise ValueError(f"{name}: found {dataset.get('BitsStored')} bits stored, expected 1 to 16; convert it")
    rows, columns = (_whole(dataset, element, name) for element in ("Rows", "Columns"))
    if rows and columns:
        check_pixels(rows, columns, name)


def _whole(dataset: Any, element: str, name: str, default: int = 0) -> int:
    """The whole number of an element; raises ValueError when it holds something else."""
    value = dataset.get(element)
    try:
        return int(value or default)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{name}: found {element} of {type(value).__name__}, expected a whole number; export the image again"
        ) from error


def _displayed(stored: npt.NDArray[Any], dataset: Any) -> npt.NDArray[np.float64]:
    """Grey values in [0, 1] of stored ones (DICOM PS3.3, C.11.1 and C.11.2)."""
    from pydicom.pixels.processing import apply_modality_lut, apply_voi

    values = np.asarray(apply_modality_lut(stored, dataset), dtype=np.float64)
    if dataset.get("VOILUTSequence"):
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        return np.asarray(apply_voi(np.rint(values).astype(np.int64), dataset) / (2.0**bits - 1))
    center, width = (_first(dataset.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if center is not None and width is not None:
        return _windowed(values, center, width, dataset.get("VOILUTFunction") or "LINEAR")
    offset = 2 ** (dataset.BitsStored - 1) if dataset.PixelRepresentation else 0
    possible = apply_modality_lut(np.arange(2**dataset.BitsStored) - offset, dataset)
    if possible.min() == possible.max():
        raise ValueError(f"rescale slope {dataset.get('RescaleSlope')}")
    return (values - possible.min()) / (possible.max() - possible.min())


def _windowed(values: npt.NDArray[np.float64], center: float, width: float, function: str) -> npt.NDArray[np.float64]:
    """Applies a window (DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3), black to white being 0 to 1."""
    if function == "SIGMOID" and width > 0:
        return 1 / (1 + np.exp(-4 * (values - center) / width))
    if function == "LINEAR_EXACT" and width > 0:
        return ((values - center) / width + 0.5).clip(0, 1)
    if function == "LINEAR" and width > 1:
        return ((values - center + 0.5) / (width - 1) + 0.5).clip(0, 1)
    if function == "LINEAR" and width == 1:
        return (values > center - 0.5).astype(np.float64)
    raise ValueError(f"window {function} of width {width:g}")


def _first(value: Any) -> float | None:
    """The first of the values that an element may hold, None for an empty one."""
    if value is None or isinstance(value, str):
        return None if not value else float(value)
    values = list(value) if hasattr(value, "__iter__") else [value]
    return float(values[0]) if values else None
