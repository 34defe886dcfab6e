"""Where paired subjects come from: a folder with metadata.csv, or a `datasets` data set."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from ..processors.dicom_radiographs import DICOM_SUFFIXES
from ..processors.image_files import decode_image, open_image
from ..processors.nifti_headers import decode_nifti
from ..tables import MissingFileError, check_columns, listed_file, read_table, stored_file
from .checking import MOST_NAMED
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

    def files(self, index: int, volume: bool, views: Sequence[str]) -> list[Path]:
        """Returns the files of a subject's volume and of some views, where these are files of their own."""


class FolderSource:
    """A split's folder: volumes, images and a metadata.csv with the columns file_name, one per view, and subject.

    Every other column that holds the names of image files or of DICOM radiographs (.dcm) is a view. A column label
    names the class of each subject, empty where it is not known.

    Args:
        folder: folder of the split.
        views: names of the views to use, in this order; all of them, sorted, when absent.
        allow_missing: let subjects pass whose files are missing.

    Attributes:
        facts: the text of each subject in each further column, which nothing here reads.

    Raises:
        ValueError: the folder, its metadata.csv, a column or a listed file is missing; a path leaves the folder; the
            split is empty; a subject is listed twice or its name cannot be a file's; see also `tables.read_table` and
            `tables.listed_file`.
    """

    def __init__(self, folder: Path, views: Sequence[str] | None = None, allow_missing: bool = False) -> None:
        self._folder = folder
        self._missing: list[str] = []
        rows, columns = _read_metadata(folder / METADATA_FILE)
        found = [name for name in columns if name not in ("file_name", "subject") and _holds_images(rows, name)]
        self.view_names = chosen_views(found, views, str(folder / METADATA_FILE))
        self.subjects = unique_subjects([row["subject"] for row in rows], str(folder / METADATA_FILE))
        self.labels = [row[LABEL_COLUMN] for row in rows] if LABEL_COLUMN in columns else None
        self._volumes = [self._path(row, "file_name") for row in rows]
        self._views = {view: [self._path(row, view) for row in rows] for view in self.view_names}
        if self._missing and not allow_missing:
            more = len(self._missing) - MOST_NAMED
            raise ValueError("; ".join(self._missing[:MOST_NAMED]) + (f"; and {more} more" if more > 0 else ""))
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

    def files(self, index: int, volume: bool, views: Sequence[str]) -> list[Path]:
        """Returns the files of a subject's volume and of some views."""
        return [*([self._volumes[index]] if volume else []), *(self.view_path(index, view) for view in views)]

    def _path(self, row: dict[str, str], column: str) -> Path:
        """The file that a row names in a column; it must lie inside the folder, and is noted if it is missing."""
        metadata, name = self._folder / METADATA_FILE, row[column]
        if not name:
            raise ValueError(
                f"{metadata}: found no {column} for subject {row['subject']!r}, expected a file; fill it in"
            )
        try:
            return listed_file(metadata, name, column, self._folder.parent)
        except MissingFileError as error:
            self._missing.append(str(error))
            return self._folder / name


class DatasetSource:
    """A split of a `datasets` data set with the columns volume (Nifti or path), one Image per view, and subject.

    A column label (ClassLabel or strings) names the class of each subject.

    Args:
        dataset: the split, a `datasets.Dataset`.
        name: what errors call it.
        views: names of the views to use, in this order; all Image columns, sorted, when absent.
        folder: the folder that it was loaded from; see `tables.stored_file`.

    Raises:
        ValueError: a column is missing, the split is empty, a subject is listed twice or its name cannot be a file's.
    """

    def __init__(self, dataset: Any, name: str, views: Sequence[str] | None = None, folder: Path = Path()) -> None:
        from datasets import Image as ImageFeature
        from datasets import Nifti

        self._name, self._folder = name, folder
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
        # one column at a time and undecoded: the decoders of `datasets` take every size, and files from anywhere
        self._columns = {column: dataset.select_columns([column]) for column in ("volume", *self.view_names)}
        for column, rows in self._columns.items():
            if isinstance(dataset.features[column], ImageFeature | Nifti):
                self._columns[column] = rows.cast_column(column, type(dataset.features[column])(decode=False))

    def volume(self, index: int) -> Any:
        """Returns a subject's volume: a nibabel image, or its path where the column holds paths."""
        stored, name = self._read(index, "volume")
        content = stored.get("bytes")
        return self._path(stored, name) if content is None else decode_nifti(content, name)

    def view_image(self, index: int, view: str) -> Image.Image:
        """Returns one view of a subject."""
        stored, name = self._read(index, view)
        if stored.get("bytes") is None:
            return open_image(self._path(stored, name))
        return decode_image(stored["bytes"], name)

    def files(self, index: int, volume: bool, views: Sequence[str]) -> list[Path]:
        """Returns none: what is wrong with what is embedded is found out by reading it, and not before."""
        return []

    def _path(self, stored: dict[str, Any], name: str) -> Path:
        return stored_file(str(stored.get("path") or ""), self._folder, name)

    def _read(self, index: int, column: str) -> tuple[dict[str, Any], str]:
        """What is stored of one value, its path or its bytes, and what errors call it."""
        subject = self.subjects[index]
        value = self._columns[column][index][column]
        if value is None:
            raise ValueError(f"{self._name}: found no {column} of subject {subject!r}, expected one; fill it in")
        stored = {"path": value} if isinstance(value, str) else value
        return stored, f"{self._name}: {column} of subject {subject!r}"


def open_source(
    folder: Path, split: str, name: str, views: Sequence[str] | None = None, allow_missing: bool = False
) -> PairedSource:
    """Opens a split of a paired data set.

    Args:
        folder: with a folder for each split, or with a `datasets` data set: see `locating.local_folder`.
        split: name of the split.
        name: what errors call the data set.
        views: names of the views to use, in this order; all of them, sorted, when absent.
        allow_missing: let subjects pass whose files are missing.

    Returns:
        The source of its subjects.

    Raises:
        ValueError: there is no such split, or it is malformed.
    """
    found = sorted(path.name for path in folder.iterdir() if (path / METADATA_FILE).is_file())
    if found or not holds_dataset(folder):
        if split not in found:
            raise MissingSplitError(f"{name}: found splits {found}, expected {split!r} with a {METADATA_FILE}; add it")
        return FolderSource(folder / split, views, allow_missing)
    splits = load_splits(folder, name)
    if split not in splits:
        raise MissingSplitError(
            f"{name}: found splits {list(splits)}, expected {split!r}; save a DatasetDict that has it, or choose "
            "another data set"
        )
    from .sharded_source import VOXELS_COLUMN, ShardedSource  # which is built on this module

    if VOXELS_COLUMN in splits[split].column_names:
        return ShardedSource(splits[split], f"{name} ({split})", views)
    return DatasetSource(splits[split], f"{name} ({split})", views, folder)


def _label_names(dataset: Any) -> list[str]:
    """Name of each row's class, empty where there is none."""
    names = getattr(dataset.features[LABEL_COLUMN], "names", None)
    values = dataset[LABEL_COLUMN]
    if names is None:
        return ["" if value is None else str(value) for value in values]
    return ["" if value is None or value < 0 else names[value] for value in values]


def _read_metadata(path: Path) -> tuple[list[dict[str, str]], list[str]]:
    """Rows and column names of a metadata.csv that has at least one row and the columns that every split needs."""
    rows, columns = read_table(path)
    check_columns(path, columns, ("file_name", "subject"))
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
