"""Finding the scans below a folder, DICOM series and NIfTI files mixed, and telling whose they are."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TypeVar

from .dicom import DicomSeries, anonymous_name, find_series, salted_digest

Value = TypeVar("Value")

PATIENT_FROM = ("id", "digest", "folder")
"""Where a patient's name comes from: a digest of the PatientID, or the NIfTI file's name as it is; the same with a
digest of the NIfTI file's name too; or a digest of the outermost folder's name."""

NIFTI_SUFFIXES = (".nii.gz", ".nii")


@dataclass(frozen=True)
class ScanSource:
    """One scan on disk, unread.

    Attributes:
        name: what reports call it: its path below the searched folder, for a series also its digest.
        key: name of its record, unique among the scans of a folder and the same in every run.
        kind: "dicom" or "nifti".
        files: its files.
        patient: name of its patient, anonymous unless it is that of a NIfTI file; empty where it is unknown.
        suffix: tells this scan from others of its patient; empty where the patient's name does.
        series: the DICOM series, None for NIfTI.
        problem: why it cannot be used, where that is known without reading it.
    """

    name: str
    key: str
    kind: str
    files: tuple[Path, ...]
    patient: str = ""
    suffix: str = ""
    series: DicomSeries | None = None
    problem: str = ""

    @property
    def subject(self) -> str:
        """Name of the scan in a prepared data set, which is also that of its files."""
        return "_".join(part for part in (self.patient, self.suffix) if part)


def find_scans(
    folder: str | Path,
    patient_from: str = "id",
    salt: str = "",
    nifti_pattern: str = "*",
    progress: Callable[[Sequence[Path]], Iterable[Path]] = iter,
) -> tuple[list[ScanSource], int]:
    """Finds every DICOM series and NIfTI file below a folder; hidden files and folders are passed over.

    Args:
        folder: where to look; links to other folders are followed.
        patient_from: one of `PATIENT_FROM`.
        salt: secret text mixed into anonymous names and keys; see `anonymous_name`.
        nifti_pattern: shell pattern that the path of a NIfTI file below `folder` must match; others are no inputs.
        progress: wraps the list of files while it is looked through, such as `tqdm`.

    Returns:
        The scans sorted by name, and the number of files that are neither DICOM nor NIfTI inputs.

    Raises:
        ValueError: the folder is missing, holds no scan, or a folder in it cannot be read.
        ImportError: there are DICOM files and pydicom is missing.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"{folder}: found no such folder, expected one with scans; check the path")
    files = _list_files(root)
    nifti = [path for path in files if path.name.endswith(NIFTI_SUFFIXES)]
    chosen = [path for path in nifti if fnmatch(path.relative_to(root).as_posix(), nifti_pattern)]
    others = sorted(set(files) - set(nifti))
    series, damaged = find_series(root, salt, progress(others))
    sources = [_nifti_source(root, path, patient_from, salt) for path in chosen]
    sources += [_dicom_source(root, one, patient_from, salt) for one in series]
    sources += [_damaged_source(root, path, problem, salt) for path, problem in damaged.items()]
    if not sources:
        raise ValueError(f"{folder}: found no scan in {len(files)} files, expected DICOM series or NIfTI files")
    num_used = sum(len(source.files) for source in sources)
    return _refuse_ambiguous(sorted(sources, key=lambda source: source.name)), len(files) - num_used


def rename_patients(sources: Iterable[ScanSource], names: Mapping[str, str], salt: str = "") -> list[ScanSource]:
    """Gives patients the names that the user has chosen.

    Args:
        sources: the scans.
        names: new name for each patient, known by the name it has in `sources` or by the PatientID.
        salt: the one that `find_scans` was called with.

    Returns:
        The scans, those of other patients unchanged.

    Raises:
        ValueError: two patients would get one name, or a name cannot be a file's.
    """
    for name, count in Counter(names.values()).items():
        if count > 1 or not name.strip(".") or any(character in name for character in "/\\\0"):
            raise ValueError(
                f"found {count} patients to be named {name!r}, expected one and a name that can be a file's; correct "
                "the file"
            )
    known = by_patient(names, salt)
    return [replace(source, patient=known.get(source.patient, source.patient)) for source in sources]


def by_patient(table: Mapping[str, Value], salt: str = "") -> dict[str, Value]:
    """Returns a table keyed by patient with the anonymous name of each key beside it, so that PatientIDs work too."""
    return {anonymous_name(patient, salt): value for patient, value in table.items()} | dict(table)


def _list_files(root: Path) -> list[Path]:
    """All files below a folder that are not hidden, sorted; what several links lead to is listed once.

    A folder that may not be looked into raises ValueError: the scans in it would be missing without a word.
    """
    found: list[Path] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(root, onerror=_refuse_folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real in seen:
            continue
        seen.add(real)
        found += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(found)


def _refuse_folder(error: OSError) -> None:
    raise ValueError(
        f"{error.filename}: found a folder that cannot be read ({error.strerror}), expected to look for scans in it; "
        "check its permissions, or give it a name that begins with a dot to leave it out"
    ) from error


def _key(kind: str, text: str, salt: str) -> str:
    return f"{kind}-{salted_digest(text, salt, 16)}"


def _patient_of_folder(root: Path, path: Path, salt: str) -> str:
    """Patient to whom the folder directly below the root belongs in which a file lies; empty for one in the root.

    Downloads name folders after the PatientID, so their names are made anonymous; and for files of both kinds, so that
    what lies in one folder belongs to one patient.
    """
    parts = path.relative_to(root).parts
    return anonymous_name(parts[0], salt) if len(parts) > 1 else ""


def _nifti_source(root: Path, path: Path, patient_from: str, salt: str) -> ScanSource:
    name = path.relative_to(root).as_posix()
    key = _key("nifti", name, salt)
    if patient_from == "folder":
        patient, suffix = _patient_of_folder(root, path, salt), key[-8:]
    else:
        stem = path.name.removesuffix(".gz").removesuffix(".nii")
        patient, suffix = anonymous_name(stem, salt) if patient_from == "digest" else stem, ""
    problem = "" if patient else "found the file in no folder, expected one named after the patient; move it into one"
    return ScanSource(name, key, "nifti", (path,), patient, suffix, problem=problem)


def _dicom_source(root: Path, series: DicomSeries, patient_from: str, salt: str) -> ScanSource:
    by_folder = patient_from == "folder"
    patient = _patient_of_folder(root, series.files[0], salt) if by_folder else series.patient or ""
    problem = (
        ""
        if patient
        else "found no single PatientID, expected one to divide the scans by patient; prepare with --patient_from "
        "folder, each patient in a folder"
    )
    return ScanSource(
        series.name, f"dicom-{series.key}", "dicom", series.files, patient, series.key[:8], series, problem
    )


def _damaged_source(root: Path, path: Path, problem: str, salt: str) -> ScanSource:
    name = path.relative_to(root).as_posix()
    return ScanSource(name, _key("dicom", name, salt), "dicom", (path,), problem=problem)


def _refuse_ambiguous(sources: list[ScanSource]) -> list[ScanSource]:
    """The scans, with a problem noted where several would have one subject name."""
    counts = Counter(source.subject for source in sources if not source.problem)
    return [
        source
        if source.problem or counts[source.subject] == 1
        else replace(
            source,
            problem=f"found {counts[source.subject]} files called {source.subject!r}, expected different names of "
            "different patients; rename them or prepare with --patient_from folder",
        )
        for source in sources
    ]
