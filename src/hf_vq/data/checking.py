"""Finding subjects whose files cannot be used before a run starts on them, to stop it or to leave them out."""

import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..processors.nifti_headers import is_nifti_name, read_declaration

ON_ERROR = ("stop", "skip")
MOST_NAMED = 10
"""Subjects that an error names."""

_NUM_THREADS = 16
_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


@dataclass(frozen=True)
class Skipped:
    """A subject that could not be read.

    Attributes:
        split: its split.
        subject: its name.
        reason: what is wrong, in one line.
    """

    split: str
    subject: str
    reason: str


class Checkable(Protocol):
    """What is checked: a `PairedDataset`."""

    subjects: list[str]

    def problem(self, index: int, thorough: bool = False) -> str | None:
        """Returns what is wrong with a subject's files."""


def usable(dataset: Checkable, split: str, on_error: str) -> list[int]:
    """Returns the indices of the subjects that a run can use.

    Args:
        dataset: of the run.
        split: its name, for messages.
        on_error: `"stop"`: only sizes and headers of the files are looked at, which finds missing, empty and truncated
            ones in little time; `"skip"`: every subject is read once, because a training cannot leave one out later,
            and those that cannot be are listed on stderr.

    Raises:
        ValueError: `on_error` is unknown; with `"stop"` naming the subjects that cannot be read; with `"skip"` when
            none can be.
    """
    check_on_error(on_error)
    threads = min(_NUM_THREADS, 2 * (os.cpu_count() or 1))
    with ThreadPoolExecutor(threads) as pool:
        reasons = list(pool.map(lambda index: dataset.problem(index, on_error == "skip"), range(len(dataset.subjects))))
    bad = [Skipped(split, dataset.subjects[index], reason) for index, reason in enumerate(reasons) if reason]
    if bad and on_error == "stop":
        raise ValueError(stop_message(bad))
    if len(bad) == len(reasons):
        raise ValueError(f"{split}: found no subject that can be read; {bad[0].subject}: {bad[0].reason}")
    tell_skipped(bad)
    return [index for index, reason in enumerate(reasons) if not reason]


def check_on_error(on_error: str) -> None:
    """Raises ValueError unless a policy is known."""
    if on_error not in ON_ERROR:
        raise ValueError(f"--on_error: found {on_error!r}, expected one of {list(ON_ERROR)}; choose one")


def stop_message(bad: Sequence[Skipped]) -> str:
    """The error for subjects that cannot be read; names the first few."""
    named = "; ".join(f"{entry.split} subject {entry.subject}: {entry.reason}" for entry in bad[:MOST_NAMED])
    more = f"; and {len(bad) - MOST_NAMED} more" if len(bad) > MOST_NAMED else ""
    return f"found {len(bad)} that cannot be read: {named}{more}. Repair them, or leave them out with --on_error skip"


def tell_skipped(bad: Iterable[Skipped]) -> None:
    """Lists on stderr what is left out."""
    for entry in bad:
        print(f"skipped {entry.split} subject {entry.subject}: {entry.reason}", file=sys.stderr)


def looks_whole(path: Path) -> bool:
    """Returns whether nothing about a file's ends says that it is cut short: a look, not a proof.

    False means that the file must be read to know; such are gzip files of several members, which are rare and right.

    Args:
        path: NIfTI file, or image of any format; of the formats other than PNG only the size is looked at.
    """
    try:
        size = path.stat().st_size
        if not is_nifti_name(path):
            return size > 0 and _ends_as_it_began(path)
        declared = read_declaration(path)
        if path.suffix.lower() != ".gz":
            return size >= declared.size
        # the last four bytes of a gzip file are the size of what was compressed, modulo 2 ** 32
        return int.from_bytes(_tail(path, 4), "little") == declared.size % 2**32
    except (OSError, ValueError):
        return False


def _ends_as_it_began(path: Path) -> bool:
    with path.open("rb") as file:
        is_png = file.read(len(_PNG_START)) == _PNG_START
    return not is_png or _tail(path, len(_PNG_END)) == _PNG_END


def _tail(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        file.seek(-count, os.SEEK_END)
        return file.read()
