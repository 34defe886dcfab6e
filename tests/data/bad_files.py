"""Files that are broken, hostile or not what they are called, what reads them, and the words that name each fault."""

import gzip
import os
import struct
import zlib
from pathlib import Path

import dicom_phantom as phantom
import nibabel
import numpy as np
from PIL import Image

from hf_vq import CTVolumeProcessor, XrayImageProcessor
from hf_vq.data import PairedDataset
from hf_vq.data.cohort import CohortConfig, load_scan
from hf_vq.data.preparation import PreparationConfig, load_source, prepare_volume
from hf_vq.data.scan_search import find_scans
from hf_vq.evaluation.volumes import read_volume
from hf_vq.processors.limits import MAX_PIXELS, MAX_VOXELS

HU = np.random.default_rng(0).integers(-1000, 1000, (6, 5, 4)).astype(np.int16)
AFFINE = np.diag([2.0, 3.0, 4.0, 1.0])
GREY = (np.arange(600).reshape(20, 30) % 256).astype(np.uint8)
SMALL = {"shape": (12, 10, 4), "spacing": (3.5, 3.4, 10.0)}


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
