"""A guard against waiting for the device: on a GPU each such wait drains the queue of kernels."""

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
"""Calls from Python that read values off the device, whatever they do below."""


class HostSyncError(AssertionError):
    """Code that must not wait for the device did."""


class _Operators(TorchDispatchMode):
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
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in SYNCING_METHODS:
            raise HostSyncError(f"Tensor.{name} waits for the device")
        return func(*args, **(kwargs or {}))


@contextmanager
def forbid_host_sync() -> Iterator[None]:
    """Within the block, whatever reads a value off a tensor raises `HostSyncError`.

    Works on CPU tensors, where nothing would wait: it is the operators that are watched (``.item()``, ``nonzero``, boolean
    masks, ``bool(tensor)`` and what leads to them). On CUDA devices torch's own guard is switched on as well.
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
