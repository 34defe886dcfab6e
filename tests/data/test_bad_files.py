"""Bad files of every kind: what may not be read, what claims to be enormous, and the page that lists all faults.

docs/bad-input.md has the table of these faults; `test_the_page_lists_every_fault` keeps it true.
"""

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import dicom_phantom as phantom
import numpy as np
import pytest
from bad_files import GREY, IMAGE_FAULTS, NIFTI_FAULTS, NIFTI_FILES, SERIES_FAULTS, SMALL, dims, png, write_nifti
from PIL import Image

from hf_vq import CTVolumeProcessor, XrayImageProcessor
from hf_vq.data.cohort import CohortConfig
from hf_vq.data.dicom import find_series
from hf_vq.data.scan_search import find_scans
from hf_vq.processors.scans import read_scan

PAGE = Path(__file__).parents[2] / "docs" / "bad-input.md"


@pytest.fixture
def forbidden(tmp_path_factory):
    """Runs a function as a user who may not read a file; where the tests run as root, as another user."""
    folder = tmp_path_factory.getbasetemp()
    opened = [place for place in (folder, *folder.parents) if str(place).startswith("/tmp/pytest")]
    modes = {place: place.stat().st_mode for place in opened}
    for place in opened:
        place.chmod(0o755)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    yield
    if is_root:
        os.seteuid(0)
    for place, mode in modes.items():
        place.chmod(mode)


def test_what_may_not_be_read_is_named(tmp_path, request):
    tmp_path.chmod(0o755)
    for name in ("scan.nii.gz", "view.png", "metadata.csv"):
        (tmp_path / name).write_bytes(b"secret")
        (tmp_path / name).chmod(0)
    phantom.write_series(tmp_path / "series", **SMALL)
    (tmp_path / "series" / "IM000").chmod(0)
    request.getfixturevalue("forbidden")
    words = "found a file that cannot be opened .Permission denied., expected .*; check its permissions"
    with pytest.raises(ValueError, match=f"scan.nii.gz: {words}"):
        CTVolumeProcessor()(tmp_path / "scan.nii.gz")
    with pytest.raises(ValueError, match=f"view.png: {words}"):
        XrayImageProcessor()(tmp_path / "view.png")
    (series,), damaged = find_series(tmp_path / "series")
    assert len(series.files) == 3
    assert re.match(words, damaged[tmp_path / "series" / "IM000"])


def test_a_folder_that_may_not_be_searched_is_named(tmp_path, request):
    tmp_path.chmod(0o755)
    (tmp_path / "scans" / "closed").mkdir(parents=True)
    write_nifti(tmp_path / "scans" / "scan.nii")
    (tmp_path / "scans" / "closed").chmod(0)
    request.getfixturevalue("forbidden")
    with pytest.raises(ValueError, match=r"closed: found a folder that cannot be read .*; check its permissions"):
        find_scans(tmp_path / "scans")


def test_limits_can_be_raised_and_lowered(tmp_path, monkeypatch):
    path = write_nifti(tmp_path / "scan.nii")
    Image.fromarray(GREY).save(tmp_path / "view.png")
    monkeypatch.setenv("HF_VQ_MAX_VOXELS", "119")
    monkeypatch.setenv("HF_VQ_MAX_PIXELS", "599")
    with pytest.raises(ValueError, match=r"found 6 x 5 x 4 voxels, expected at most 119; .* set HF_VQ_MAX_VOXELS"):
        read_scan(path)
    with pytest.raises(ValueError, match=r"found 20 x 30 pixels, expected at least one and at most 599"):
        XrayImageProcessor()(tmp_path / "view.png")
    monkeypatch.setenv("HF_VQ_MAX_VOXELS", "120")
    monkeypatch.setenv("HF_VQ_MAX_PIXELS", "600")
    read_scan(path)
    XrayImageProcessor()(tmp_path / "view.png")
    monkeypatch.setenv("HF_VQ_MAX_VOXELS", "many")
    with pytest.raises(ValueError, match="HF_VQ_MAX_VOXELS: found 'many', expected a whole number above 0; correct"):
        read_scan(path)


