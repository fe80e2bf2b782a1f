"""Running out of memory, on a device or beside it, as an error of the kit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from gebm_kit.core.attribution import is_out_of_memory
from gebm_kit.core.errors import RunFailed


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
