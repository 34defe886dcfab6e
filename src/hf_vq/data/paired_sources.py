"""Where paired subjects come from: a folder with metadata.csv, or a `datasets` data set."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from ..files import looks_like_path
from ..processors.dicom_radiographs import DICOM_SUFFIXES
from ..processors.fields import one_line
from ..processors.image_processing_xray import open_image
from ..processors.scans import read_errors
from .splits import MissingSplitError

METADATA_FILE = "metadata.csv"
LABEL_COLUMN = "label"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", *DICOM_SUFFIXES)


class PairedSource(Protocol):
    """Subjects of one split, each a volume and its named views."""

    subjects: list[str]
    view_names: list[str]
    labels: list[str] | None

    def volume(self, index: int) -> Any:
        """Returns a subject's volume as a nibabel image, HU, or the path of one."""

    def view_image(self, index: int, view: str) -> Image.Image:
        """Returns one view of a subject."""


class FolderSource:
    """A split's folder: volumes, images and a metadata.csv with the columns file_name, one per view, and subject.

    Every other column that holds the names of image files or of DICOM radiographs (.dcm) is a view. A column label
    names the class of each subject, empty where it is not known.

    Args:
        folder: folder of the split.
        views: names of the views to use, in this order; all of them, sorted, when absent.

    Raises:
        ValueError: the folder, its metadata.csv, a column or a listed file is missing; a path leaves the folder; the
            split is empty; a subject is listed twice or its name cannot be a file's.
    """

    def __init__(self, folder: Path, views: Sequence[str] | None = None) -> None:
        self._folder = folder
        rows, columns = _read_metadata(folder / METADATA_FILE)
        found = [name for name in columns if name not in ("file_name", "subject") and _holds_images(rows, name)]
        self.view_names = chosen_views(found, views, str(folder / METADATA_FILE))
        self.subjects = unique_subjects([row["subject"] for row in rows], str(folder / METADATA_FILE))
        self.labels = [row[LABEL_COLUMN] for row in rows] if LABEL_COLUMN in columns else None
        self._volumes = [self._path(row, "file_name") for row in rows]
        self._views = {view: [self._path(row, view) for row in rows] for view in self.view_names}

    def volume(self, index: int) -> Path:
        """Returns the path of a subject's volume."""
        return self._volumes[index]

    def view_image(self, index: int, view: str) -> Image.Image:
        """Returns one view of a subject; raises ValueError when the file is neither an image nor a radiograph."""
        return open_image(self._views[view][index])

    def _path(self, row: dict[str, str], column: str) -> Path:
        """The file that a row names in a column; it must exist inside the folder."""
        metadata, name = self._folder / METADATA_FILE, row[column]
        if not name:
            raise ValueError(
                f"{metadata}: found no {column} for subject {row['subject']!r}, expected a file; fill it in"
            )
        relative = os.path.normpath(name)
        if os.path.isabs(relative) or relative.split(os.sep)[0] == os.pardir:
            raise ValueError(
                f"{metadata}: found {name!r} in column {column}, expected a path inside the folder; move the file there"
            )
        path = self._folder / relative
        if not path.is_file():
            raise ValueError(
                f"{metadata}: found no file {name!r} of column {column}, expected it in {self._folder}; add it"
            )
        return path


class DatasetSource:
    """A split of a `datasets` data set with the columns volume (Nifti or path), one Image per view, and subject.

    A column label (ClassLabel or strings) names the class of each subject.

    Args:
        dataset: the split, a `datasets.Dataset`.
        name: what errors call it.
        views: names of the views to use, in this order; all Image columns, sorted, when absent.

    Raises:
        ValueError: a column is missing, the split is empty, a subject is listed twice or its name cannot be a file's.
    """

    def __init__(self, dataset: Any, name: str, views: Sequence[str] | None = None) -> None:
        from datasets import Image as ImageFeature

        self._name = name
        for column in ("volume", "subject"):
            if column not in dataset.column_names:
                raise ValueError(
                    f"{name}: found columns {dataset.column_names}, expected {column!r} among them; rename or add it"
                )
        if not len(dataset):
            raise ValueError(f"{name}: found no rows, expected at least one subject; choose another split")
        found = [column for column, feature in dataset.features.items() if isinstance(feature, ImageFeature)]
        self.view_names = chosen_views(found, views, name)
        self.subjects = unique_subjects([str(subject) for subject in dataset["subject"]], name)
        self.labels = _label_names(dataset) if LABEL_COLUMN in dataset.column_names else None
        # one column at a time, so that reading a view does not decode the volume
        self._columns = {column: dataset.select_columns([column]) for column in ("volume", *self.view_names)}

    def volume(self, index: int) -> Any:
        """Returns a subject's volume: a nibabel image, or its path where the column holds paths."""
        return self._read(index, "volume")

    def view_image(self, index: int, view: str) -> Image.Image:
        """Returns one view of a subject."""
        image: Image.Image = self._read(index, view)
        return image

    def _read(self, index: int, column: str) -> Any:
        """One decoded value."""
        try:
            value = self._columns[column][index][column]
        except read_errors() as error:
            raise ValueError(
                f"{self._name}: found no readable {column} of subject {self.subjects[index]!r} ({one_line(error)}), "
                "expected one; build the data set again"
            ) from error
        if value is None:
            raise ValueError(
                f"{self._name}: found no {column} of subject {self.subjects[index]!r}, expected one; fill it in"
            )
        return value


