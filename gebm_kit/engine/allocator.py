"""Memory that the C library keeps once it is freed, so that the next tensor of that size is there at once.

glibc gives the top of the heap back to the system when a large tensor is freed, and gets it again, page by page, when the
next one is made: a gradient of a mid-sized model on a CPU costs hundreds of page faults, in each of which all threads of the
process wait for one another.
"""

from __future__ import annotations

import ctypes
import sys

KEPT_BYTES = 2**28
"""Freed memory at the top of the heap that stays with the process, 256 MiB."""

LARGEST_KEPT = 2**25
"""Allocations beyond this, 32 MiB, are mapped and given back one by one: glibc's own upper bound."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> bool:
    """Let this process keep freed memory; whether there is a glibc to hear it.

    It changes the process's allocator and no result, so it is called by the program and not by the library; a program that
    samples on a CPU through Python may call it once, before its first tensors.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, LARGEST_KEPT)) and bool(mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES))
