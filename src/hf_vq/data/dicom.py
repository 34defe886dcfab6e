"""CT series in DICOM files: found by their series UID, checked, and read in Hounsfield units with a RAS+ affine.

No tag that could identify a patient leaves this module, neither in what it returns nor in its errors: a series is known
by its folder and a digest of its UID, a patient by a digest of the PatientID.
"""

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..processors.dicom_radiographs import dicom_errors, import_pydicom, is_deflated, is_whole_dicom, quiet
from ..processors.fields import one_line
from ..processors.limits import check_pixels, check_voxels

Array = npt.NDArray[np.float64]

HU_RESCALE_TYPES = ("", "HU", "US")
"""Values of RescaleType that leave Hounsfield units possible; scanners write US, unspecified, for them too."""

SLICE_TOLERANCE = 0.2
"""How far a slice may lie from its place in an even stack, in slice distances: positions are stored rounded."""

DRIFT_TOLERANCE = 0.5
"""How far a slice may lie sideways of the first one's normal, in pixels; beyond it the stack counts as sheared."""

TILT_TOLERANCE = 0.1
"""Gantry tilt in degrees that counts as none."""

DUPLICATE_TOLERANCE = 0.01
"""Distance in mm below which two slices count as lying at the same place."""

SPACING_TOLERANCE = 1e-4
"""Relative difference of pixel spacings that counts as none: less than a twentieth of a pixel over 512."""

ORIENTATION_TOLERANCE = 1e-3
"""Difference of direction cosines that counts as none: they are stored rounded."""

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""DICOM's world has x towards the patient's left and y towards posterior, NIfTI's towards right and anterior."""

DICOMDIR_UID = "1.2.840.10008.1.3.10"

_UNTILT = "correct the tilt while converting the series to NIfTI, for example with dcm2niix, or leave it out"
_COUNT_TAGS = ("NumberOfFrames", "SamplesPerPixel")
_GEOMETRY_TAGS = (
    "Modality",
    "ImageType",
    *_COUNT_TAGS,
    "Rows",
    "Columns",
    "PixelSpacing",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "GantryDetectorTilt",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
)


@dataclass(frozen=True)
class DicomSeries:
    """The files of one series, unread.

    Attributes:
        name: what errors and reports call it: the folder of its first file below the searched one, and `key`.
        key: digest of its SeriesInstanceUID and the salt.
        patient: anonymous name of its patient, a digest of the PatientID; None where the files have none.
        files: its files, sorted by path.
    """

    name: str
    key: str
    patient: str | None
    files: tuple[Path, ...]


@dataclass(frozen=True)
class _Slice:
    """Geometry and intensity scale of one image, coordinates in the LPS+ sense of DICOM, mm."""

    path: Path
    shape: tuple[int, int]
    spacing: Array
    orientation: Array
    position: Array
    slope: float
    intercept: float


def anonymous_name(patient_id: str, salt: str = "") -> str:
    """Returns the name under which a patient is known outside this module.

    Args:
        patient_id: the PatientID; spaces around it do not count.
        salt: secret text mixed in. Without it anybody can find a PatientID by trying out all that are possible.
    """
    return "p" + salted_digest(patient_id.strip(), salt, 12)


def salted_digest(text: str, salt: str, length: int) -> str:
    """Returns so many hexadecimal digits of a digest that nobody can try out texts against without the salt."""
    return hashlib.sha256(f"{salt}\0{text}".encode()).hexdigest()[:length]


