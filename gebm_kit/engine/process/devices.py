"""The device to compute on, moving a model there and back, and the C library's memory."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gebm_kit.core.errors import UsageError, shown
from gebm_kit.core.model import GEBM

ALLOWED = "Allowed: auto, cpu, cuda, cuda:N."
"""Hint for a device that can't be used."""


def resolve_device(device: str | torch.device) -> torch.device:
    """Find the device for ``auto`` (CUDA if available, else the CPU) or for a name that torch knows.

    Raises:
        UsageError: torch knows no such device, or this machine does not have it.
    """
    if isinstance(device, str) and device == "auto":
        # Not Apple's MPS: it has no float64, in which energies and estimates are summed.
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if not isinstance(device, str | torch.device):
        raise UsageError(f"device must be a name or a torch.device, got {type(device).__name__}", hint=ALLOWED)
    try:
        found = torch.device(device)
        if found.type == "cpu" and found.index:
            raise RuntimeError("there is one CPU device, without a number")
        torch.ones(1, device=found).cpu().item()  # one value there and back: meta has none
    except Exception as error:  # backends that are not there raise errors of all kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"device {shown(str(device))} can't be used: {reason}", hint=ALLOWED) from error
    return torch.device("cpu") if found.type == "cpu" else found


@contextmanager
def placed(model: GEBM, device: torch.device | str | None) -> Iterator[tuple[torch.device, torch.dtype]]:
    """Put the model on ``device`` (None: where it is) for the block, then back;
    yields the device and the model's dtype."""
    home, dtype = model.device, model.dtype
    there = home if device is None else resolve_device(device)
    if there == home:
        yield there, dtype
        return
    model.to(there)
    try:
        yield there, dtype
    finally:
        model.to(home)


KEPT_BYTES = 2**28
"""Most freed memory at the top of the heap that stays with the process, 256 MiB."""


LARGEST_KEPT = 2**25
"""Largest allocation from the heap, 32 MiB, glibc's own upper bound; larger ones are mapped and returned one by one."""


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> bool:
    """Let this process keep freed memory for its next tensors. Returns whether it runs on glibc, which alone offers
    that.

    glibc returns the top of the heap to the system when a large tensor is freed, and gets it back, page by page, for
    the next one. A gradient of a mid-sized model on a CPU then costs hundreds of page faults, and all threads of the
    process wait in each of them.

    This changes the process's allocator but no result. The command line calls it; the library does not. A Python
    program that samples on a CPU may call it once, before its first tensors.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, LARGEST_KEPT)) and bool(mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES))
