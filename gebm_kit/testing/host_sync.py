"""A guard against waiting for the device. On a GPU each such wait drains the queue of kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

SYNCING_OPERATORS = frozenset(
    {"_local_scalar_dense", "nonzero", "nonzero_numpy", "masked_select", "_unique2", "unique_dim", "bincount", "equal"}
)
"""Operators whose result, or its shape, depends on values that live on the device."""

SYNCING_METHODS = frozenset(
    {
        "item",
        "tolist",
        "numpy",
        "cpu",
        "nonzero",
        "masked_select",
        "unique",
        "equal",
        "allclose",
        "__bool__",
        "__float__",
    }
    | {"__int__", "__index__", "__array__", "__contains__"}
)
"""Tensor methods that read values from the device, whichever operators they call."""


class HostSyncError(AssertionError):
    """The error for code that waited for the device although it must not."""


class _Operators(TorchDispatchMode):
    """The guard on operators."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in SYNCING_OPERATORS:
            raise HostSyncError(f"the operator {name} waits for the device")
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            if masks:
                raise HostSyncError("indexing by a boolean mask waits for the device; use torch.where")
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    """The guard on tensor methods called from Python."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in SYNCING_METHODS:
            raise HostSyncError(f"Tensor.{name} waits for the device")
        return func(*args, **(kwargs or {}))


@contextmanager
def forbid_host_sync() -> Iterator[None]:
    """Raise `HostSyncError` when code within the block reads a value from a tensor.

    This works on CPU tensors too, where nothing would wait, because it watches the operators: ``.item()``, ``nonzero``,
    boolean masks, ``bool(tensor)`` and everything that leads to them. On CUDA devices torch's own guard is switched on as
    well.
    """
    cuda = torch.cuda.is_available()
    before = torch.cuda.get_sync_debug_mode() if cuda else 0
    if cuda:
        torch.cuda.set_sync_debug_mode("error")
    try:
        with _Methods(), _Operators():
            yield
    finally:
        if cuda:
            torch.cuda.set_sync_debug_mode(before)
