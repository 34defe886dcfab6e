"""What a command is given by name: a folder, or the files of a repository on the Hub."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download

from ..hub.weights import read_header
from ..hub_access import loading
from ..models.loading import MODEL_FILE, check_folder

SMALL_FILES = ["*.json", "*.md"]


def local_folder(source: str, wanted: Sequence[str], unwanted: Sequence[str] = (), revision: str | None = None) -> Path:
    """A folder as it is; of a repository the files wanted, in the cache.

    Args:
        source: folder or Hub id.
        wanted: patterns of the files to fetch.
        unwanted: patterns of files among them to leave out.
        revision: branch, tag or commit of a Hub id.

    Raises:
        ValueError: there is neither.
    """
    if Path(source).is_dir():
        if revision is not None:
            raise ValueError(f"--revision {revision}: found the folder {source}, expected a Hub id; leave it out")
        return Path(source)
    check_folder(source, MODEL_FILE)  # refuses what can only be meant as a path
    allow, ignore = list(wanted), list(unwanted) or None
    with loading(source, revision):
        return Path(snapshot_download(source, revision=revision, allow_patterns=allow, ignore_patterns=ignore))


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping that a JSON file holds; none where there is no such file.

    Raises:
        ValueError: it holds something else.
    """
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: found no JSON ({error}), expected a mapping; copy or save it again") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: found {type(values).__name__}, expected a mapping; copy or save it again")
    return values


@dataclass(frozen=True)
class Contents:
    """The files of a folder or a repository, of which only small ones are read.

    Attributes:
        source: folder or Hub id, as it was named.
        folder: where the small files are.
        sizes: bytes of every file by its path.
        commit: of a repository.
        is_complete: whether `sizes` has all files; of a repository that cannot be asked it has those in the cache.
    """

    source: str
    folder: Path
    sizes: dict[str, int]
    commit: str | None = None
    is_complete: bool = True

    @classmethod
    def open(cls, source: str, revision: str | None = None) -> "Contents":
        """Looks at a folder or a repository; raises ValueError when there is neither."""
        folder = local_folder(source, SMALL_FILES, revision=revision)
        files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
        hidden = {path for path in files if any(part.startswith(".") for part in path.parts)}
        cached = {path.as_posix(): file.stat().st_size for path, file in files.items() if path not in hidden}
        if Path(source).is_dir():
            return cls(source, folder, cached)
        commit = folder.name
        try:
            with loading(source, commit):
                listed = HfApi().model_info(source, revision=commit, files_metadata=True).siblings or []
        except ValueError:  # offline: snapshot_download was content with the cache, and so is this
            return cls(source, folder, cached, commit, is_complete=False)
        return cls(source, folder, {file.rfilename: file.size or 0 for file in listed}, commit)

    def json(self, path: str) -> dict[str, Any] | None:
        """The mapping in a JSON file; none where there is no such file."""
        return read_json(self.folder / path)

    def values(self, path: str) -> Counter[str]:
        """Number of values of each type in a safetensors file, by its header alone.

        Raises:
            ValueError: the file is damaged.
        """
        local = self.folder / path
        if self.commit is None or local.is_file():
            return _count(read_header(local))
        with loading(self.source, self.commit):
            header = HfApi().parse_safetensors_file_metadata(self.source, path, revision=self.commit)
        return _count((tensor.dtype, tensor.shape) for tensor in header.tensors.values())


def _count(tensors: Iterable[tuple[str, Sequence[int]]]) -> Counter[str]:
    counter: Counter[str] = Counter()
    for dtype, shape in tensors:
        counter[dtype] += prod(shape)
    return counter
