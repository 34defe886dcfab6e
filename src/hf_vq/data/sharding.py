"""Writing a `datasets` data set shard by shard, so that a run that is killed goes on behind its last finished shard.

While it is written, everything lies in the hidden folder `.NAME.unfinished` beside the one that it becomes: the
settings, and of each finished shard an Arrow file and, last of all, a record. The finished data set is one that
`datasets.load_from_disk` maps into memory. The same rows in the same shards give the same bytes, however often the run
was interrupted and however many processes there were.
"""

import csv
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from ..files import atomic_file, check_replaceable, clear_leftovers, follow_umask, replace_directory
from ..locking import exclusive
from .checking import Skipped

SHARD_SIZE = 1024
SKIPPED_FILE = "skipped.csv"
MARKER = "*/dataset_info.json"
"""By which a folder is known to be a data set that may be replaced."""

_SETTINGS, _RESULT = "settings.json", "result"


@dataclass(frozen=True)
class Shard:
    """Some consecutive items of a split.

    Attributes:
        split: name of the split.
        number: place of the shard in it, from 0.
        items: indices of the items.
    """

    split: str
    number: int
    items: range


class ShardedOutput:
    """A data set that is being written; see the module. Every process of a run makes one with the same arguments.

    Args:
        path: the final folder.
        settings: everything that the result depends on, as JSON types.
        sizes: number of items of each split.
        shard_size: items of a shard.

    Raises:
        ValueError: `shard_size` is not positive.
    """

    def __init__(
        self, path: str | Path, settings: Mapping[str, Any], sizes: Mapping[str, int], shard_size: int = SHARD_SIZE
    ) -> None:
        if shard_size < 1:
            raise ValueError(f"--shard_size: found {shard_size}, expected at least 1; correct it")
        self.path = Path(path).absolute()
        self.folder = unfinished_folder(path)
        facts = {**settings, "items": dict(sizes), "shard_size": shard_size}
        self._settings = json.loads(json.dumps(facts, default=str))
        self._sizes, self._shard_size = dict(sizes), shard_size

    @contextmanager
    def writing(self, overwrite: bool = False) -> Iterator[None]:
        """Holds the lock of the folder, and makes everything ready to write the shards that are missing.

        Of several processes only the first one enters; the others wait for it before they write, and it for them
        before it calls `finish`.

        Args:
            overwrite: replace a finished data set at the end; give up an unfinished one with other settings.

        Raises:
            ValueError: the path may not be written to, another process is writing there, or what an earlier run has
                left unfinished has other settings.
        """
        with exclusive(self.path) as alone:
            if alone:
                clear_leftovers(self.path)
            check_replaceable(self.path, overwrite, MARKER)
            if self.folder.is_dir() and not self._goes_on(overwrite):
                shutil.rmtree(self.folder)
            for split in self._sizes:
                (self.folder / split).mkdir(parents=True, exist_ok=True)
                for leftover in (self.folder / split).glob(".*"):  # what `atomic_file` had not finished
                    leftover.unlink()
            with atomic_file(self.folder / _SETTINGS) as temporary:
                temporary.write_text(json.dumps(self._settings, indent=2) + "\n", encoding="utf-8")
            yield

    def missing(self, split: str, rank: int = 0, num_processes: int = 1) -> list[Shard]:
        """Returns the shards of a split that this process, of several, has to write."""
        return [shard for shard in self._shards(split)[rank::num_processes] if not self._is_finished(shard)]

    def write(self, shard: Shard, batches: Iterator[tuple[Any, Mapping[str, Any]]], skipped: list[Skipped]) -> None:
        """Writes a shard, one batch of rows in memory at a time.

        Args:
            shard: one of `missing`.
            batches: the `datasets.Features` and the columns of some rows each.
            skipped: items of this shard that have no row, complete when the batches are exhausted.

        Raises:
            ValueError: rows differ in their shapes.
        """
        from datasets.arrow_writer import ArrowWriter

        path, num_rows = self._arrow_path(shard), 0
        first = next(batches, None)
        if first is not None:
            features, columns = first
            with atomic_file(path) as temporary, ArrowWriter(features=features, path=str(temporary)) as writer:
                writer.write_batch(dict(columns))
                for others, columns in batches:
                    self._check_features(shard.split, features, others)
                    writer.write_batch(dict(columns))
                num_rows, _ = writer.finalize()
        record = {"rows": num_rows, "skipped": [[entry.subject, entry.reason] for entry in skipped]}
        with atomic_file(self._record_path(shard)) as temporary:
            temporary.write_text(json.dumps(record), encoding="utf-8")

    def rows(self) -> dict[str, int]:
        """Returns the number of rows of each split, all of its shards being finished."""
        return {split: sum(self._record(shard)["rows"] for shard in self._shards(split)) for split in self._sizes}

    def skipped(self) -> list[Skipped]:
        """Returns the items that have no row, all shards being finished."""
        shards = [shard for split in self._sizes for shard in self._shards(split)]
        return [Skipped(shard.split, *entry) for shard in shards for entry in self._record(shard)["skipped"]]

    def finish(self, texts: Mapping[str, str]) -> None:
        """Makes the data set out of the shards, all of which are written, and gives it its name.

        Args:
            texts: contents of further files, by their names.

        Raises:
            ValueError: a split has no row, or rows differ in their shapes.
        """
        self._check_shards()
        empty = [split for split, count in self.rows().items() if not count]
        if empty:
            raise ValueError(
                f"{self.path}: found no item of {', '.join(empty)} that can be read, expected at least one; repair "
                "the data and run the same command again"
            )
        result = self.folder / _RESULT
        for split in self._sizes:
            self._finish_split(split, result / split)
        for name, text in {"dataset_dict.json": json.dumps({"splits": list(self._sizes)}), **texts}.items():
            (result / name).write_text(text, encoding="utf-8", newline="\n")
        follow_umask(result)
        replace_directory(result, self.path)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _goes_on(self, overwrite: bool) -> bool:
        """Whether an earlier run left something behind that this one can go on with."""
        try:
            earlier = json.loads((self.folder / _SETTINGS).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return False  # killed before it had written a shard
        other = sorted(name for name in {*earlier, *self._settings} if earlier.get(name) != self._settings.get(name))
        if other and not overwrite:
            raise ValueError(
                f"{self.path}: found an unfinished run with other settings ({', '.join(other)}; {other[0]} was "
                f"{earlier.get(other[0])!r}, now {self._settings.get(other[0])!r}) in {self.folder.name}, expected the "
                "same to go on; run the earlier command again, choose another --output_dir or pass --overwrite"
            )
        return not other and self._is_intact()

    def _is_intact(self) -> bool:
        """Whether all rows are there that the records tell of: of a run that was killed while it tidied up, they are
        in the finished data set."""
        if (self.folder / _RESULT).is_dir():
            return True
        finished = [shard for split in self._sizes for shard in self._shards(split) if self._is_finished(shard)]
        return all(self._arrow_path(shard).is_file() for shard in finished if self._record(shard)["rows"])

    def _is_finished(self, shard: Shard) -> bool:
        return self._record_path(shard).is_file()

    def _check_shards(self) -> None:
        """Raises ValueError unless all shards hold columns of the same types and shapes."""
        from datasets import Features
        from pyarrow import ipc

        first: Any = None
        for shard in (shard for split in self._sizes for shard in self._shards(split)):
            if self._arrow_path(shard).is_file():
                with ipc.open_stream(self._arrow_path(shard)) as reader:
                    features = Features.from_arrow_schema(reader.schema)
                self._check_features(shard.split, first or features, features)
                first = first or features

    @staticmethod
    def _check_features(split: str, expected: Any, found: Any) -> None:
        other = [name for name, feature in found.items() if expected.get(name) != feature]
        if other or len(found) != len(expected):
            name = other[0] if other else "columns"
            raise ValueError(
                f"{split}: found {name!r} as {found.get(name, list(found))} and as {expected.get(name, list(expected))}"
                ", expected the same in all rows; bring the data to one grid and one kind of image"
            )

    def _finish_split(self, split: str, folder: Path) -> None:
        """Moves the shards of a split to where `load_from_disk` finds them; repeated after a kill it goes on."""
        from datasets import DatasetInfo, Features
        from pyarrow import ipc

        folder.mkdir(parents=True, exist_ok=True)
        shards = [shard for shard in self._shards(split) if self._record(shard)["rows"]]
        names = [f"data-{place:05d}-of-{len(shards):05d}.arrow" for place in range(len(shards))]
        digest = hashlib.sha256()
        for shard, name in zip(shards, names, strict=True):
            if self._arrow_path(shard).is_file():
                self._arrow_path(shard).replace(folder / name)
            with (folder / name).open("rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
        with ipc.open_stream(folder / names[0]) as reader:
            DatasetInfo(features=Features.from_arrow_schema(reader.schema)).write_to_directory(str(folder))
        state: dict[str, Any] = {
            "_data_files": [{"filename": name} for name in names],
            "_fingerprint": digest.hexdigest()[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": split,
        }
        (folder / "state.json").write_text(json.dumps(state, indent=2, sort_keys=True), encoding="utf-8")

    def _shards(self, split: str) -> list[Shard]:
        size, step = self._sizes[split], self._shard_size
        return [
            Shard(split, number, range(start, min(start + step, size)))
            for number, start in enumerate(range(0, size, step))
        ]

    def _arrow_path(self, shard: Shard) -> Path:
        return self.folder / shard.split / f"{shard.number:05d}.arrow"

    def _record_path(self, shard: Shard) -> Path:
        return self.folder / shard.split / f"{shard.number:05d}.json"

    def _record(self, shard: Shard) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(self._record_path(shard).read_text(encoding="utf-8"))
        return record


def unfinished_folder(path: str | Path) -> Path:
    """The hidden folder in which a data set is written that will have a name."""
    final = Path(path).absolute()
    return final.with_name(f".{final.name}.unfinished")


def list_skipped(skipped: Sequence[Skipped]) -> str:
    """The contents of `skipped.csv`."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("split", "subject", "reason"))
    writer.writerows((entry.split, entry.subject, entry.reason) for entry in skipped)
    return text.getvalue()
