"""Tables in memory, such as those of pandas and polars, read column by column without importing either."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gebm_kit.core.errors import DataError, shown

_INDEX_NAME = re.compile(r"(Unnamed: \d+(\.\d+)?(_level_\d+)?|__index_level_\d+__)?")
"""What pandas calls a column without a name, which is the index of a table that was written with it."""

_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")
"""A number in text, as files of tables may write it."""

_CONVERT = "Convert it to numbers, or leave it out if it is no measurement."
"""What to do with a column that holds something else."""

_MISSING = ("NoneType", "NAType", "NaTType")
"""Types of a missing value among objects."""


def is_frame(value: object) -> bool:
    """Return whether ``value`` is a table with columns that can be read one by one: a pandas or polars DataFrame."""
    columns = getattr(value, "columns", None)
    iterable = isinstance(columns, Iterable) and not isinstance(columns, str)
    return iterable and hasattr(value, "to_numpy") and hasattr(value, "__getitem__")


def frame_names(frame: Any) -> tuple[str, ...]:
    """Return the names of the columns as text. Columns that are only counted have the names 1 to D, as in files."""
    columns = list(frame.columns)
    if all(isinstance(name, int | np.integer) and not isinstance(name, bool) for name in columns):
        return tuple(str(place + 1) for place in range(len(columns)))
    return tuple(map(_name, columns))


def _name(label: object) -> str:
    if isinstance(label, tuple):
        return " ".join(map(str, label)).strip()
    return "" if label is None or label != label else str(label)


def is_index_name(name: str) -> bool:
    """Return whether a table of pandas gives this name to its row labels."""
    return bool(_INDEX_NAME.fullmatch(name))


def rows_of_frame(frame: Any, places: Sequence[int], source: str, bad: dict[int, str] | None = None) -> Tensor:
    """Return some columns of a frame as rows of numbers, (N, len(places)) float64; a missing value is NaN.

    Args:
        places: indices of the columns, in the order wanted. What other columns hold does not matter.
        source: what the frame is called, for messages.
        bad: gets what is wrong with rows that hold something else than numbers, by row number from 1; they hold NaN. Numbers
            in text are read then, because one text in a column of a file makes pandas keep all of it as text. None: raise.

    Raises:
        DataError: a column holds something else than numbers, or its name stands twice.
    """
    labels, names = list(frame.columns), frame_names(frame)
    counts = Counter(labels)
    for place in places:
        if counts[labels[place]] > 1:
            raise DataError(
                f"{source}: {counts[labels[place]]} columns are called {names[place]!r}", hint="Rename them."
            )
    columns = [_numbers(frame[labels[place]], f"{source}: column {names[place]!r}", bad) for place in places]
    rows = np.stack(columns, axis=1) if columns else np.empty((len(frame), 0))
    return torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float64))


def plain_values(values: Any) -> Any:
    """Return labels in an array or a pandas or polars Series as an array of numbers, or as a list of texts; others as is."""
    if hasattr(values, "to_numpy") and not is_frame(values):
        values = np.asarray(values.to_numpy())
    return values.tolist() if isinstance(values, np.ndarray) and values.dtype.kind in "UO" else values


def _numbers(series: Any, what: str, bad: dict[int, str] | None) -> np.ndarray:
    values = np.asarray(series.to_numpy())
    if values.ndim == 1 and values.dtype.kind in "fiub":
        return values.astype(np.float64)
    if values.ndim == 1 and values.dtype.kind in "OU":
        column = values.tolist()
        wrong = [row for row, value in enumerate(column, start=1) if not _holds_number(value)]
        if bad is None and any(isinstance(value, str) for value in column):  # numbers in text are no numbers here
            wrong = wrong or [row for row, value in enumerate(column, start=1) if isinstance(value, str)]
        if wrong and bad is None:
            raise DataError(
                f"{what} holds {shown(column[wrong[0] - 1])} in row {wrong[0]}; numbers are needed", hint=_CONVERT
            )
        reasons = {} if bad is None else bad
        for row in wrong:
            reasons.setdefault(row, f"{what.partition(': ')[2]} holds {shown(column[row - 1])}, which is not a number")
            column[row - 1] = None
        return np.array([_number(value) for value in column], np.float64)
    kind = f"values of type {values.dtype}" if values.ndim == 1 else f"an array of shape {values.shape} in each row"
    raise DataError(f"{what} holds {kind}; numbers are needed", hint=_CONVERT)


def _holds_number(value: Any) -> bool:
    """Return whether a value is a number, a number in text, or missing."""
    if isinstance(value, str):
        return bool(_NUMBER.fullmatch(value))
    return type(value).__name__ in _MISSING or isinstance(value, Real | Decimal | np.bool_)


def _number(value: Any) -> float:
    return math.nan if type(value).__name__ in _MISSING else float(value)
