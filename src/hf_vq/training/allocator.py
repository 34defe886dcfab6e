"""How the C library hands out memory to a training on a CPU."""

import ctypes
import os
import platform

# Parameters of glibc's mallopt, and the greatest values that it takes.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
TRIM_BYTES, MMAP_BYTES = 2**31 - 1, 1 << 25


def keep_freed_memory() -> bool:
    """Has glibc keep memory that is freed, up to 2 GiB, for the whole process.

    By default it gives freed memory back to the system when a step's tensors die, and the next step pays for every page
    again: a quarter of the time of a small transformer's step. Nothing is changed where the user has set one of glibc's
    `MALLOC_...` variables, or for another C library.

    Returns:
        Whether it was done.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    library = ctypes.CDLL(None)
    return bool(
        library.mallopt(M_MMAP_THRESHOLD, MMAP_BYTES) == 1 and library.mallopt(M_TRIM_THRESHOLD, TRIM_BYTES) == 1
    )
