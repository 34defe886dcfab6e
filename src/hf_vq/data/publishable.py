"""The rows of a data set that is to be published, a few at a time: prepared cohorts and encoded codes."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from .cohort import SPLITS
from .locating import is_saved, load_splits
from .paired_sources import LABEL_COLUMN, METADATA_FILE, FolderSource

SUBJECT_COLUMN, VOLUME_COLUMN, CODES_COLUMN = "subject", "volume", "codes"


class PublishableSplit(Protocol):
    """Rows of one split as they will stand in Parquet files."""

    features: Any
    """`datasets.Features` of the columns."""

    @property
    def sizes(self) -> Sequence[int]:
        """Bytes of each row, about."""

    def table(self, rows: range) -> Any:
        """Returns some rows as a `pyarrow.Table`; only these are read."""


class CohortSplit:
    """A split's folder of volumes, views and `metadata.csv`, its files taken over byte for byte.

    The columns are subject, volume (`Nifti`), one `Image` per view, label where there is one, and the further columns
    of metadata.csv as text.

    Args:
        source: the folder.
        label_names: names of all classes in all splits, None where there are no labels.

    Raises:
        ValueError: a column of metadata.csv has the name of another one here.
    """

    def __init__(self, source: FolderSource, label_names: Sequence[str] | None) -> None:
        from datasets import ClassLabel, Features, Image, Nifti, Value

        self.source = source
        self._label_ids = None if label_names is None else {name: index for index, name in enumerate(label_names)}
        labels = {} if label_names is None else {LABEL_COLUMN: ClassLabel(names=list(label_names))}
        further = {**{view: Image() for view in source.view_names}, **{name: Value("string") for name in source.facts}}
        if VOLUME_COLUMN in further:
            raise ValueError(
                f"{METADATA_FILE}: found a column {VOLUME_COLUMN!r}, expected other names beside that of the volumes; "
                "rename it"
            )
        self.features = Features({SUBJECT_COLUMN: Value("string"), VOLUME_COLUMN: Nifti(), **further, **labels})
        self.sizes = [sum(path.stat().st_size for path in self.paths(index)) for index in range(len(source.subjects))]

    def paths(self, index: int) -> Iterator[Path]:
        """Yields the files of a subject, its volume first."""
        yield self.source.volume(index)
        for view in self.source.view_names:
            yield self.source.view_path(index, view)

    def table(self, rows: range) -> Any:
        """Returns some subjects, their files embedded."""
        import pyarrow as pa

        return pa.Table.from_pylist([self._row(index) for index in rows], schema=self.features.arrow_schema)

    def _row(self, index: int) -> dict[str, Any]:
        volume, *views = ({"bytes": path.read_bytes(), "path": path.name} for path in self.paths(index))
        row: dict[str, Any] = {SUBJECT_COLUMN: self.source.subjects[index], VOLUME_COLUMN: volume}
        row.update(zip(self.source.view_names, views, strict=True))
        row.update({name: column[index] for name, column in self.source.facts.items()})
        if self._label_ids is not None and self.source.labels is not None:
            row[LABEL_COLUMN] = self._label_ids.get(self.source.labels[index])  # None where it is not known
        return row


class CodesSplit:
    """A split of a code data set as `scripts/encode_codes.py` writes it.

    Args:
        dataset: the split, a `datasets.Dataset`.
    """

    def __init__(self, dataset: Any) -> None:
        self.features = dataset.features
        self.sizes = [max(1, dataset.data.nbytes // max(1, len(dataset)))] * len(dataset)
        self._dataset = dataset.with_format("arrow")

    def table(self, rows: range) -> Any:
        """Returns some rows."""
        return self._dataset[rows.start : rows.stop]


def open_cohort(folder: Path) -> dict[str, CohortSplit]:
    """Opens all splits of a prepared cohort.

    Args:
        folder: as `scripts/prepare_cohort.py` or `scripts/prepare_scans.py` writes it.

    Raises:
        ValueError: a split is malformed, or the splits differ in their columns.
    """
    found = [split for split in SPLITS if (folder / split / METADATA_FILE).is_file()]
    sources = {split: FolderSource(folder / split) for split in found}
    columns = {split: _columns(source) for split, source in sources.items()}
    for split, names in columns.items():
        if names != columns[found[0]]:
            raise ValueError(
                f"{folder}: found the columns {names} in {split} and {columns[found[0]]} in {found[0]}, expected the "
                f"same in all splits; complete {METADATA_FILE}"
            )
    labels = {label for source in sources.values() for label in source.labels or () if label}
    has_labels = any(source.labels is not None for source in sources.values())
    return {split: CohortSplit(source, sorted(labels) if has_labels else None) for split, source in sources.items()}


def open_codes(folder: Path) -> dict[str, CodesSplit]:
    """Opens all splits of a code data set.

    Args:
        folder: as `scripts/encode_codes.py` writes it.

    Raises:
        ValueError: it cannot be loaded, or a split has no column of codes.
    """
    splits = load_splits(folder, str(folder))
    for name, split in splits.items():
        if CODES_COLUMN not in split.column_names:
            raise ValueError(
                f"{folder}: found the columns {split.column_names} in {name}, expected {CODES_COLUMN!r} as "
                "encode_codes.py writes it; publish other data sets with their own push_to_hub"
            )
    return {name: CodesSplit(split) for name, split in splits.items()}


def holds_cohort(folder: Path) -> bool:
    """Returns whether a folder is a prepared cohort; raises ValueError when it can't be published at all."""
    if any((folder / split / METADATA_FILE).is_file() for split in SPLITS):
        return True
    if folder.is_dir() and is_saved(folder):
        return False
    raise ValueError(
        f"{folder}: found neither a prepared cohort ({SPLITS[0]}/{METADATA_FILE}) nor codes, expected what "
        "prepare_cohort.py, prepare_scans.py or encode_codes.py wrote; check the path"
    )


def _columns(source: FolderSource) -> list[str]:
    labels = [] if source.labels is None else [LABEL_COLUMN]
    return [*source.view_names, *sorted(source.facts), *labels]
