"""Running out of memory, on a device or beside it, as an error of the kit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from gebm_kit.core.errors import RunFailed


@contextmanager
def enough_memory(device: torch.device, doing: str | Callable[[], str], hint: str) -> Iterator[None]:
    """Turn an out-of-memory error inside the block into a `RunFailed`: "cuda:0 is out of memory `doing`".

    Three errors count as one: `torch.OutOfMemoryError`, `MemoryError`, and the RuntimeError of torch's CPU allocator.

    Args:
        device: where the block computes.
        doing: what needed the memory, such as "at step 10"; a function is called once memory has run out.
        hint: what to reduce.

    Raises:
        RunFailed: the device or the host is out of memory.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and (type(error) is not RuntimeError or "can't allocate memory" not in str(error)):
            raise
        what = doing if isinstance(doing, str) else doing()
        raise RunFailed(f"{device} is out of memory {what}", hint=hint) from error
