"""What the files of a cohort have in common, read from their headers, for its data set card."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ..processors.dicom_radiographs import READ_ERRORS
from ..processors.fields import one_line
from ..processors.geometry import import_nibabel, voxel_spacing
from ..processors.image_files import FORMATS
from ..processors.scans import open_nifti
from .publishable import CohortSplit

VOXELS, SPACING, AXES, STORED = PROPERTIES = ("voxels along x, y and z", "voxel size, mm", "axes", "stored as")
BITS = {"1": 1, "L": 8, "P": 8, "RGB": 24, "RGBA": 32, "I": 32, "F": 32}  # of Pillow's modes; those of 16 say so
# Fields of a NIfTI header that hold text, which some programs fill with names.
TEXT_FIELDS = ("descrip", "aux_file", "db_name", "intent_name")
# Entries of an image file that are no str in Pillow and hold text.
TEXT_ENTRIES = ("exif", "comment", "photoshop", "xmp")


@dataclass
class Measurements:
    """What has been found how often.

    Attributes:
        volumes: for each property the volumes that have a value.
        views: for each view the images that have a size and depth.
        texts: header fields of volumes that hold text, or extensions, which may say who somebody is.
        view_texts: texts and EXIF data in the files of views, by their names in the file.
    """

    volumes: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in PROPERTIES})
    views: dict[str, Counter[str]] = field(default_factory=dict)
    texts: Counter[str] = field(default_factory=Counter)
    view_texts: Counter[str] = field(default_factory=Counter)


def measure(splits: Iterable[CohortSplit]) -> Measurements:
    """Looks at the header of every file of a cohort, so that none is published that nobody could read.

    Args:
        splits: the cohort's splits.

    Raises:
        ValueError: a volume is no NIfTI file, or a view no image that an `Image` column can hold.
        ImportError: nibabel is missing.
    """
    found = Measurements()
    for split in splits:
        for index in range(len(split.sizes)):
            volume, *views = split.paths(index)
            _measure_volume(volume, found)
            for name, path in zip(split.source.view_names, views, strict=True):
                found.views.setdefault(name, Counter())[_image_properties(path, found)] += 1
    return found


def tally(counter: Counter[str], limit: int = 3) -> str:
    """Returns the values that were found, the most frequent first, with their counts where they differ."""
    if len(counter) == 1:
        return next(iter(counter))
    shown = [f"{value} ({count})" for value, count in counter.most_common(limit)]
    rest = len(counter) - limit
    return ", ".join([*shown, f"{rest} others"] if rest > 0 else shown)


def _measure_volume(path: Path, found: Measurements) -> None:
    image = open_nifti(path)
    values = {
        VOXELS: " x ".join(map(str, image.shape)),
        SPACING: " x ".join(f"{step:.6g}" for step in voxel_spacing(image.affine)),
        AXES: "".join(import_nibabel().aff2axcodes(image.affine)),
        STORED: str(image.get_data_dtype()),
    }
    for name, value in values.items():
        found.volumes[name][value] += 1
    header: Any = image.header
    found.texts.update(name for name in TEXT_FIELDS if name in header and header[name].item().strip(b"\0 "))
    found.texts.update("extensions" for _ in getattr(header, "extensions", ())[:1])


def _image_properties(path: Path, found: Measurements) -> str:
    try:
        with Image.open(path, formats=FORMATS) as image:
            texts = [str(name) for name, value in image.info.items() if isinstance(value, str) or name in TEXT_ENTRIES]
            found.view_texts.update(texts)
            bits = 16 if "16" in image.mode else BITS.get(image.mode, 8)
            return f"{image.height} rows x {image.width} columns, {bits} bits a pixel, {image.format}"
    except (*READ_ERRORS, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path}: found no image that a data set can hold ({one_line(error)}), expected for example a PNG; DICOM "
            "radiographs name the patient: let prepare_scans.py --views_csv turn them into PNGs"
        ) from error
