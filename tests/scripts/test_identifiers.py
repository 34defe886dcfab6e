"""Who the patients are reaches no output and no message of the preparation, wherever in a file it stands."""

import gzip
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.datadict import DicomDictionary
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from script_calls import load

from hf_vq.data.dicom import _GEOMETRY_TAGS

ROOT = Path(__file__).parents[2]
SMALL = {"shape": (24, 20, 6), "spacing": (3.5, 3.4, 10.0)}
TEXT, DATE, TIME, UID = "MARKERSMITH", "19530727", "112233", "1.2.826.424242424242"
MARKERS = tuple(marker.encode() for marker in (TEXT, DATE, TIME, "424242424242"))
VALUES = {
    **dict.fromkeys(("LO", "SH", "ST", "LT", "UT", "UC", "AE", "CS", "UR"), TEXT),
    **{"PN": f"{TEXT}^JANE", "DA": DATE, "TM": TIME, "DT": DATE + TIME, "UI": UID, "AS": "071Y"},
}
NEEDED = {*_GEOMETRY_TAGS, "SpecificCharacterSet", "PhotometricInterpretation", "PatientID"}

phantom = load(ROOT / "tests" / "data" / "dicom_phantom.py")


def marked(dataset: Dataset, series: str) -> Dataset:
    """Puts a marker into every text, date and identifier that the DICOM dictionary has, and into private elements."""
    for tag, (vr, multiplicity, _, retired, keyword) in DicomDictionary.items():
        in_data_set = 0x0008 <= tag >> 16 <= 0x7FFF
        if in_data_set and vr in VALUES and keyword not in NEEDED and not retired and multiplicity.startswith("1"):
            dataset.add(DataElement(Tag(tag), vr, VALUES[vr]))
    dataset.SeriesInstanceUID = f"{UID}.{series}"
    dataset.PatientID = f"{TEXT}-1"
    item = Dataset()
    item.PatientName = f"{TEXT}^NESTED"
    dataset.OtherPatientIDsSequence = Sequence([item])
    block = dataset.private_block(0x0099, f"{TEXT} PRIVATE", create=True)
    block.add_new(0x01, "LO", TEXT)
    block.add_new(0x02, "OB", TEXT.encode() + b"\0")
    dataset.preamble = (TEXT.encode() * 12)[:128]
    dataset.file_meta.SourceApplicationEntityTitle = TEXT
    dataset.file_meta.PrivateInformationCreatorUID = UID
    dataset.file_meta.PrivateInformation = TEXT.encode() + b"\0"
    return dataset


def write_scans(folder: Path) -> None:
    """A good series and three faulty ones, and NIfTI files with names in their headers, one of them faulty."""
    phantom.write_series(folder / "good", **SMALL, edit=lambda one, index: marked(one, "1"))
    phantom.write_series(folder / "gap", **SMALL, edit=lambda one, index: None if index == 2 else marked(one, "2"))
    phantom.write_series(
        folder / "pixels", **SMALL, edit=lambda one, index: phantom.edited(Rows=400)(marked(one, "3"), index)
    )
    phantom.write_series(folder / "cut", **SMALL, edit=lambda one, index: marked(one, "4"))
    for path in (folder / "cut").iterdir():
        path.write_bytes(path.read_bytes()[:3000])
    hu = np.random.default_rng(0).integers(-1000, 1000, (12, 10, 8)).astype(np.float32)
    for name, value in (("a", 0.0), ("b", np.nan)):
        hu[0, 0, 0] = value
        image = nibabel.Nifti1Image(hu, np.diag([8.0, 8.0, 8.0, 1.0]))
        for field in ("descrip", "aux_file", "db_name", "intent_name"):
            image.header[field] = TEXT
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension(6, TEXT.encode()))
        image.to_filename(folder / f"{name}.nii.gz")


def write_radiographs(folder: Path) -> str:
    """A PNG with texts and a DICOM radiograph, and the rows of a table that names them for one patient."""
    info = PngInfo()
    info.add_text("Patient", TEXT)
    info.add_text("Comment", TEXT, zip=True)
    Image.fromarray(np.zeros((20, 16), np.uint8)).save(folder / "frontal.png", pnginfo=info)
    phantom.write_series(folder / "radiograph", **SMALL)
    dataset = marked(pydicom.dcmread(folder / "radiograph" / "IM000"), "5")
    dataset.Modality, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = "DX", 12, 11, 0
    dataset.save_as(folder / "lateral.dcm", enforce_file_format=True)
    return "patient,frontal,lateral\na,frontal.png,lateral.dcm\n"


