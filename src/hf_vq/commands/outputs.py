"""Files that a command is asked to write: their kind, and that none is replaced unasked."""

from collections.abc import Iterable, Sequence
from pathlib import Path


def split_suffix(flag: str, path: Path, suffixes: Sequence[str]) -> tuple[Path, str]:
    """A path without its suffix, and the suffix.

    Args:
        flag: what named the path, for the error.
        path: file to write.
        suffixes: those that are known; of two that fit, the first one counts.

    Raises:
        ValueError: another suffix, or nothing in front of it.
    """
    for suffix in suffixes:
        if path.name.endswith(suffix) and path.name != suffix:
            return path.with_name(path.name.removesuffix(suffix)), suffix
    raise ValueError(f"{flag}: found {path}, expected a name with {' or '.join(suffixes)} at its end; add it")


def check_new(paths: Iterable[Path], overwrite: bool) -> None:
    """Raises ValueError when a file to write is there already and must not be replaced, or is a folder."""
    for path in paths:
        if path.is_dir():
            raise ValueError(f"{path}: found a folder, expected the name of a file to write; choose another name")
        if path.exists() and not overwrite:
            raise ValueError(f"{path}: found a file, expected a new name; choose another one or pass --overwrite")
