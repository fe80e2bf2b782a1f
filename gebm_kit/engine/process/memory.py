"""Running out of memory, on a device or beside it, as an error of the kit."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from gebm_kit.core.attribution import is_out_of_memory
from gebm_kit.core.errors import RunFailed, UsageError
from gebm_kit.core.reading import amount, available_memory

SMALL = 2**26
"""Bytes, 64 MiB, below which nobody looks at how much memory is free."""


@contextmanager
def enough_memory(device: torch.device, doing: str | Callable[[], str], hint: str) -> Iterator[None]:
    """Turn an out-of-memory error inside the block into a `RunFailed`: "cuda:0 is out of memory `doing`".

    Args:
        device: where the block computes.
        doing: what needed the memory, such as "at step 10"; a function is called once memory has run out.
        hint: what to reduce.

    Raises:
        RunFailed: the device or the host is out of memory.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        what = doing if isinstance(doing, str) else doing()
        raise RunFailed(f"{device} is out of memory {what}", hint=hint) from error


def require_memory(needed: int, what: str, hint: str) -> None:
    """Raise before anything is allocated if ``what`` takes more memory than this process can still use.

    Args:
        needed: bytes.
        what: plural noun, such as "1,000,000 draws".
        hint: what to reduce.

    Raises:
        UsageError: it does.
    """
    if needed > SMALL and needed > (free := available_memory()):
        raise UsageError(f"{what} take {amount(needed)} of memory, and {amount(free)} are free", hint=hint)


def require_disk(folder: Path, needed: int, what: str) -> None:
    """Raise before anything is computed if ``what`` takes more room than the disk of ``folder`` has.

    Args:
        folder: where the files go; it need not exist yet. What it holds already counts as room.
        needed: bytes.
        what: plural noun, such as "1,000,000 draws".

    Raises:
        UsageError: it does.
    """
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        room = shutil.disk_usage(place).free
        room += sum(entry.stat(follow_symlinks=False).st_size for entry in os.scandir(folder)) if folder.is_dir() else 0
    except OSError:  # writing will say what is wrong
        return
    if needed > room:
        raise UsageError(
            f"{what} take {amount(needed)} on the disk of {folder}, and {amount(room)} are free",
            hint="Draw fewer (num_samples), or choose another place.",
        )
