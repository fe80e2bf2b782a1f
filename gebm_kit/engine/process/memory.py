"""Running out of memory, on a device or beside it, as an error of the kit."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gebm_kit.core.attribution import culprit, is_out_of_memory
from gebm_kit.core.errors import RecipeError, RunFailed, UsageError
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
        if found := culprit(error):
            what = f"{what}, in {found}"
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


COPIES = 4
"""Copies of a weight that training holds: itself, its gradient and two moments. As many tensors of a batch are in use at
once: data, base draws and their gradients."""


def device_memory(device: torch.device) -> int:
    """Return the bytes that tensors on ``device`` may still take: a GPU's whole memory, or what the host has available."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return available_memory()


def require_device_memory(needed: int, device: torch.device, what: str) -> None:
    """Raise before anything is allocated that can't fit.

    Args:
        needed: bytes, at least.
        device: where they are needed.
        what: the setting that asks for them, with its value.

    Raises:
        RecipeError: the device has less.
    """
    there = device_memory(device)
    if needed > there:
        raise RecipeError(
            f"{what} needs at least {_gigabytes(needed)} of memory, and {device} has {_gigabytes(there)}",
            hint="Choose a smaller one.",
        )


@contextmanager
def bounded_tensors(device: torch.device, what: str) -> Iterator[None]:
    """Refuse, inside the block, tensors that are made so large that nothing could be trained with them.

    The operating system grants more memory than there is and ends the process once it is written to. So a size is looked
    at before the tensor is made.

    Raises:
        RecipeError: a tensor would take more than a `COPIES`-th of the memory.
    """
    with _Bounded(device_memory(device) // COPIES, device, what):
        yield


class _Bounded(TorchDispatchMode):
    """A mode in which tensors beyond ``limit`` bytes are not made."""

    def __init__(self, limit: int, device: torch.device, what: str) -> None:
        super().__init__()
        self._limit, self._device, self._what = limit, device, what

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        name = func.overloadpacket.__name__
        size = args[0] if args and name in ("empty", "zeros", "ones", "full", "rand", "randn", "empty_strided") else ()
        if isinstance(size, list | tuple | torch.Size) and given.get("device", torch.device("cpu")).type != "meta":
            dtype = given.get("dtype") or torch.get_default_dtype()
            needed = math.prod(int(n) for n in size) * torch.empty((), dtype=dtype, device="meta").element_size()
            if size and needed > self._limit:
                raise RecipeError(
                    f"{self._what} has a tensor of shape {tuple(int(n) for n in size)}, {_gigabytes(needed)}, of which "
                    f"training needs {COPIES} copies, and {self._device} has {_gigabytes(self._limit * COPIES)} of memory",
                    hint="Make it smaller: hidden, width, channels or latent_dim.",
                )
        return func(*args, **given)


def _gigabytes(number: int) -> str:
    return f"{number / 1e9:,.1f} GB"
