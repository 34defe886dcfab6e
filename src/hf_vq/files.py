"""Writing files and folders so that nothing half-written ever bears its final name; what a path looks like."""

import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from .locking import exclusive


@contextmanager
def atomic_directory(path: str | Path, overwrite: bool = False, marker: str | None = None) -> Iterator[Path]:
    """Yields a temporary sibling folder that takes the name `path` when the block ends well and vanishes when it fails.

    What killed runs left behind is cleaned up first, see `clear_leftovers`, and meanwhile no other process may write
    there, see `locking.exclusive`.

    Args:
        path: the final folder; its parents are made.
        overwrite: replace a folder that is already there; an existing empty one is always replaced.
        marker: pattern of a file by which a folder is known to be of the kind that may be replaced.

    Raises:
        ValueError: if `path` is a file, or a folder that is not empty and either `overwrite` is off or the marker is
            missing; another process is writing there.
    """
    final = Path(path).absolute()
    with exclusive(final) as alone:
        if alone:
            clear_leftovers(final)
        check_replaceable(path, overwrite, marker)
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.partial")
        temporary.mkdir()
        try:
            yield temporary
            follow_umask(temporary)
            replace_directory(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def check_replaceable(path: str | Path, overwrite: bool = False, marker: str | None = None) -> None:
    """Raises ValueError, as `atomic_directory`, unless a folder may be written, and replaced if it is there."""
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


def clear_leftovers(final: Path) -> None:
    """Cleans up after runs that were killed while they wrote a folder: what `replace_directory` had set aside comes
    back where nothing has taken its place, and what was half-written goes.

    Whoever calls it holds the folder's lock, so that no run is at work.
    """
    pattern = re.compile(rf"\.{re.escape(final.name)}\.[0-9a-f]{{8}}\.(partial|old)")
    siblings = sorted(final.parent.iterdir()) if final.parent.is_dir() else []
    found = [path for path in siblings if pattern.fullmatch(path.name)]
    asides = [path for path in found if path.suffix == ".old"]
    if asides and not final.exists():
        max(asides, key=lambda path: path.stat().st_mtime).rename(final)
    for path in found:
        shutil.rmtree(path, ignore_errors=True)


def replace_directory(new: Path, final: Path) -> None:
    """Gives a finished folder its name, so that even a power cut leaves either it or the one that it replaces.

    Killed between the two renames, a run leaves the earlier folder under a hidden name; `clear_leftovers` brings it
    back.
    """
    sync_tree(new)
    aside = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.old")
    if final.exists():
        final.rename(aside)
    try:
        new.rename(final)
    except OSError:
        if aside.exists():
            aside.rename(final)
        raise
    sync(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def sync_tree(folder: Path) -> None:
    """Has all files and folders in a folder, and itself, reach the disk."""
    for path in sorted(folder.rglob("*")):
        if not path.is_symlink():
            sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Has a file, or the names in a folder, reach the disk; a disk that turns out to be full is an OSError here."""
    if os.name != "posix":  # elsewhere only files open for writing can be, and folders never
        return
    file = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError) if path.is_dir() else nullcontext():  # not every file system can with folders
            os.fsync(file)
    finally:
        os.close(file)


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
        sync(temporary)
        os.replace(temporary, final)
        sync(final.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def staging_directory(folder: str | Path) -> Iterator[Path]:
    """Yields a temporary folder inside `folder`, for files that move there once finished; afterwards it is gone."""
    temporary = Path(folder).absolute() / f".{uuid.uuid4().hex[:8]}.partial"
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def clear_temporaries(folder: Path) -> None:
    """Removes, from a folder and those below, what killed runs left of `atomic_file` and `staging_directory`.

    Whoever calls it holds the folder's lock, so that no run is at work.
    """
    for path in [path for path in folder.rglob(".*") if re.fullmatch(r"\.[0-9a-f]{8}\..+", path.name)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


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
