"""A small labelled cohort whose headers have everything that could get lost, and what a reader finds in one."""

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from PIL import Image

COUNTS = {"train": 4, "validation": 2, "test": 2}
LABELS = ["well", "sick", "", "well"]
VIEWS = ("frontal", "lateral")
SIDE = 16
BEAM = {"source_detector_distance": 1800.0, "source_isocentre_distance": 1600.0, "detector_size": [400.0, 350.0]}
RECORD = {"scan": "phantom.nii.gz", "sha256": "0", "subjects": COUNTS, "settings": {"seed": 3, "beam": BEAM}}


def nifti_of(number: int) -> nibabel.Nifti1Image:
    """A volume with an oblique affine, a shear-free qform beside it, units and, for odd numbers, a slope."""
    random = np.random.default_rng(number)
    angle = 0.1 + 0.01 * number
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn * [2.5, 2.0, 3.0]
    affine[:3, 3] = [-20.0, 7.5 * number, 1000.0]
    voxels = random.integers(-1024, 3071, (SIDE, SIDE, SIDE)).astype(np.int16)
    image = nibabel.Nifti1Image(voxels, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=2)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"phantom"
    if number % 2:
        image.header.set_slope_inter(0.5, -100.0)
    return image


def view_of(number: int, view: int) -> np.ndarray:
    """A view of 16 bits, of the whole range."""
    random = np.random.default_rng([number, view])
    pixels = random.integers(0, 65536, (SIDE, SIDE + 2), dtype=np.uint16)
    pixels[0, :2] = 0, 65535
    return pixels


def write_cohort(folder: Path) -> Path:
    """Writes the splits, with labels and a column of ages, and the record of the views' rays."""
    number = 0
    for split, count in COUNTS.items():
        (folder / split / "views").mkdir(parents=True)
        rows = []
        for index in range(count):
            subject = f"{split}_{index}"
            row = {"file_name": f"{subject}.nii.gz", "age": f"0{50 + number}"}
            nifti_of(number).to_filename(folder / split / row["file_name"])
            for place, view in enumerate(VIEWS):
                row[view] = f"views/{subject}_{view}.png"
                Image.fromarray(view_of(number, place)).save(folder / split / row[view])
            rows.append({**row, "subject": subject, "label": LABELS[index]})
            number += 1
        with (folder / split / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    (folder / "cohort.json").write_text(json.dumps(RECORD), encoding="utf-8")
    return folder


def digest(array: np.ndarray) -> str:
    """By which arrays are compared: type, shape and values."""
    return hashlib.sha256(f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes()).hexdigest()


def found_in(dataset: Any) -> dict[str, Any]:
    """Everything that a `PairedDataset` says of its subjects, as JSON types."""
    volumes, views = [], []
    for index in range(len(dataset)):
        image = dataset.volume(index)
        stored = np.asarray(image.dataobj.get_unscaled())
        volumes.append(
            {
                "stored": digest(stored),
                "scaling": [float(image.dataobj.slope), float(image.dataobj.inter)],
                "affine": image.affine.tolist(),
                "header": image.header.binaryblock.hex(),
            }
        )
        images = [dataset.view_image(index, name) for name in dataset.view_names]
        views.append([[image.mode, digest(np.asarray(image))] for image in images])
    return {
        "subjects": dataset.subjects,
        "view_names": dataset.view_names,
        "labels": dataset.labels,
        "beam": None if dataset.beam is None else repr(dataset.beam),
        "volumes": volumes,
        "views": views,
    }
