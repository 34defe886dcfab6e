"""Files that strangers upload: what is taken, and the words for what is not."""

import gzip
import struct
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    generate_uid,
)

from hf_vq.app.uploads import MAX_VIEW_SIDE, MAX_VOLUME_SIDE, read_scan, read_view, read_views
from hf_vq.processors.dicom_radiographs import is_real_radiograph
from hf_vq.processors.limits import MAX_BYTES_BEFORE_VOXELS

SCAN = np.arange(60, dtype=np.int16).reshape(3, 4, 5)


def write_dicom(path: Path, rows: int = 4, columns: int = 6, syntax: str = ExplicitVRLittleEndian) -> Path:
    """A radiograph of ones, or one that only declares its size where that is another."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = ComputedRadiographyImageStorage, meta.MediaStorageSOPInstanceUID
    dataset.Modality, dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "CR", "MONOCHROME2", 1
    dataset.Rows, dataset.Columns = rows, columns
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PixelData = np.ones((4, 6), dtype="<u2").tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_nifti(path: Path, **fields: object) -> Path:
    """A scan whose header then declares other values."""
    nibabel.Nifti1Image(SCAN, np.diag([2.0, 3.0, 4.0, 1.0])).to_filename(path)
    if fields:
        data = bytearray(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
        header = nibabel.Nifti1Header(bytes(data[:348]), check=False)
        for name, value in fields.items():
            header[name] = value
        data[:348] = header.binaryblock
        path.write_bytes(gzip.compress(bytes(data)) if path.suffix == ".gz" else bytes(data))
    return path


def write_png_header(path: Path, rows: int, columns: int) -> Path:
    """The beginning of a PNG that declares a size and holds next to nothing."""
    header = b"IHDR" + struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)
    content = b"IDAT" + zlib.compress(bytes(1000))
    chunks = b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in (header, content, b"IEND")
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_pngs_are_taken_with_all_their_bits(tmp_path, dtype):
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (7, 5), dtype=dtype)
    Image.fromarray(pixels).save(tmp_path / "view.png")
    np.testing.assert_array_equal(np.asarray(read_view(tmp_path / "view.png")), pixels)


def test_dicom_radiographs_are_taken_with_and_without_a_suffix(tmp_path):
    for name in ("view.dcm", "IM000001"):
        image = read_view(write_dicom(tmp_path / name))
        assert image.size == (6, 4)
        assert is_real_radiograph(image)


def refusal(path: Path, read=read_view) -> str:
    """The words with which a file is refused; they never say where it lies."""
    with pytest.raises(ValueError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path.name}: found ")
    assert str(path.parent) not in message
    assert "\n" not in message
    return message


def test_other_kinds_of_files_are_refused_in_words(tmp_path):
    (tmp_path / "broken.png").write_text("not an image")
    assert "found no PNG image and no DICOM file" in refusal(tmp_path / "broken.png")
    (tmp_path / "empty.png").write_bytes(b"")
    assert "expected a grey X-ray" in refusal(tmp_path / "empty.png")
    Image.new("L", (4, 4)).save(tmp_path / "other.jpeg")
    assert "convert it" in refusal(tmp_path / "other.jpeg")
    Image.new("RGB", (4, 4), (200, 10, 10)).save(tmp_path / "colour.png")
    assert "found a colour image" in refusal(tmp_path / "colour.png")
    (tmp_path / "broken.dcm").write_text("not an image")
    assert "found no readable DICOM file" in refusal(tmp_path / "broken.dcm")


def test_truncated_files_are_refused_in_words(tmp_path, views):
    for name, whole in (("cut.png", views["frontal"]), ("cut.dcm", write_dicom(tmp_path / "whole.dcm"))):
        data = whole.read_bytes()
        for length in (len(data) // 8, len(data) // 2, len(data) * 9 // 10):
            (tmp_path / name).write_bytes(data[:length])
            refusal(tmp_path / name)


def test_a_size_beyond_the_limit_is_refused_before_pixels_are_read(tmp_path):
    large = MAX_VIEW_SIDE + 1
    assert f"found 4 x {large} pixels" in refusal(write_png_header(tmp_path / "wide.png", 4, large))
    assert f"found {large} x {large} pixels" in refusal(write_png_header(tmp_path / "large.png", large, large))
    assert f"found {large} x 6 pixels" in refusal(write_dicom(tmp_path / "large.dcm", rows=large))


def test_a_deflated_dicom_file_is_refused_unread(tmp_path):
    path = write_dicom(tmp_path / "deflated.dcm", syntax=DeflatedExplicitVRLittleEndian)
    assert pydicom.dcmread(path).Rows == 4
    assert "found a deflated DICOM file" in refusal(path)


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "SCAN.NII"])
def test_nifti_scans_are_taken(tmp_path, name):
    volume = read_scan(write_nifti(tmp_path / name))
    np.testing.assert_array_equal(volume.hu, SCAN.transpose(2, 1, 0))
    assert volume.spacing == (4, 3, 2)


def test_a_nifti_2_scan_is_taken(tmp_path):
    nibabel.Nifti2Image(SCAN, np.eye(4)).to_filename(tmp_path / "two.nii.gz")
    np.testing.assert_array_equal(read_scan(tmp_path / "two.nii.gz").hu, SCAN.transpose(2, 1, 0))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dim": [3, MAX_VOLUME_SIDE + 1, 4, 5, 1, 1, 1, 1]}, "found 1025 x 4 x 5 voxels"),
        ({"dim": [3, 1000, 1000, 1000, 1, 1, 1, 1]}, "found 1000 x 1000 x 1000 voxels"),
        ({"dim": [3, 3, -4, 5, 1, 1, 1, 1]}, "expected three axes"),
        ({"dim": [4, 3, 4, 5, 9, 1, 1, 1]}, "expected three axes"),
        ({"dim": [2, 3, 4, 1, 1, 1, 1, 1]}, "expected three axes"),
        ({"datatype": 1792, "bitpix": 128}, "voxels of 16 bytes"),
        ({"datatype": 999}, "damaged NIfTI header"),
        ({"vox_offset": 2.0 * MAX_BYTES_BEFORE_VOXELS}, "expected at most 16777216 bytes before them"),
        ({"vox_offset": float("nan")}, "found voxels at byte nan"),
        ({"magic": b"abc"}, "found no NIfTI image"),
    ],
)
def test_what_a_nifti_header_declares_is_checked_before_voxels_are_read(tmp_path, suffix, fields, words):
    assert words in refusal(write_nifti(tmp_path / f"scan{suffix}", **fields), read_scan)


def test_other_kinds_of_scans_are_refused_in_words(tmp_path, views):
    assert "expected a .nii or .nii.gz" in refusal(views["frontal"], read_scan)
    (tmp_path / "plain.nii.gz").write_bytes(b"not compressed")
    assert "found no NIfTI image" in refusal(tmp_path / "plain.nii.gz", read_scan)
    data = write_nifti(tmp_path / "whole.nii.gz").read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(data[: len(data) - 30])
    refusal(tmp_path / "cut.nii.gz", read_scan)
    nibabel.Nifti1Image(np.full((2, 2, 2), np.nan, dtype=np.float32), np.eye(4)).to_filename(tmp_path / "nan.nii")
    assert "NaN" in refusal(tmp_path / "nan.nii", read_scan)


@pytest.mark.parametrize("length", [3, 60001])
@pytest.mark.parametrize("element", [b"\x28\x00\x10\x00", b"\x28\x00\x01\x01"], ids=["Rows", "BitsStored"])
def test_a_number_of_odd_length_in_a_dicom_file_is_refused_in_few_words(tmp_path, element, length):
    path = write_dicom(tmp_path / "odd.dcm")
    data = path.read_bytes()
    start = data.index(element + b"US\x02\x00")
    path.write_bytes(data[: start + 6] + length.to_bytes(2, "little") + bytes(length) + data[start + 10 :])
    message = refusal(path, read_view)
    assert "found no readable DICOM file" in message
    assert len(message) < 2000


def test_views_are_read_again_from_their_files_and_images_stay(tmp_path, views):
    image = Image.open(views["lateral"])
    read = read_views({"frontal": str(views["frontal"]), "lateral": image})
    np.testing.assert_array_equal(np.asarray(read["frontal"]), np.asarray(Image.open(views["frontal"])))
    assert read["lateral"] is image
    assert "gone.png" in refusal(tmp_path / "gone.png", lambda path: read_views({"frontal": str(path)}))
