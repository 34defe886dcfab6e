"""Checkpoints of a training on disk: written as a whole or not at all, checked before use, the last few kept."""

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..files import follow_umask

CHECKPOINT_PREFIX = "checkpoint-"
CHECKPOINT_INFO = "checkpoint.json"
LOG_FILE = "logs.jsonl"
PARTIAL, ASIDE = ".partial", ".old"
CHUNK = 1 << 20
# Parts of a run's own folder that are no result of it.
TRACES = (LOG_FILE, "logs", "validation")


def checkpoint_path(output_dir: Path, step: int) -> Path:
    """Folder of the checkpoint after a number of steps."""
    return output_dir / f"{CHECKPOINT_PREFIX}{step:07d}"


def partial_path(path: Path) -> Path:
    """What a checkpoint is called while it is being written."""
    return path.with_name(f".{path.name}{PARTIAL}")


def finish_checkpoint(temporary: Path, path: Path, info: Mapping[str, Any]) -> None:
    """Completes a folder that holds a state, and gives it the name of a checkpoint once all of it lies on the disk.

    Args:
        temporary: what was written under `partial_path(path)`.
        path: the name to take; a checkpoint that has it is replaced.
        info: JSON types that say what the state belongs to; digests of all files are added.
    """
    follow_umask(temporary)
    files = {name.relative_to(temporary).as_posix(): name for name in sorted(temporary.rglob("*")) if name.is_file()}
    described = {name: {"size": file.stat().st_size, "sha256": _digest(file)} for name, file in files.items()}
    content = json.loads(json.dumps({**info, "files": described}, default=str))
    with (temporary / CHECKPOINT_INFO).open("w", encoding="utf-8") as file:
        json.dump({**content, "sha256": _digest_of(content)}, file)
    for entry in (*temporary.rglob("*"), temporary):
        sync(entry)
    aside = path.with_name(f".{path.name}{ASIDE}")
    if path.exists():
        path.rename(aside)
    temporary.rename(path)
    sync(path.parent)
    shutil.rmtree(aside, ignore_errors=True)


def remove_older(path: Path, limit: int) -> None:
    """Removes the oldest checkpoints up to the one given, but for the last `limit`.

    Later ones, which a run that went back to an earlier state has left behind, neither count nor go. One that cannot be
    removed is named on stderr, with the reason: it takes space, but nothing is lost.
    """
    upto = [found for found in list_checkpoints(path.parent) if step_of(found) <= step_of(path)]
    for old in upto[:-limit]:
        doomed = partial_path(old)  # so that one that is removed in part is no checkpoint any more
        left = old
        try:
            old.rename(doomed)
            left = doomed
            shutil.rmtree(doomed)
        except OSError as error:  # above the progress bar, which this may come in the middle of
            tqdm.write(f"warning: {left} could not be removed ({error}); remove it yourself", file=sys.stderr)


def clean_leftovers(output_dir: Path) -> None:
    """Removes what killed runs left half-written, and puts back a checkpoint whose replacement never came."""
    for aside in output_dir.glob(f".{CHECKPOINT_PREFIX}*{ASIDE}"):
        path = aside.with_name(aside.name.removeprefix(".").removesuffix(ASIDE))
        if path.exists():
            shutil.rmtree(aside)
        else:
            aside.rename(path)
    for partial in output_dir.glob(f".{CHECKPOINT_PREFIX}*{PARTIAL}"):
        shutil.rmtree(partial)


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Folders in a folder that look like checkpoints, oldest first; whether they are intact, `read_info` tells."""
    found = [path for path in output_dir.glob(f"{CHECKPOINT_PREFIX}*") if path.is_dir()]
    return sorted((path for path in found if path.name.removeprefix(CHECKPOINT_PREFIX).isdecimal()), key=step_of)


def step_of(path: Path) -> int:
    """Number of optimizer steps before a checkpoint, which its name tells."""
    return int(path.name.removeprefix(CHECKPOINT_PREFIX))


def read_info(path: Path) -> dict[str, Any]:
    """What `finish_checkpoint` was told, once every file was found as it was written.

    Raises:
        ValueError: with the reason, if the checkpoint is incomplete, truncated or altered.
    """
    try:
        content = json.loads((path / CHECKPOINT_INFO).read_text(encoding="utf-8"))
        own, files = content.pop("sha256"), content["files"]
    except FileNotFoundError:
        raise ValueError(f"it has no {CHECKPOINT_INFO}") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f"{CHECKPOINT_INFO} is damaged") from None
    if own != _digest_of(content):
        raise ValueError(f"{CHECKPOINT_INFO} is not what was written")
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            raise ValueError(f"{name} is missing")
        if file.stat().st_size != expected["size"]:
            raise ValueError(f"{name} has {file.stat().st_size} bytes; {expected['size']} were written")
        if _digest(file) != expected["sha256"]:
            raise ValueError(f"{name} is not what was written")
    return content


def find_checkpoint(
    output_dir: Path, which: str, check: Callable[[Mapping[str, Any]], None] | None = None
) -> Path | None:
    """The checkpoint that `--resume_from_checkpoint` means: a folder, a name inside `output_dir`, or `latest`.

    Of `latest`, those that are damaged or belong to something else are passed over, with a line on stderr for each.

    Args:
        output_dir: where the run writes.
        which: value of the flag.
        check: raises a ValueError with the reason if a checkpoint with this info is not one to go on from.

    Returns:
        Its folder; None for `latest` where a training was stopped, or not even begun, before its first checkpoint.

    Raises:
        ValueError: if there is no such checkpoint, or it is not intact, or none of them is.
    """
    if which != "latest":
        return _named_checkpoint(output_dir, which, check)
    found = list_checkpoints(output_dir)
    for path in reversed(found):
        reason = _refusal(path, check)
        if reason is None:
            return path
        print(f"warning: {path} is not used: {reason}", file=sys.stderr)
    if found:
        raise ValueError(
            f"--resume_from_checkpoint latest: none of the {len(found)} checkpoint(s) in {output_dir} can be used; "
            f"{found[-1].name}: {_refusal(found[-1], check)}"
        )
    if not holds_only_traces(output_dir):
        raise ValueError(
            f"--resume_from_checkpoint latest: {output_dir} holds no complete checkpoint, but other things than the "
            "log of a training that was stopped before its first one; choose another --output_dir, or start again "
            "without it and with --overwrite true"
        )
    return None


def holds_only_traces(output_dir: Path) -> bool:
    """True of a folder that is absent or empty, or holds no more than the log and the pictures of a training."""
    names = {entry.name for entry in output_dir.iterdir()} if output_dir.is_dir() else set()
    visible = {name for name in names if not name.startswith(".")}
    return not visible or (LOG_FILE in visible and visible <= set(TRACES))


def _named_checkpoint(output_dir: Path, which: str, check: Callable[[Mapping[str, Any]], None] | None) -> Path:
    for path in (Path(which), output_dir / which):
        if path.is_dir():
            reason = _refusal(path, check)
            if reason is not None:
                raise ValueError(f"--resume_from_checkpoint {which}: {path} cannot be used: {reason}")
            return path
    raise ValueError(f"--resume_from_checkpoint {which}: there is no such folder; name a checkpoint or 'latest'")


def _refusal(path: Path, check: Callable[[Mapping[str, Any]], None] | None) -> str | None:
    try:
        info = read_info(path)
        if check is not None:
            check(info)
    except (ValueError, OSError) as error:
        return str(error)
    return None


def sync(path: Path) -> None:
    """Waits until a file, or the list of names in a folder, lies on the disk; not every system can for a folder."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
            raise
    finally:
        os.close(file)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _digest_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
