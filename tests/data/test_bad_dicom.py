"""DICOM series and files that are broken or lie: the fault is named, and the other series are read."""

import os
from pathlib import Path

import dicom_phantom as phantom
import pydicom
import pytest
from bad_files import SERIES_FAULTS, SMALL
from pydicom.uid import DeflatedExplicitVRLittleEndian

from hf_vq import XrayImageProcessor
from hf_vq.data.dicom import find_series, read_series


@pytest.mark.parametrize("fault", SERIES_FAULTS)
def test_a_faulty_series_is_named_and_skipped(tmp_path, fault):
    write, words = SERIES_FAULTS[fault]
    write(tmp_path / "chest")
    (series,), _ = find_series(tmp_path)
    with pytest.raises(ValueError, match=rf"^chest \(series {series.key}\): {words}"):
        read_series(series)


def test_series_in_one_folder_are_told_apart_whatever_their_files_are_called(tmp_path):
    """Two series with files of the same names, one above the other: two volumes, each whole."""
    phantom.write_series(tmp_path, **SMALL)
    phantom.write_series(tmp_path / "deeper", **{**SMALL, "shape": (8, 6, 5)})
    for path in (tmp_path / "deeper").iterdir():
        path.rename(tmp_path / f"second-{path.name}")
    found, damaged = find_series(tmp_path)
    assert not damaged
    assert sorted(read_series(one)[0].shape for one in found) == [(8, 6, 5), (12, 10, 4)]


def deflated(path: Path) -> None:
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)


def test_a_deflated_file_is_refused_unread(tmp_path):
    """Nothing says how large it would become: 400 kB can hold 400 MB."""
    phantom.write_series(tmp_path, **SMALL)
    deflated(tmp_path / "IM000")
    _, damaged = find_series(tmp_path)
    assert damaged == {tmp_path / "IM000": damaged[tmp_path / "IM000"]}
    assert "found a deflated DICOM file, expected one that tells its size" in damaged[tmp_path / "IM000"]
    with pytest.raises(ValueError, match=r"IM000: found a deflated DICOM file, expected one that tells its size"):
        XrayImageProcessor()(tmp_path / "IM000")


def test_a_link_that_leads_nowhere_is_named_if_it_is_called_dicom(tmp_path):
    phantom.write_series(tmp_path, **SMALL)
    (tmp_path / "gone.dcm").symlink_to(tmp_path / "nothing")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe.dcm")
    _, damaged = find_series(tmp_path)
    assert {path.name: reason.split(",")[0] for path, reason in damaged.items()} == {
        "gone.dcm": "found no such file",
        "pipe.dcm": "found a device or pipe",
    }
