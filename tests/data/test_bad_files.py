"""Files that are broken, hostile or not what they are called: every reader says so, within bounded time and memory.

docs/bad-input.md has the table of these faults; `test_the_page_lists_every_fault` keeps it true.
"""

import gzip
import importlib.util
import json
import os
import re
import struct
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian

from hf_vq import CTVolumeProcessor, XrayImageProcessor
from hf_vq.data import ImageDataset, PairedDataset
from hf_vq.data.cohort import CohortConfig, load_scan
from hf_vq.data.dicom import find_series, read_series
from hf_vq.data.images import make_image_processor
from hf_vq.data.preparation import PreparationConfig, load_source, prepare_volume
from hf_vq.data.scan_search import find_scans
from hf_vq.evaluation.volumes import read_volume
from hf_vq.processors.limits import MAX_PIXELS, MAX_VOXELS
from hf_vq.processors.scans import read_scan

SPEC = importlib.util.spec_from_file_location("dicom_phantom", Path(__file__).with_name("dicom_phantom.py"))
phantom = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(phantom)

HU = np.random.default_rng(0).integers(-1000, 1000, (6, 5, 4)).astype(np.int16)
AFFINE = np.diag([2.0, 3.0, 4.0, 1.0])
GREY = (np.arange(600).reshape(20, 30) % 256).astype(np.uint8)
SMALL = {"shape": (12, 10, 4), "spacing": (3.5, 3.4, 10.0)}
PAGE = Path(__file__).parents[2] / "docs" / "bad-input.md"


# Readers: what takes a NIfTI file, and what takes an image file.


def prepare(path: Path) -> None:
    """As scripts/prepare_scans.py reads the one scan in a folder."""
    sources, _ = find_scans(path.parent, nifti_pattern=path.name)
    (source,) = [source for source in sources if source.kind == "nifti"]
    config = PreparationConfig(size=(4, 4, 4), spacing=(8.0, 8.0, 8.0), image_size=(8, 8))
    prepare_volume(*load_source(source, config), config)


def paired(path: Path) -> PairedDataset:
    """A data set whose only volume is the file."""
    split = path.parent / "test"
    split.mkdir(exist_ok=True)
    (split / path.name).unlink(missing_ok=True)
    os.link(path, split / path.name)
    (split / "metadata.csv").write_text(f"file_name,subject\n{path.name},anna\n")
    return PairedDataset(path.parent, "test", CTVolumeProcessor())


NIFTI_READERS = {
    "CTVolumeProcessor": lambda path: CTVolumeProcessor()(path),
    "read_volume": read_volume,
    "prepare_scans": prepare,
    "prepare_cohort": lambda path: load_scan(path, CohortConfig(size=4)),
    "PairedDataset": lambda path: paired(path)[0],
}


def viewed(path: Path) -> PairedDataset:
    """A data set whose only view is the file."""
    split = path.parent / "test"
    split.mkdir(exist_ok=True)
    os.link(path, split / path.name)
    nibabel.Nifti1Image(HU, AFFINE).to_filename(split / "anna.nii")
    (split / "metadata.csv").write_text(f"file_name,frontal,subject\nanna.nii,{path.name},anna\n")
    return PairedDataset(path.parent, "test", view_processor=XrayImageProcessor())


def prepare_view(path: Path) -> None:
    """As scripts/prepare_scans.py --views_csv reads a radiograph."""
    config = PreparationConfig(size=(4, 4, 4), spacing=(8.0, 8.0, 8.0), image_size=(8, 8), views=("frontal",))
    prepare_volume(HU.astype(np.float32), AFFINE, config, {"frontal": path})


IMAGE_READERS = {
    "XrayImageProcessor": lambda path: XrayImageProcessor()(path),
    "PairedDataset": lambda path: viewed(path)[0],
    "prepare_scans --views_csv": prepare_view,
}


