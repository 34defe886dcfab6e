"""What is generated from a DICOM radiograph holds nothing of the file but what its pixels led to."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

from hf_vq.commands.generate import main

TEXT = "MARKERSMITH"


def write_radiograph(path: Path, **elements: object) -> Path:
    """A radiograph whose text elements hold a marker."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.826.424242"
    dataset.PatientName, dataset.PatientID, dataset.InstitutionName = f"{TEXT}^JANE", TEXT, TEXT
    dataset.StudyDescription, dataset.AccessionNumber, dataset.ImageComments = TEXT, TEXT, TEXT
    dataset.Modality, dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "DX", "MONOCHROME2", 1
    dataset.Rows, dataset.Columns, dataset.BitsAllocated, dataset.BitsStored = 16, 16, 16, 12
    dataset.HighBit, dataset.PixelRepresentation = 11, 0
    dataset.PixelData = np.arange(256, dtype="<u2").tobytes()
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def test_volumes_from_dicom_views_hold_no_names(flexible, tmp_path, capfd):
    views = [f"{view}={write_radiograph(tmp_path / f'{view}.dcm')}" for view in ("frontal", "lateral")]
    flags = ["--output", str(tmp_path / "ct.nii.gz"), "--num_inference_steps", "2"]
    main(["--pipeline", str(flexible), "--views", *views, *flags])
    said = capfd.readouterr()
    written = gzip.decompress((tmp_path / "ct.nii.gz").read_bytes()) + (tmp_path / "ct.nii.gz").read_bytes()
    for text in (written, said.out.encode(), said.err.encode()):
        assert TEXT.encode() not in text
        assert b"424242" not in text


@pytest.mark.parametrize("elements", [{"Modality": "CT"}, {"Rows": 17}, {"NumberOfFrames": "2"}])
def test_what_is_said_of_a_faulty_radiograph_holds_no_names(flexible, tmp_path, capfd, elements):
    view = write_radiograph(tmp_path / "frontal.dcm", **elements)
    flags = ["--output", str(tmp_path / "ct.nii.gz"), "--num_inference_steps", "2"]
    Image.new("L", (16, 16)).save(tmp_path / "lateral.png")
    with pytest.raises(ValueError, match=r"frontal.dcm: found") as caught:
        main(["--pipeline", str(flexible), "--views", f"frontal={view}", f"lateral={tmp_path / 'lateral.png'}", *flags])
    said = capfd.readouterr()
    assert TEXT not in str(caught.value) + said.out + said.err
    assert not (tmp_path / "ct.nii.gz").exists()