def open_source(source: str | Path, split: str, views: Sequence[str] | None = None) -> PairedSource:
    """Opens a split of a paired data set.

    Args:
        source: folder with a folder for each split, folder written by `save_to_disk`, or id of a data set on the Hub.
        split: name of the split.
        views: names of the views to use, in this order; all of them, sorted, when absent.

    Returns:
        The source of its subjects.

    Raises:
        ValueError: there is no such source or split, or it is malformed.
    """
    folder = Path(source)
    name = f"{source} ({split})"
    if any((folder / marker).is_file() for marker in ("dataset_dict.json", "dataset_info.json")):
        return DatasetSource(_load_saved(folder, split), name, views)
    if folder.is_dir():
        splits = sorted(path.name for path in folder.iterdir() if (path / METADATA_FILE).is_file())
        if split not in splits:
            raise MissingSplitError(
                f"{source}: found splits {splits}, expected {split!r} with a {METADATA_FILE}; add it"
            )
        return FolderSource(folder / split, views)
    if looks_like_path(source):
        raise ValueError(
            f"{source}: found no such folder, expected one with a folder for each split or one written by "
            "save_to_disk; check the path, which is not looked for on the Hub"
        )
    return DatasetSource(_load_from_hub(str(source), split), name, views)


def _label_names(dataset: Any) -> list[str]:
    """Name of each row's class, empty where there is none."""
    names = getattr(dataset.features[LABEL_COLUMN], "names", None)
    values = dataset[LABEL_COLUMN]
    if names is None:
        return ["" if value is None else str(value) for value in values]
    return ["" if value is None or value < 0 else names[value] for value in values]


def _load_saved(folder: Path, split: str) -> Any:
    """A split of a data set written by `save_to_disk`."""
    from datasets import DatasetDict, load_from_disk

    loaded = load_from_disk(str(folder))
    splits = loaded if isinstance(loaded, DatasetDict) else {str(loaded.split): loaded}
    if split not in splits:
        raise MissingSplitError(
            f"{folder}: found splits {list(splits)}, expected {split!r}; save a DatasetDict that has it"
        )
    return splits[split]


def _load_from_hub(source: str, split: str) -> Any:
    """A split of a data set on the Hub."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        splits = load_dataset(source)
    except (DatasetNotFoundError, OSError, ValueError) as error:
        raise ValueError(
            f"{source}: found neither a folder nor split {split!r} of a data set on the Hub ({one_line(error)}); "
            "check the name"
        ) from error
    if split not in splits:
        raise MissingSplitError(f"{source}: found splits {list(splits)}, expected {split!r}; choose another data set")
    return splits[split]


def _read_metadata(path: Path) -> tuple[list[dict[str, str]], list[str]]:
    """Rows and column names of a metadata.csv that has at least one row and the columns that every split needs."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file, restval="")
        rows = list(reader)
        columns = list(reader.fieldnames or [])
    for column in ("file_name", "subject"):
        if column not in columns:
            raise ValueError(f"{path}: found columns {columns}, expected {column!r} among them; rename or add it")
    if not rows:
        raise ValueError(f"{path}: found no rows, expected at least one subject; fill the split or choose another")
    return rows, columns


def _holds_images(rows: list[dict[str, str]], column: str) -> bool:
    """Whether a column names image files."""
    return any(row[column].lower().endswith(IMAGE_SUFFIXES) for row in rows)


def chosen_views(found: list[str], views: Sequence[str] | None, name: str) -> list[str]:
    """Returns the views asked for, in that order, or all that were found, sorted, so that all splits agree.

    Raises:
        ValueError: a view is missing or asked for twice.
    """
    if views is None:
        return sorted(found)
    missing = [view for view in views if view not in found]
    if missing:
        raise ValueError(
            f"{name}: found view columns {found}, expected {missing} too; add the columns or drop the views"
        )
    if len(set(views)) != len(views):
        raise ValueError(f"{name}: found views {list(views)}, expected each once; drop the repeated name")
    return list(views)


def unique_subjects(subjects: list[str], name: str) -> list[str]:
    """Returns the subjects; raises ValueError when one comes twice or cannot be part of a file name."""
    seen: set[str] = set()
    for subject in subjects:
        if subject in ("", ".", "..") or any(character in subject for character in "/\\\0"):
            raise ValueError(
                f"{name}: found subject {subject!r}, expected a name that can be a file's, not empty and without slash "
                "or backslash; rename it"
            )
        if subject in seen:
            raise ValueError(f"{name}: found subject {subject!r} twice, expected unique names; rename it")
        seen.add(subject)
    return subjects