def write_nifti(path: Path, junk: bytes = b"", **fields: object) -> Path:
    """A scan whose header then declares other values, with further bytes at its end."""
    nibabel.Nifti1Image(HU, AFFINE).to_filename(path)
    data = bytearray(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    header = nibabel.Nifti1Header(bytes(data[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    data[:348] = header.binaryblock
    path.write_bytes(gzip.compress(bytes(data) + junk) if path.suffix == ".gz" else bytes(data) + junk)
    return path


def dims(*sides: int) -> dict[str, object]:
    return {"dim": [len(sides), *sides, *[1] * (7 - len(sides))]}


NIFTI_FAULTS = {
    "more voxels declared than the file holds": (
        dims(60, 50, 40),
        "found voxels that cannot be read .(60 x 50 x 40|Expected)",
    ),
    "30000 x 30000 x 30000 voxels declared": (
        dims(30000, 30000, 30000),
        f"found 30000 x 30000 x 30000 voxels, expected at most {MAX_VOXELS}; crop",
    ),
    "number of axes out of range": ({"dim": [9, 6, 5, 4, 1, 1, 1, 1]}, "found [0-9]+ axes in the header, expected 3"),
    "no axes": ({"dim": [0, 6, 5, 4, 1, 1, 1, 1]}, "found 0 axes in the header, expected 3"),
    "negative size": (dims(6, -5, 4), r"found an array of shape \(6, -5, 4\), expected three axes"),
    "size zero": (dims(6, 0, 4), r"found an array of shape \(6, 0, 4\), expected three axes"),
    "two axes": (dims(6, 20), r"found an array of shape \(6, 20\), expected three axes"),
    "a series of volumes (4D)": (dims(6, 5, 2, 2), r"found an array of shape \(6, 5, 2, 2\), expected three axes"),
    "NaN in the affine": (
        {"srow_x": [float("nan")] * 4, "sform_code": 1},
        "found voxel spacing .nan, nan, nan. mm .*, expected finite numbers",
    ),
    "singular affine": (
        {"srow_x": [2, 0, 0, 0], "srow_y": [2, 0, 0, 0], "srow_z": [0, 3, 4, 0], "sform_code": 1},
        r"found (a singular affine|voxel spacing)",
    ),
    "absurd voxel size": (
        {"srow_x": [1e9, 0, 0, 0], "sform_code": 1},
        r"found voxel spacing \[1000000000.0, 3.0, 4.0\] mm .*, expected spacing from 0.0001 to 10000",
    ),
    "absurd offset": ({"srow_x": [2, 0, 0, 1e30], "sform_code": 1}, "found voxel spacing .* offsets up to 1e.06 mm"),
    "no affine": ({"sform_code": 0, "qform_code": 0}, "found neither sform nor qform in the header"),
    "unknown type of voxels": ({"datatype": 999}, "found a damaged NIfTI header"),
    "voxels declared far behind the header": ({"vox_offset": 1e9}, "found voxels at byte 1e.09, expected at most"),
    "values that overflow": ({"scl_slope": 3e38, "scl_inter": 0.0}, r"found \d+ NaN or infinite voxels"),
}


@pytest.mark.parametrize("reader", NIFTI_READERS)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("fault", NIFTI_FAULTS)
def test_a_wrong_nifti_header_is_named(tmp_path, fault, suffix, reader):
    fields, words = NIFTI_FAULTS[fault]
    path = write_nifti(tmp_path / f"scan{suffix}", **fields)
    with pytest.raises(ValueError, match=rf"scan\.nii(\.gz)?: {words}"):
        NIFTI_READERS[reader](path)


def cut_gzip(path: Path) -> None:
    noise = np.random.default_rng(0).integers(-1000, 1000, (16, 16, 16)).astype(np.int16)
    nibabel.Nifti1Image(noise, AFFINE).to_filename(path)
    path.write_bytes(path.read_bytes()[:4000])


def damaged_gzip(path: Path) -> None:
    data = bytearray(write_nifti(path).read_bytes())
    data[200:210] = bytes(10)
    path.write_bytes(data)


def png_as_nifti(path: Path) -> None:
    Image.fromarray(GREY).save(path, format="PNG")


NIFTI_FILES = {
    "truncated gzip": (cut_gzip, "found voxels that cannot be read"),
    "damaged gzip": (damaged_gzip, "found (voxels that cannot be read|no NIfTI image)"),
    "not gzip": (lambda path: path.write_bytes(b"plain text"), "found no NIfTI image .Not a gzipped file"),
    "another kind of file": (png_as_nifti, "found no NIfTI image"),
    "no bytes": (lambda path: path.write_bytes(b""), "found an empty file, expected a .nii or .nii.gz file; copy it"),
    "a few bytes": (lambda path: path.write_bytes(gzip.compress(b"n")), "found no NIfTI image"),
}


@pytest.mark.parametrize("reader", NIFTI_READERS)
@pytest.mark.parametrize("fault", NIFTI_FILES)
def test_a_damaged_nifti_file_is_named(tmp_path, fault, reader):
    write, words = NIFTI_FILES[fault]
    write(tmp_path / "scan.nii.gz")
    with pytest.raises(ValueError, match=rf"scan\.nii\.gz: {words}"):
        NIFTI_READERS[reader](tmp_path / "scan.nii.gz")


@pytest.mark.parametrize("reader", ["CTVolumeProcessor", "read_volume", "prepare_cohort"])
def test_what_is_no_file_is_named(tmp_path, reader):
    (tmp_path / "folder.nii.gz").mkdir()
    with pytest.raises(ValueError, match=r"folder.nii.gz: found a folder, expected a .nii or .nii.gz file; check"):
        NIFTI_READERS[reader](tmp_path / "folder.nii.gz")
    (tmp_path / "loop.nii").symlink_to(tmp_path / "loop.nii")
    with pytest.raises(ValueError, match=r"loop.nii: found a file that cannot be opened \(Too many levels"):
        NIFTI_READERS[reader](tmp_path / "loop.nii")
    os.mkfifo(tmp_path / "pipe.nii")
    with pytest.raises(ValueError, match=r"pipe.nii: found a device or pipe, expected a .nii or .nii.gz file; check"):
        NIFTI_READERS[reader](tmp_path / "pipe.nii")
    (tmp_path / "scan.mgz").write_bytes(b"another format")
    with pytest.raises(
        ValueError, match=r"scan.mgz: found another kind of file, expected a .nii or .nii.gz file; conv"
    ):
        NIFTI_READERS[reader](tmp_path / "scan.mgz")


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


@pytest.mark.parametrize("reader", NIFTI_READERS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_numbers_are_counted(tmp_path, reader, bad):
    hu = HU.astype(np.float32)
    hu[1, 2, 3] = bad
    nibabel.Nifti1Image(hu, AFFINE).to_filename(tmp_path / "scan.nii")
    with pytest.raises(ValueError, match=r"scan.nii: found 1 NaN or infinite voxels, expected finite HU; repair or ex"):
        NIFTI_READERS[reader](tmp_path / "scan.nii")


@pytest.mark.parametrize("factor", [1e4, 1e30])
def test_values_far_outside_are_clipped_before_they_are_averaged(factor):
    """One absurd voxel changes its neighbours no more than metal would, and the far side not at all."""
    hu = np.zeros((8, 8, 8), dtype=np.float32)
    hu[0, 0, 0], hu[7, 7, 7] = factor * 100, -factor * 100
    processor = CTVolumeProcessor(spacing=[2.5, 2.5, 2.5], hu_window=[-1000, 1000])
    pixels = processor(hu, np.eye(4))["pixel_values"][0, 0]
    metal = hu.clip(-1024, 32767)
    np.testing.assert_allclose(pixels, processor(metal, np.eye(4))["pixel_values"][0, 0], atol=1e-6)
    assert abs(pixels[1, 1, 1]) < 1e-6
    config = PreparationConfig(size=(4, 4, 4), spacing=(2.0,) * 3, image_size=(8, 8), views=("frontal",))
    prepared, expected = prepare_volume(hu, np.eye(4), config), prepare_volume(metal, np.eye(4), config)
    np.testing.assert_array_equal(prepared.volume_hu, expected.volume_hu)
    np.testing.assert_array_equal(prepared.views["frontal"], expected.views["frontal"])


def test_a_sheared_scan_is_resampled_where_it_lies():
    """HU that are linear in the world stay so at the world's points of the model grid."""
    affine = np.array([[2.0, 0.5, 0.0, -10], [0.0, 2.0, 0.7, 5], [0.0, 0.0, 2.5, 3], [0, 0, 0, 1]])
    shape = (20, 18, 16)
    slope = np.array([3.0, -5.0, 7.0])
    hu = phantom.world_points(affine, shape) @ slope
    processor = CTVolumeProcessor(size=[4, 4, 4], spacing=[1.5] * 3, output_range=[-1000, 1000])
    batch = processor(hu.astype(np.float32), affine)
    grid = batch["geometry"][0].affine
    expected = (phantom.world_points(grid, (4, 4, 4)) @ slope).transpose(2, 1, 0)
    np.testing.assert_allclose(batch["pixel_values"][0, 0], expected, atol=1.0)


def test_bytes_behind_the_voxels_are_left_alone(tmp_path):
    """A gzip file that unfolds to 256 MiB more than it declares is read as what it declares."""
    write_nifti(tmp_path / "bomb.nii.gz", junk=bytes(2**28))
    voxels, _ = read_scan(tmp_path / "bomb.nii.gz")
    np.testing.assert_array_equal(voxels, HU)


# Image files.


def png(path: Path, rows: int, columns: int, content: bytes = zlib.compress(bytes(1000))) -> None:
    """A PNG that declares a size and holds next to nothing."""
    header = struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", content), (b"IEND", b""))
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def cut_png(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-2000])


def text_bomb(path: Path) -> None:
    """A PNG with a compressed text of 64 MiB."""
    Image.fromarray(GREY).save(path)
    data = path.read_bytes()
    chunk = b"zTXtComment\0\0" + zlib.compress(bytes(2**26))
    path.write_bytes(
        data[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]
    )


def save_as(mode: str, **options: object):
    return lambda path: Image.fromarray(GREY).convert(mode).save(path, **options)


IMAGE_FAULTS = {
    "colour with alpha": (save_as("RGBA"), "found image mode RGBA, expected L, I;16, I, F or grey RGB; convert it"),
    "grey with alpha": (save_as("LA"), "found image mode LA, expected L"),
    "palette": (save_as("P"), "found image mode P, expected L"),
    "black and white": (save_as("1"), "found image mode 1, expected L"),
    "no bytes": (lambda path: path.write_bytes(b""), "found an empty file, expected an image; copy it again"),
    "truncated": (cut_png, "found no readable image"),
    "not an image": (lambda path: path.write_text("<html>"), "found no readable image"),
    "size zero": (lambda path: png(path, 0, 5), "found (no readable image|0 x 5 pixels)"),
    "decompression bomb": (lambda path: png(path, 60000, 60000), "found too large an image"),
    "more pixels than allowed": (lambda path: png(path, 9000, 9000), "found 9000 x 9000 pixels, expected at least one"),
    "text that unfolds": (text_bomb, "found no readable image .Decompressed data too large"),
    "a format that needs another program": (
        lambda path: Image.fromarray(GREY).save(path, format="EPS"),
        "found no readable image .cannot identify",
    ),
}


@pytest.mark.parametrize("reader", IMAGE_READERS)
@pytest.mark.parametrize("fault", IMAGE_FAULTS)
def test_a_bad_image_is_named(tmp_path, fault, reader):
    write, words = IMAGE_FAULTS[fault]
    write(tmp_path / "view.png")
    with pytest.raises(ValueError, match=rf"view\.png: {words}"):
        IMAGE_READERS[reader](tmp_path / "view.png")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_8_and_16_bits_are_both_read_with_all_their_bits(tmp_path, dtype, suffix):
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (7, 5), dtype=dtype)
    Image.fromarray(pixels).save(tmp_path / f"view{suffix}")
    for read in (lambda path: XrayImageProcessor()(path)["pixel_values"][0, 0],):
        np.testing.assert_allclose(read(tmp_path / f"view{suffix}") / 2 + 0.5, pixels / np.iinfo(dtype).max, atol=1e-6)


def test_an_image_that_is_no_file_is_named(tmp_path):
    (tmp_path / "view.png").mkdir()
    with pytest.raises(ValueError, match=r"view.png: found a folder, expected an image; check the path"):
        XrayImageProcessor()(tmp_path / "view.png")


# DICOM.


def changed(**tags: object):
    """An `edit` that sets tags of the third slice."""
    return lambda dataset, index: phantom.edited(**tags)(dataset, index) if index == 2 else dataset


def duplicate(folder: Path) -> None:
    phantom.write_series(folder, **SMALL)
    (folder / "copy").write_bytes((folder / "IM000").read_bytes())


def series_with(**options: object):
    return lambda folder: phantom.write_series(folder, **{**SMALL, **options})


SERIES_FAULTS = {
    "a slice is missing": (
        series_with(edit=lambda dataset, index: None if index == 2 else dataset),
        "found slice distances of 10 ... 20 mm",
    ),
    "a slice twice": (duplicate, "found 2 slices at the same positions"),
    "mixed pixel spacings": (series_with(edit=changed(PixelSpacing=[1.0, 1.0])), "found pixel spacing"),
    "mixed orientations": (series_with(edit=changed(ImageOrientationPatient=list(phantom.FEET_FIRST))), "found orient"),
    "mixed sizes": (series_with(edit=changed(Rows=5, Columns=24)), "found size .rows, columns."),
    "one slice": (series_with(edit=lambda dataset, index: None if index else dataset), "found 1 slice, expected at"),
    "65535 x 65535 pixels declared": (
        series_with(edit=phantom.edited(Rows=65535, Columns=65535)),
        f"IM00.: found 65535 x 65535 pixels, expected at least one and at most {MAX_PIXELS}",
    ),
    "more pixels declared than the file holds": (
        series_with(edit=phantom.edited(Rows=4000, Columns=4000)),
        "IM00.: found pixels that cannot be decoded",
    ),
    "NaN in the position": (
        series_with(edit=changed(ImagePositionPatient=[1.0, float("nan"), 0.0])),
        "found ImagePositionPatient .*, expected 3 finite numbers",
    ),
    "several numbers for one": (series_with(edit=changed(RescaleSlope=[1, 2])), r"found RescaleSlope \[1.0, 2.0\]"),
    "pixel spacing zero": (
        series_with(edit=changed(PixelSpacing=[0, 1])),
        "IM00.: found RescaleSlope 1 and PixelSpacing",
    ),
}


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


# Files of MNIST's format.


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (struct.pack(">4B3I", 0, 0, 8, 3, 2**31, 2**10, 2**10), "found an array of .* declared in a file of"),
        (struct.pack(">4B3I", 0, 0, 8, 3, 2, 2, 2) + bytes(2**26), "found more bytes, expected 16 and then an array"),
        (struct.pack(">4B2I", 0, 0, 8, 3, 2, 2), "found 12 bytes, expected 16 and"),
    ],
    ids=["too much declared", "more than declared", "cut in the header"],
)
def test_mnist_files_that_lie_are_named(tmp_path, suffix, content, words):
    (tmp_path / f"train-images-idx3-ubyte{suffix}").write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(ValueError, match=rf"train-images-idx3-ubyte{suffix}: {words}"):
        ImageDataset(tmp_path, "train", make_image_processor(8))


# Limits.


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