def leaks(name: str, data: bytes) -> list[str]:
    """Markers in some bytes, in what they are compressed from, and in a PNG's texts."""
    texts = [data, name.encode()]
    if data[:2] == b"\x1f\x8b":
        texts.append(gzip.decompress(data))
    if data[:4] == b"\x89PNG":
        with Image.open(io.BytesIO(data)) as image:
            texts.append(repr(image.info).encode())
            kinds = re.findall(rb"(tEXt|zTXt|iTXt|eXIf)", data)
            assert not kinds, f"{name} has chunks {kinds}"
    return [f"{name}: {marker.decode()}" for marker in MARKERS if any(marker in text for text in texts)]


def run(folder: Path, *flags: object) -> subprocess.CompletedProcess:
    """The preparation as its user starts it, with every warning shown."""
    command = [
        sys.executable,
        "-W",
        "always",
        str(ROOT / "scripts" / "prepare_scans.py"),
        "--input_dir",
        folder / "scans",
    ]
    settings = ["--size", "8", "--spacing", "8", "--image_size", "16", *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [str(word) for word in [*command, *settings]], capture_output=True, check=False, env=environment
    )


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("identifiers")
    write_scans(folder / "scans")
    return folder


def test_the_markers_are_there_to_be_found(scans):
    """What is searched for below stands in every input, so that the search can fail."""
    for path in (scans / "scans").rglob("*"):
        if path.is_file():
            assert leaks("input", path.read_bytes()), path
    for marker in MARKERS:
        assert marker in (scans / "scans" / "good" / "IM000").read_bytes()
    assert len(pydicom.dcmread(scans / "scans" / "good" / "IM000")) > 1000


def test_nothing_that_was_prepared_tells_who_the_patient_is(scans):
    output = scans / "data"
    process = run(scans, "--output_dir", output, "--fractions", 1, 0, 0)
    assert process.returncode == 0, process.stderr
    files = {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert {Path(name).suffix for name in files} == {".gz", ".png", ".csv", ".json", ".md"}
    assert sum(name.endswith(".nii.gz") for name in files) == 2
    streams = {"stdout": process.stdout, "stderr": process.stderr}
    assert [leak for name, data in {**files, **streams}.items() for leak in leaks(name, data)] == []
    report = files["report.csv"].decode()
    for words in ("slices are missing", "pixels that cannot be decoded", "1 NaN or infinite"):
        assert words in report
    assert re.findall(r"^cut.*,skipped,.*found ", report, flags=re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["gap", "pixels"])
def test_no_message_of_a_run_that_stops_tells_who_the_patient_is(scans, tmp_path, fault):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / fault).symlink_to(scans / "scans" / fault)
    process = run(tmp_path, "--output_dir", tmp_path / "data", "--fractions", 1, 0, 0, "--on_error", "stop")
    assert process.returncode == 2
    assert b"prepare_scans.py: error: " in process.stderr
    assert leaks("stderr", process.stderr) + leaks("stdout", process.stdout) == []


@pytest.mark.slow
def test_radiographs_leave_only_their_pixels(scans, tmp_path):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a.nii.gz").symlink_to(scans / "scans" / "a.nii.gz")
    (tmp_path / "views.csv").write_text(write_radiographs(tmp_path))
    flags = ("--views_csv", tmp_path / "views.csv", "--fractions", 1, 0, 0)
    process = run(tmp_path, "--output_dir", tmp_path / "data", *flags)
    assert process.returncode == 0, process.stderr
    files = {path.name: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()}
    assert {"a_frontal.png", "a_lateral.png"} <= set(files)
    streams = {"stdout": process.stdout, "stderr": process.stderr}
    assert [leak for name, data in {**files, **streams}.items() for leak in leaks(name, data)] == []


@pytest.mark.slow
def test_names_in_file_names_stay_in_the_reports_where_that_is_asked_for(scans, tmp_path):
    """With --patient_from digest a NIfTI file's name goes into the report, which is never published, and no further."""
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / f"{TEXT}.nii.gz").write_bytes((scans / "scans" / "a.nii.gz").read_bytes())
    output = tmp_path / "data"
    process = run(tmp_path, "--output_dir", output, "--fractions", 1, 0, 0, "--patient_from", "digest", "--salt", "s")
    assert process.returncode == 0, process.stderr
    files = {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*") if path.is_file()}
    told = {name for name, data in files.items() if leaks(name, data)}
    assert told == {"report.csv"}
    assert leaks("stdout", process.stdout) == []
