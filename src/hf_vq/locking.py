"""One writer per output folder: a lock that the operating system takes back when its process ends, however that is."""

import errno
import os
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no POSIX locks, and there is no lock then
    fcntl = None  # type: ignore[assignment]

_HELD = (errno.EACCES, errno.EAGAIN)
_files: dict[Path, int] = {}
_entries: Counter[Path] = Counter()


@contextmanager
def exclusive(folder: str | Path) -> Iterator[bool]:
    """Holds the lock of an output folder, so that no other process writes into it meanwhile.

    The lock is a POSIX one on the file `.NAME.lock` beside the folder, which stays there and says who holds it. It
    belongs to the process: child processes, such as those that load data, don't inherit it, it ends with the process
    however that ends, and who holds it may enter again. Where the file cannot be made, or the file system or the
    operating system knows no such locks, there is none and the block runs all the same.

    Args:
        folder: need not exist; its parents are made.

    Yields:
        Whether there is a lock.

    Raises:
        ValueError: naming process and host, if another process holds it.
    """
    path = lock_path(folder)
    held = path in _files or _acquire(path, folder)
    _entries[path] += held
    try:
        yield held
    finally:
        _entries[path] -= held
        if held and not _entries[path]:
            os.close(_files.pop(path))


def lock_path(folder: str | Path) -> Path:
    """The file that stands for a folder: beside it, since the folder itself may be replaced while it is written."""
    final = Path(folder).resolve()
    return final.with_name(f".{final.name}.lock")


def _acquire(path: Path, folder: str | Path) -> bool:
    """Takes the lock; False where there can be none."""
    if fcntl is None or not path.name.strip("."):
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    except OSError:
        return False
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = _holder(file)
        os.close(file)
        if error.errno not in _HELD:
            return False
        raise ValueError(
            f"{folder} is being written to by {holder}; wait until it ends or stop it, or choose another --output_dir"
        ) from None
    _files[path] = file
    _sign(file)
    return True


def _sign(file: int) -> None:
    """Writes down who holds the lock; on a full disk nobody will know, but the lock holds."""
    text = f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S %z')}"
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, text.encode(), 0)
    except OSError:
        pass


def _holder(file: int) -> str:
    return os.pread(file, 200, 0).decode(errors="replace").strip() or "another process"