def find_series(
    folder: str | Path, salt: str = "", files: Iterable[Path] | None = None
) -> tuple[list[DicomSeries], dict[Path, str]]:
    """Finds the DICOM series below a folder, whatever its nesting and the names of its files.

    A file is DICOM when it bears the mark of the format behind its preamble. One that lacks it though its name says
    that it is DICOM is named as damaged, and so is one that may not be read; others and DICOMDIR are left out.

    Args:
        folder: where to look.
        salt: as in `anonymous_name`; it goes into the keys of the series too.
        files: the files to look at; all below `folder` when absent.

    Returns:
        The series sorted by name, and for each DICOM file that belongs to none what is wrong with it.

    Raises:
        ImportError: pydicom is missing.
    """
    groups: dict[str, list[tuple[Path, str]]] = {}
    damaged: dict[Path, str] = {}
    for path in sorted(Path(folder).rglob("*")) if files is None else files:
        if path.is_dir():
            continue
        try:
            if not is_whole_dicom(path):
                continue
            tags = _read_tags(path, ("SeriesInstanceUID", "PatientID"))
        except ValueError as error:
            damaged[path] = str(error)
            continue
        uid = str(tags["SeriesInstanceUID"] or "")
        if uid:
            groups.setdefault(uid, []).append((path, str(tags["PatientID"] or "").strip()))
        elif tags["MediaStorageSOPClassUID"] != DICOMDIR_UID:
            damaged[path] = "found no SeriesInstanceUID, expected one in an image; copy the file again"
    series = [_series(Path(folder), uid, members, salt) for uid, members in groups.items()]
    return sorted(series, key=lambda one: one.name), damaged


