"""Writing files and folders so that nothing half-written ever bears its final name; what a path looks like."""

import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_directory(path: str | Path, overwrite: bool = False, marker: str | None = None) -> Iterator[Path]:
    """Yields a temporary sibling folder that takes the name `path` when the block ends well and vanishes when it fails.

    Args:
        path: the final folder; its parents are made.
        overwrite: replace a folder that is already there; an existing empty one is always replaced.
        marker: pattern of a file by which a folder is known to be of the kind that may be replaced.

    Raises:
        ValueError: if `path` is a file, or a folder that is not empty and either `overwrite` is off or the marker is
            missing.
    """
    final = Path(path).absolute()
    if final.exists() and not final.is_dir():
        raise ValueError(f"{path} is a file; expected a folder to write to. Choose another --output_dir.")
    if final.is_dir() and any(final.iterdir()) and not overwrite:
        raise ValueError(f"{path} exists and is not empty; choose another --output_dir or pass --overwrite")
    if final.is_dir() and any(final.iterdir()) and marker is not None and not any(final.glob(marker)):
        raise ValueError(
            f"{path} holds no {marker}, so it is something else than what would be written and stays; choose another "
            "--output_dir"
        )
    final.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex[:8]
    temporary = final.with_name(f".{final.name}.{mark}.partial")
    temporary.mkdir()
    try:
        yield temporary
        follow_umask(temporary)
        _replace_directory(temporary, final, final.with_name(f".{final.name}.{mark}.old"))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace_directory(new: Path, final: Path, aside: Path) -> None:
    if final.exists():
        final.rename(aside)
    new.rename(final)
    shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary sibling path (same suffixes) that takes the name `path` when the block ends well.

    Args:
        path: the final file; its parents are made, an existing file is replaced.
    """
    final = Path(path).absolute()
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{uuid.uuid4().hex[:8]}.{final.name}")
    try:
        yield temporary
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)


def move_files_into(source: Path, destination: Path, last: str) -> None:
    """Moves all entries of a finished folder into another one, replacing what is there; `last` goes last.

    `last` is the file by which a reader knows a complete folder, such as `config.json`: until it arrives, the
    destination does not look complete.
    """
    follow_umask(source)
    destination.mkdir(parents=True, exist_ok=True)
    (destination / last).unlink(missing_ok=True)
    for entry in sorted(source.iterdir(), key=lambda path: (path.name == last, path.name)):
        target = destination / entry.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(entry, target)


def follow_umask(folder: Path) -> None:
    """Gives the files in a folder and below the permissions of any new file there.

    Some writers make a private file and rename it, and so hand on permissions for nobody but the owner: the one of
    safetensors does.
    """
    probe = folder / f".{uuid.uuid4().hex[:8]}"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) != mode:
            path.chmod(mode)


def looks_like_path(source: str | Path) -> bool:
    """Returns whether a source that was not found here can only have been meant as a path.

    Ids on the Hub are `name` or `owner/name`; anything with more slashes, with a dot, a slash or a tilde in front, or
    whose beginning exists as a folder here is a path.
    """
    text = str(source)
    parts = text.split("/")
    has_marks = text.startswith((".", "/", "~")) or len(parts) > 2 or parts[-1] == "" or "\\" in text
    return isinstance(source, Path) or has_marks or (len(parts) == 2 and Path(parts[0]).exists())