def test_a_grid_that_would_be_enormous_is_refused():
    """A scan of a few voxels that says it is a hundred metres wide."""
    affine = np.diag([9000.0, 9000.0, 9000.0, 1.0])
    with pytest.raises(ValueError, match=r"on the model's grid: found 45000 x 45000 x 45000 voxels, expected at most"):
        CTVolumeProcessor(spacing=[1.0] * 3)(np.zeros((5, 5, 5)), affine)
    flat = np.diag([1e-3, 1e-3, 9000.0, 1.0])
    with pytest.raises(ValueError, match=r"the scan on cubic voxels: found .* voxels, expected at most"):
        load_scan_of(np.zeros((5, 5, 90000), dtype=np.float32), flat)


def load_scan_of(array: np.ndarray, affine: np.ndarray):
    from hf_vq.data.cohort import prepare_scan

    return prepare_scan(array, affine, CohortConfig(size=4, field_of_view=1e-2))


ENORMOUS = """
import json, resource, sys
from hf_vq import CTVolumeProcessor, XrayImageProcessor
from hf_vq.data.dicom import find_series, read_series
import nibabel, pydicom
import pydicom.pixels, PIL.Image, PIL.PngImagePlugin
from pathlib import Path
folder = Path(sys.argv[1])
CTVolumeProcessor()(folder / "small.nii.gz"), XrayImageProcessor()(folder / "small.png")
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 2**28
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
said = {}
for path in sorted(folder.glob("huge*")):
    try:
        if path.is_dir():
            (series,), _ = find_series(path)
            read_series(series)
        else:
            (XrayImageProcessor() if path.suffix in (".png", ".dcm") else CTVolumeProcessor())(path)
    except ValueError as error:
        said[path.name] = str(error)
print(json.dumps(said))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="a process learns its size from Linux's /proc")
def test_enormous_declarations_are_refused_before_anything_is_allocated(tmp_path):
    """In a process that may take 256 MiB more than it has: each file is small and claims far more."""
    write_nifti(tmp_path / "small.nii.gz")
    Image.fromarray(GREY).save(tmp_path / "small.png")
    for name in ("huge.nii", "huge.nii.gz"):
        write_nifti(tmp_path / name, **dims(30000, 30000, 30000))
    write_nifti(tmp_path / "huge-allowed.nii.gz", **dims(1000, 1000, 1000))
    write_nifti(tmp_path / "huge-offset.nii.gz", vox_offset=2.0**31)
    write_nifti(tmp_path / "huge-spacing.nii", **dims(6, 5, 4), srow_x=[1e8, 0, 0, 0], sform_code=1)
    png(tmp_path / "huge.png", 60000, 60000)
    phantom.write_series(tmp_path / "huge-series", **SMALL, edit=phantom.edited(Rows=65535, Columns=65535))
    phantom.write_series(tmp_path / "huge-many", **SMALL, edit=phantom.edited(Rows=8000, Columns=8000))
    (tmp_path / "huge.dcm").write_bytes((tmp_path / "huge-series" / "IM000").read_bytes())
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ENORMOUS), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    said = json.loads(process.stdout.splitlines()[-1])
    assert set(said) == {path.name for path in tmp_path.glob("huge*")}
    assert "cannot hold" in said["huge-allowed.nii.gz"]
    assert all("found " in message and "MemoryError" not in message for message in said.values()), said


@pytest.mark.parametrize(
    ("title", "faults"),
    [("NIfTI headers", NIFTI_FAULTS), ("NIfTI files", NIFTI_FILES), ("Images", IMAGE_FAULTS), ("DICOM", SERIES_FAULTS)],
)
def test_the_page_lists_every_fault_with_its_message(title, faults):
    section = PAGE.read_text(encoding="utf-8").partition(f"## {title}\n")[2].partition("\n## ")[0]
    told = dict(re.findall(r"^\| (.+?) \| `+(.+?)`+ \|$", section, flags=re.MULTILINE))
    assert list(told) == list(faults)
    for fault, (_, words) in faults.items():
        assert re.search(rf": {words}", told[fault]), fault
