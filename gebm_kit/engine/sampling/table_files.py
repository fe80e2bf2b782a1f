"""Draws as a table: a .csv or .parquet file with the columns' names, in the units of the data's file."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from gebm_kit.core.errors import UsageError
from gebm_kit.core.units import LARGEST_WHOLE, HasMeasured, TableUnits

TABLE_SUFFIXES = (".csv", ".parquet")
"""Formats of tables."""


CLASS_COLUMN = "class"
"""Name of the column of classes; a number follows where the data have a column of that name."""


def is_table(out: str | Path) -> bool:
    """Return whether draws written to ``out`` are a table."""
    return Path(out).suffix in TABLE_SUFFIXES


def check_table(path: Path, data_shape: tuple[int, ...]) -> None:
    """Check, before anything is computed, that draws of this shape can be written as a table.

    Raises:
        UsageError: they are not rows of columns, or .parquet is asked for without pyarrow.
    """
    if len(data_shape) != 1:
        raise UsageError(
            f"{path.name} is a table of columns, and the draws have shape {data_shape}",
            hint="Write .safetensors or .npz; images also with --images.",
        )
    if path.suffix == ".parquet":
        _pyarrow(path)


def table_content(path: Path, x: Tensor, units: HasMeasured | None, classes: Sequence[str] | None = None) -> bytes:
    """Return the content of a table with one line for each draw.

    A column whose measurements are all whole numbers is written as whole numbers, in .parquet as int64.

    Args:
        path: its suffix says which format.
        x: draws as the model makes them, (N, D).
        units: names of the columns, and what turns x into measurements; None: x itself, named x1, ..., xD.
        classes: the class of each draw, for a last column, see `CLASS_COLUMN`.

    Raises:
        UsageError: the units are those of other columns.
    """
    units = units or TableUnits.unchanged(x.shape[1])
    rows = units.measured(x)
    names = column_titles(tuple(units.columns))
    if len(names) != rows.shape[1]:
        raise UsageError(f"{path.name}: the draws have {rows.shape[1]} columns, and the data name {len(names)}")
    columns = [_values(column, whole) for column, whole in zip(rows.T, whole_columns(units, rows), strict=True)]
    if classes is not None:
        others = (f"{CLASS_COLUMN}_{number}" for number in itertools.count(2))
        names.append(next(name for name in itertools.chain([CLASS_COLUMN], others) if name not in names))
    if path.suffix == ".parquet":
        arrow = _pyarrow(path)
        from pyarrow import parquet

        arrays = [arrow.array(column) for column in columns]
        table = arrow.table(arrays if classes is None else [*arrays, arrow.array(list(classes))], names=names)
        sink = io.BytesIO()
        parquet.write_table(table, sink)
        return sink.getvalue()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    fields = [list(map(repr, column.tolist())) for column in columns]
    writer.writerows(zip(*fields, *([] if classes is None else [classes]), strict=True))
    return text.getvalue().encode()


def column_titles(names: tuple[str, ...]) -> list[str]:
    """Return the names of columns as a table has them: x1, x2, ... for columns that only have numbers.

    A line of numbers would be taken for a row when the file is read.
    """
    numbers = tuple(str(place + 1) for place in range(len(names)))
    return [f"x{name}" for name in numbers] if names == numbers else list(names)


def whole_columns(units: HasMeasured, rows: Tensor) -> list[bool]:
    """Return which columns of measurements hold whole numbers by the data's units, and in fact, (D,)."""
    stated = getattr(units, "whole", ()) or (False,) * rows.shape[1]
    fits = ((rows == rows.round()) & (rows.abs() < LARGEST_WHOLE)).all(0).tolist()
    return [bool(whole) and fit for whole, fit in zip(stated, fits, strict=True)]


def _values(column: Tensor, whole: bool) -> np.ndarray:
    return np.asarray((column.long() if whole else column).contiguous().numpy())


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise UsageError(
            f"{path.name}: writing .parquet needs pyarrow", hint="Install it with `pip install 'gebm-kit[parquet]'`."
        ) from error
    return pyarrow
