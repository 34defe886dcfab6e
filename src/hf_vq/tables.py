"""Reading CSV files that others have written, and the files that they name; see docs/security.md."""

import csv
import os
from pathlib import Path

MAX_TABLE_BYTES = 2**28
"""Most bytes of a table, which is read as a whole."""

# Folders of the Hub's cache: <cache>/datasets--owner--name/snapshots/<commit>/... are links to
# <cache>/datasets--owner--name/blobs/<digest>, which may be links to <cache>/blobs/<..>/<digest>.
_BLOBS, _SNAPSHOTS = "blobs", "snapshots"
_REPOSITORIES = ("datasets--", "models--", "spaces--")


class MissingFileError(ValueError):
    """A table names a file that is not there."""


def read_table(path: str | Path) -> tuple[list[dict[str, str]], list[str]]:
    """Reads a CSV file whose first row names its columns.

    Args:
        path: the file, UTF-8 with or without a byte order mark.

    Returns:
        The rows, empty text where a row ends early, and the names of the columns.

    Raises:
        ValueError: the file is missing, unreadable, too large, not UTF-8 or no table; a column comes twice; a row has
            more cells than there are columns.
    """
    try:
        if os.stat(path).st_size > MAX_TABLE_BYTES:
            raise ValueError(f"{path}: found over {MAX_TABLE_BYTES} bytes, expected a smaller table; divide it")
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            rows, columns = list(reader), list(reader.fieldnames or [])
    except FileNotFoundError:
        raise ValueError(f"{path}: found no such file, expected a CSV file; check the path") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(
            f"{path}: found no readable table ({reason}), expected a CSV file in UTF-8; save it as one or check its "
            "permissions"
        ) from error
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: found the columns {twice} twice, expected each once; rename or remove them")
    for number, row in enumerate(rows, start=1):
        if None in row:
            raise ValueError(
                f"{path}: found more cells in row {number} than the columns {columns}, expected as many; "
                "put text with commas in quotation marks"
            )
    return rows, columns


def check_columns(path: str | Path, columns: list[str], wanted: tuple[str, ...]) -> None:
    """Raises ValueError unless all wanted columns are among those of a table."""
    for column in wanted:
        if column not in columns:
            raise ValueError(f"{path}: found columns {columns}, expected {column!r} among them; rename or add it")


def listed_file(table: Path, name: str, column: str, root: Path | None = None) -> Path:
    """Returns the file that a table in a data set names, refused where it would lead out of the data set.

    A name must be relative and may not climb above the table's folder by `..`, whatever lies there. Links are followed
    to files in the table's folder, in `root`, or, from a snapshot in the Hub's cache, where the cache keeps its files;
    a link to any other place is refused, because whoever wrote the data set could otherwise have any file read, and
    published, by whoever uses it.

    Args:
        table: path of the table.
        name: the cell, a path relative to the table's folder.
        column: the cell's column, for errors.
        root: folder of the whole data set; the table's own when absent.

    Raises:
        ValueError: the name is empty or leads outside, or there is no such file.
    """
    relative = os.path.normpath(name)
    if "\0" in name or os.path.isabs(relative) or relative.split(os.sep)[0] == os.pardir:
        raise ValueError(
            f"{table}: found {name!r} in column {column}, expected a path inside the folder; move the file there"
        )
    path = table.parent / relative
    if not path.is_file():
        raise MissingFileError(
            f"{table}: found no file {name!r} of column {column}, expected it in {table.parent}; add it"
        )
    if not _stays_inside(path, (table.parent, root or table.parent)):
        raise ValueError(
            f"{table}: found {name!r} in column {column}, a link to {os.path.realpath(path)}, expected a file inside "
            "the data set; copy it there"
        )
    return path


def stored_file(path: str, folder: Path, name: str) -> Path:
    """Returns the file that a row of a `datasets` data set names in place of holding it.

    One on the disk may name files anywhere, as `save_to_disk` writes them; one from the Hub only files of its own.

    Args:
        path: the file; addresses of other machines are no files.
        folder: the folder that the data set was loaded from.
        name: what errors call the row.

    Raises:
        ValueError: the file lies outside a data set from the Hub.
    """
    file = Path(path.rpartition("::")[2])
    if _stores(Path(os.path.realpath(folder))) and not _stays_inside(file, (folder,)):
        raise ValueError(
            f"{name}: found the path {path!r}, expected a file inside the data set from the Hub; do not use the data "
            "set, or ask its owner to embed the files"
        )
    return file


def _stays_inside(path: Path, folders: tuple[Path, ...]) -> bool:
    """Whether links lead no further than these folders or the cache's store of the repository that they belong to."""
    real = Path(os.path.realpath(path))
    roots = [Path(os.path.realpath(folder)) for folder in folders]
    return any(real.is_relative_to(place) for root in roots for place in (root, *_stores(root)))


def _stores(folder: Path) -> list[Path]:
    """Where the Hub's cache keeps the files of a folder that lies in it; nowhere for other folders."""
    repositories = [
        place.parent
        for place in folder.parents
        if place.name == _SNAPSHOTS and place.parent.name.startswith(_REPOSITORIES)
    ]
    return [folder / _BLOBS for repository in repositories for folder in (repository, repository.parent)]