def read_series(
    series: DicomSeries, modalities: Collection[str] = ("CT",)
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Reads a series as one volume.

    Slices are ordered by their position along the common normal, never by file name or number. Stored values become HU
    by each slice's own slope and intercept: HU = RescaleSlope * value + RescaleIntercept.

    Args:
        series: one that `find_series` found.
        modalities: values of the Modality tag that are accepted.

    Returns:
        The (x, y, z) float32 HU, x running along the rows of the images, y along their columns and z along their
        normal, and the (4, 4) affine from voxel index to RAS+ world, mm.

    Raises:
        ValueError: the series is a localizer or of another modality; its images differ in size, pixel spacing or
            orientation, lie at one place, irregularly (slices are missing) or sheared (gantry tilt); a tag that is
            needed is missing; the pixels cannot be decoded.
        ImportError: pydicom is missing.
    """
    try:
        slices = [_read_slice(path, modalities) for path in series.files]
        _check_alike(slices)
        check_voxels((slices[0].shape[1], slices[0].shape[0], len(slices)), f"{len(slices)} files")
        ordered, affine = _stack(slices)
        images = (one.slope * _read_pixels(one) + one.intercept for one in ordered)
        first = next(images)  # before there is room for all: what the headers declare may not be there
        volume = np.empty((len(ordered), *first.shape), dtype=np.float32)
        volume[0] = first
        for index, image in enumerate(images, start=1):
            volume[index] = image
    except ValueError as error:
        raise ValueError(f"{series.name}: {error}") from error
    return volume.transpose(2, 1, 0), affine


def _series(folder: Path, uid: str, members: Sequence[tuple[Path, str]], salt: str) -> DicomSeries:
    """A series of files with their PatientIDs; where these are missing or disagree it has no patient."""
    files = tuple(sorted(path for path, _ in members))
    key = salted_digest(uid, salt, 12)
    patient_ids = {patient_id for _, patient_id in members}
    patient = anonymous_name(patient_ids.pop(), salt) if len(patient_ids) == 1 and all(patient_ids) else None
    place = files[0].parent.relative_to(folder) if files[0].is_relative_to(folder) else files[0].parent
    return DicomSeries(f"{place.as_posix()} (series {key})", key, patient, files)


def _read_tags(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """The values of some tags of a file, None where it lacks one, and the two of its file header that we need.

    The messages of pydicom are not passed on, because they quote values.
    """
    pydicom = import_pydicom()
    try:
        with quiet():
            if not is_deflated(path):
                header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(names))
                of_file = {tag: header.file_meta.get(tag) for tag in ("TransferSyntaxUID", "MediaStorageSOPClassUID")}
                return {name: header.get(name) for name in names} | of_file
    except dicom_errors() as error:
        raise ValueError(
            f"{path.name}: found a damaged DICOM file ({type(error).__name__}), expected a whole one; copy it again"
        ) from None
    raise ValueError(
        f"{path.name}: found a deflated DICOM file, expected one that tells its size; store it uncompressed"
    )


def _read_slice(path: Path, modalities: Collection[str]) -> _Slice:
    """The geometry of one file, after all checks that need no other file."""
    tags = _read_tags(path, _GEOMETRY_TAGS)
    _check_kind(tags, modalities)
    _check_decodable(tags["TransferSyntaxUID"])
    rows, columns = (int(_numbers(tags, name, 1)[0]) for name in ("Rows", "Columns"))
    check_pixels(rows, columns, path.name)
    slope, intercept = (float(_numbers(tags, name, 1)[0]) for name in ("RescaleSlope", "RescaleIntercept"))
    spacing = _numbers(tags, "PixelSpacing", 2)
    if slope == 0 or (spacing <= 0).any():
        raise ValueError(
            f"{path.name}: found RescaleSlope {slope:g} and PixelSpacing {spacing.tolist()}, expected a slope other "
            "than 0 and sizes in mm; export the series again"
        )
    orientation = _numbers(tags, "ImageOrientationPatient", 6)
    position = _numbers(tags, "ImagePositionPatient", 3)
    return _Slice(path, (rows, columns), spacing, orientation, position, slope, intercept)


def _check_kind(tags: dict[str, Any], modalities: Collection[str]) -> None:
    """Raises ValueError unless the tags are those of one upright slice of an accepted modality in Hounsfield units."""
    tilt = 0.0 if tags["GantryDetectorTilt"] in (None, "") else float(_numbers(tags, "GantryDetectorTilt", 1)[0])
    rescale_type = str(tags["RescaleType"] or "").strip()
    if str(tags["Modality"] or "") not in modalities:
        raise ValueError(
            f"found modality {str(tags['Modality'] or '')!r}, expected one of {sorted(modalities)}; leave the series "
            "out or accept its modality"
        )
    if "LOCALIZER" in str(tags["ImageType"]):
        raise ValueError("found a localizer (ImageType LOCALIZER), expected axial slices; leave the series out")
    frames, samples = (float(_numbers(tags, name, 1)[0]) if tags[name] else 1.0 for name in _COUNT_TAGS)
    if (frames, samples) != (1, 1):
        raise ValueError(
            f"found {frames:g} frames of {samples:g} samples in one file, expected one grey slice; convert the series "
            "to NIfTI, for example with dcm2niix"
        )
    if abs(tilt) > TILT_TOLERANCE:
        raise ValueError(f"found a gantry tilt of {tilt:g} degrees, expected 0; {_UNTILT}")
    if tags["Modality"] == "CT" and rescale_type not in HU_RESCALE_TYPES:
        raise ValueError(f"found RescaleType {rescale_type!r}, expected HU; leave the series out")


def _check_decodable(transfer_syntax: Any) -> None:
    """Raises ValueError when the pixels are compressed in a way that nothing installed can decode."""
    get_decoder = import_pydicom().pixels.get_decoder
    name = getattr(transfer_syntax, "name", transfer_syntax)
    try:
        decoder = get_decoder(transfer_syntax)
    except (NotImplementedError, AttributeError, TypeError):
        raise ValueError(
            f"found pixels stored as {name!r}, expected a transfer syntax that pydicom knows; decompress the files "
            "first, for example with gdcmconv --raw"
        ) from None
    if not decoder.is_available:
        raise ValueError(
            f"found pixels compressed as {name!r}, expected a decoder for them; install one "
            f"({'; or '.join(decoder.missing_dependencies)}) or decompress the files, for example with gdcmconv --raw"
        )


def _numbers(tags: dict[str, Any], name: str, count: int) -> Array:
    """The finite numbers of a tag, shape (count,)."""
    value = tags[name]
    try:
        array = np.atleast_1d(np.asarray([] if value is None or value == "" else value, dtype=np.float64))
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            f"found {name} of type {type(value).__name__}, expected {count} finite number{'s' * (count > 1)}; export "
            "the series again or leave it out"
        ) from None
    if array.shape != (count,) or not np.isfinite(array).all():
        raise ValueError(
            f"found {name} {array[:9].tolist()}, expected {count} finite number{'s' * (count > 1)}; export the series "
            "again or leave it out"
        )
    return array


def _check_alike(slices: Sequence[_Slice]) -> None:
    """Raises ValueError unless all slices have one size, pixel spacing and orientation, and there are two at least."""
    if len(slices) < 2:
        raise ValueError(f"found {len(slices)} slice, expected at least 2; complete the series or leave it out")
    first = slices[0]
    for name, values, tolerance in (
        ("size (rows, columns)", [np.asarray(one.shape) for one in slices], 0.0),
        ("pixel spacing", [one.spacing for one in slices], SPACING_TOLERANCE * first.spacing.max()),
        ("orientation", [one.orientation for one in slices], ORIENTATION_TOLERANCE),
    ):
        other = next((value for value in values if np.abs(value - values[0]).max() > tolerance), None)
        if other is not None:
            raise ValueError(
                f"found {name} {values[0].tolist()} and {other.tolist()} in one series, "
                f"expected one {name.split(' (')[0]}; separate them or leave the series out"
            )
    row, column = first.orientation[:3], first.orientation[3:]
    if np.abs([row @ row - 1, column @ column - 1, row @ column]).max() > 10 * ORIENTATION_TOLERANCE:
        raise ValueError(
            f"found ImageOrientationPatient {first.orientation.tolist()}, expected two perpendicular unit vectors; "
            "export the series again"
        )


def _stack(slices: Sequence[_Slice]) -> tuple[list[_Slice], Array]:
    """The slices in the order of their positions along the normal, and the affine of their stack in RAS+."""
    first = slices[0]
    row, column = first.orientation[:3], first.orientation[3:]
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    heights = np.array([one.position @ normal for one in slices])
    order = np.argsort(heights)
    ordered = [slices[index] for index in order]
    step = _even_step(heights[order])
    _check_upright(np.array([one.position for one in ordered]), normal, float(first.spacing.min()))
    affine = np.eye(4)
    between_rows, between_columns = first.spacing
    affine[:3, :3] = np.stack([row * between_columns, column * between_rows, normal * step], axis=1)
    affine[:3, 3] = ordered[0].position
    return ordered, LPS_TO_RAS @ affine


def _even_step(heights: Array) -> float:
    """The distance of slices at these ascending heights, mm; raises ValueError when two coincide or it varies."""
    gaps = np.diff(heights)
    step = float(heights[-1] - heights[0]) / len(gaps)
    if gaps.min() < DUPLICATE_TOLERANCE:
        raise ValueError(
            f"found {int((gaps < DUPLICATE_TOLERANCE).sum()) + 1} slices at the same positions (first at "
            f"{heights[int(gaps.argmin())]:g} mm), expected each once; remove copies or separate the acquisitions"
        )
    uneven = np.abs(heights - heights[0] - step * np.arange(len(heights))) > SLICE_TOLERANCE * step
    if uneven.any() or gaps.max() > (1 + 2 * SLICE_TOLERANCE) * np.median(gaps):
        raise ValueError(
            f"found slice distances of {gaps.min():g} ... {gaps.max():g} mm, expected equal ones (median "
            f"{np.median(gaps):g} mm); slices are missing: complete the series or leave it out"
        )
    return step


def _check_upright(positions: Array, normal: Array, pixel: float) -> None:
    """Raises ValueError when slices at these (N, 3) positions do not lie behind each other along the normal."""
    offsets = positions - positions[0]
    sideways = np.linalg.norm(offsets - np.outer(offsets @ normal, normal), axis=1)
    if sideways.max() > DRIFT_TOLERANCE * pixel:
        angle = np.degrees(np.arctan2(sideways[-1], offsets[-1] @ normal))
        raise ValueError(
            f"found slices shifted sideways by up to {sideways.max():g} mm (a shear of {angle:.1f} degrees), expected "
            f"less than {DRIFT_TOLERANCE * pixel:g} mm; {_UNTILT}"
        )


def _read_pixels(one: _Slice) -> npt.NDArray[Any]:
    """The stored values of one slice, (rows, columns)."""
    pixel_array = import_pydicom().pixels.pixel_array
    try:
        with quiet():
            pixels = np.asarray(pixel_array(one.path))
    # each of the decoding libraries has exceptions of its own
    except Exception as error:
        raise ValueError(
            f"{one.path.name}: found pixels that cannot be decoded ({one_line(error)}), expected a whole file; "
            "copy it again"
        ) from error
    if pixels.shape != one.shape:
        raise ValueError(
            f"{one.path.name}: found pixels of shape {pixels.shape}, expected {one.shape}; export the series again"
        )
    return pixels
