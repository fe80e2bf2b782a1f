"""Rows of data that a caller in Python passes: tensors and numpy arrays, checked before they are used."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gebm_kit.core.errors import DataError, UsageError
from gebm_kit.core.frames import is_frame
from gebm_kit.core.precision import check_single_precision

ARRAYS = "a tensor or a numpy array of rows (N, ...)"
"""What `tensor_of_rows` takes, for messages."""


def tensor_of_rows(rows: object, name: str, *, allowed: str = ARRAYS) -> Tensor:
    """Return rows (N, *D) of numbers as a tensor that is detached from any graph.

    Args:
        rows: a tensor, a numpy array of numbers, or another array or series that becomes one by ``to_numpy()``.
        name: what the caller's argument is called, for messages.
        allowed: what the caller takes, for the message about something else.

    Raises:
        UsageError: it is something else; the message says what may be given.
        DataError: it holds something else than real numbers.
    """
    if isinstance(rows, Tensor):
        found = rows.detach()
    elif isinstance(rows, np.ndarray | np.generic):
        found = _tensor_of_array(rows, name)
    elif hasattr(rows, "to_numpy") and not is_frame(rows):
        found = _tensor_of_array(np.asarray(rows.to_numpy()), name)
    else:
        raise UsageError(f"{name} must be {allowed}, got {type(rows).__name__}", hint=_hint(rows))
    if found.is_meta:
        raise DataError(f"{name} is on the device meta, which holds no numbers")
    if found.is_complex() or found.is_quantized or found.layout != torch.strided:
        raise DataError(
            f"{name} holds {str(found.dtype).removeprefix('torch.')} ({found.layout}); plain real numbers are needed"
        )
    return found


def check_precision(rows: Tensor, dtype: torch.dtype, names: tuple[str, ...], source: str) -> None:
    """Raise if a model that computes in single precision would see different rows of a table as one.

    Args:
        rows: rows (N, *D); only those of a table, (N, D), are checked, and only if all are finite.
        dtype: type of the model's weights.

    Raises:
        DataError: the message names the columns.
    """
    if rows.ndim == 2 and dtype != torch.float64 and bool(rows.isfinite().all()):
        check_single_precision(rows.cpu(), names, source, "Subtract the mean of each column first, as training did.")


def _tensor_of_array(rows: np.ndarray | np.generic, name: str) -> Tensor:
    rows = np.asarray(rows)
    if rows.dtype.kind not in "fiub":
        raise DataError(f"{name} holds values of type {rows.dtype}; numbers are needed")
    if rows.dtype.kind == "u" and rows.dtype.itemsize > 1:
        if rows.size and int(rows.max()) >= 2**63:
            raise DataError(f"{name} holds {int(rows.max())}; whole numbers must be below 2**63")
        rows = rows.astype(np.int64)
    elif rows.dtype == np.longdouble or not rows.dtype.isnative:
        rows = rows.astype(rows.dtype.newbyteorder("=") if rows.dtype.itemsize <= 8 else np.float64)
    return torch.from_numpy(np.array(rows))  # a copy: strides may be negative, and the array may be read-only


def _hint(rows: object) -> str:
    if isinstance(rows, str) or hasattr(rows, "__fspath__"):
        return "Read the file first."
    if hasattr(rows, "to_numpy"):
        return "Give its .to_numpy()."
    if hasattr(rows, "collect"):
        return "Give its .collect()."
    return "For a list, torch.tensor(rows)." if isinstance(rows, list | tuple) else ""
