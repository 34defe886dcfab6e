"""Where data are: in a folder here, or in a data set on the Hub, which is brought here first."""

from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from ..files import looks_like_path
from ..hub_access import not_found
from ..processors.fields import one_line

REVISION_MARK = "@"
SAVED_MARKERS = ("dataset_dict.json", "dataset_info.json")
"""Files by which a folder that `save_to_disk` wrote is known."""


def local_folder(source: str | Path) -> Path:
    """Returns the folder that holds the data: the one given, or one to which a data set on the Hub was downloaded.

    What has been downloaded once is found again without a network, with `HF_HUB_OFFLINE=1` without asking for changes.

    Args:
        source: a folder; or the id of a data set on the Hub, `owner/name`, or `owner/name@revision` for a branch, a tag
            or a commit other than `main`. What can only be meant as a path is not looked for on the Hub.

    Raises:
        ValueError: there is no such folder, data set or revision, or the Hub cannot be reached.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ValueError(f"{source}: found a file, expected a folder or the id of a data set; check the path")
    name, revision = split_revision(source)
    if isinstance(source, Path) or looks_like_path(name):
        raise ValueError(
            f"{source}: found no such folder, expected one with data; check the path, which is not looked for on the "
            "Hub because it looks like one"
        )
    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision))
    except Exception as error:  # the HTTP client's own errors have no base that huggingface_hub hands on
        raise not_found(name, error, revision, repo_type="dataset") from error


def split_revision(source: str | Path) -> tuple[str, str | None]:
    """Returns the id and the revision of `owner/name@revision`; None where it names no revision.

    Raises:
        ValueError: nothing follows the mark.
    """
    name, mark, revision = str(source).partition(REVISION_MARK)
    if mark and not revision:
        raise ValueError(f"{source}: found no revision after {mark!r}, expected a branch, a tag or a commit; add it")
    return name, revision or None


def holds_dataset(folder: Path) -> bool:
    """Returns whether a folder holds a `datasets` data set: one that `save_to_disk` wrote, or Parquet files."""
    return is_saved(folder) or any(folder.rglob("*.parquet"))


def is_saved(folder: Path) -> bool:
    """Returns whether `save_to_disk` wrote a folder."""
    return any((folder / marker).is_file() for marker in SAVED_MARKERS)


def load_splits(folder: Path, name: str) -> dict[str, Any]:
    """Returns the splits of the `datasets` data set in a folder.

    Args:
        folder: written by `save_to_disk`, or of files that `load_dataset` reads, such as a downloaded data set.
        name: what errors call it.

    Raises:
        ValueError: there is no data set that can be loaded.
    """
    from datasets import DatasetDict, load_dataset, load_from_disk
    from datasets.exceptions import DatasetsError

    try:
        loaded = load_from_disk(str(folder)) if is_saved(folder) else load_dataset(str(folder))
    except (DatasetsError, OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{name}: found no data set that `datasets` can load ({one_line(error)}), expected one; check the name, or "
            "write or download it again"
        ) from error
    return dict(loaded) if isinstance(loaded, DatasetDict) else {str(loaded.split or "train"): loaded}
