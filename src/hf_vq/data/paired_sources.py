"""Where paired subjects come from: a folder with metadata.csv, or a `datasets` data set."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from ..processors.dicom_radiographs import DICOM_SUFFIXES
from ..processors.fields import one_line
from ..processors.image_processing_xray import open_image
from ..processors.scans import read_errors
from .locating import holds_dataset, load_splits
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

    Attributes:
        facts: the text of each subject in each further column, which nothing here reads.

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
        known = {"file_name", "subject", LABEL_COLUMN, *found}
        self.facts = {name: [row[name] for row in rows] for name in columns if name not in known}

    def volume(self, index: int) -> Path:
        """Returns the path of a subject's volume."""
        return self._volumes[index]

    def view_image(self, index: int, view: str) -> Image.Image:
        """Returns one view of a subject; raises ValueError when the file is neither an image nor a radiograph."""
        return open_image(self.view_path(index, view))

    def view_path(self, index: int, view: str) -> Path:
        """Returns the path of one view of a subject."""
        return self._views[view][index]

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


def open_source(folder: Path, split: str, name: str, views: Sequence[str] | None = None) -> PairedSource:
    """Opens a split of a paired data set.

    Args:
        folder: with a folder for each split, or with a `datasets` data set: see `locating.local_folder`.
        split: name of the split.
        name: what errors call the data set.
        views: names of the views to use, in this order; all of them, sorted, when absent.

    Returns:
        The source of its subjects.

    Raises:
        ValueError: there is no such split, or it is malformed.
    """
    found = sorted(path.name for path in folder.iterdir() if (path / METADATA_FILE).is_file())
    if found or not holds_dataset(folder):
        if split not in found:
            raise MissingSplitError(f"{name}: found splits {found}, expected {split!r} with a {METADATA_FILE}; add it")
        return FolderSource(folder / split, views)
    splits = load_splits(folder, name)
    if split not in splits:
        raise MissingSplitError(
            f"{name}: found splits {list(splits)}, expected {split!r}; save a DatasetDict that has it, or choose "
            "another data set"
        )
    return DatasetSource(splits[split], f"{name} ({split})", views)


def _label_names(dataset: Any) -> list[str]:
    """Name of each row's class, empty where there is none."""
    names = getattr(dataset.features[LABEL_COLUMN], "names", None)
    values = dataset[LABEL_COLUMN]
    if names is None:
        return ["" if value is None else str(value) for value in values]
    return ["" if value is None or value < 0 else names[value] for value in values]


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
