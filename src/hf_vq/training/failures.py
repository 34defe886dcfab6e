"""What ends a run from outside, a full disk or a worker that dies, in one line that says what to do."""

import errno
import re

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)
_FULL_DISK = re.compile(r"No space left|Disk quota exceeded|PytorchStreamWriter failed|unexpected pos \d+ vs")
_DEAD_WORKER = re.compile(r"DataLoader worker \(pid.*?\) (exited unexpectedly|is killed by signal)")
_IN_WORKER = re.compile(r"^Caught \w+ in DataLoader worker process \d+\.")


def message_of(error: Exception) -> str | None:
    """Returns what a user can do something about in one line, None for a fault of the program.

    Args:
        error: what ended a script.
    """
    text = " ".join(str(error.__cause__ if isinstance(error, StrictDataclassError) else error).split())
    if (isinstance(error, OSError) and error.errno in _FULL) or _FULL_DISK.search(text):
        return (
            f"the disk is full ({text}), nothing that was finished is lost; free some space and run again, a training "
            "with --resume_from_checkpoint latest"
        )
    if isinstance(error, OSError) and error.errno in _REFUSED:
        return f"{text}; change the permissions, or choose another --output_dir"
    if _DEAD_WORKER.search(text):
        return (
            f"a process that loads data has died ({text}), perhaps because memory, or shared memory, ran out; run "
            "again with fewer --dataloader_num_workers, a training with --resume_from_checkpoint latest"
        )
    if isinstance(error, RuntimeError | SafetensorError):
        return None
    if _IN_WORKER.match(str(error)):  # the message stands behind the worker's stack trace
        return " ".join(str(error).rpartition(f"\n{type(error).__name__}: ")[2].split())
    return text
