"""Draws as a table: a .csv or .parquet file with the columns' names, in the units of the data's file."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from gebm_kit.core.errors import UsageError
from gebm_kit.core.units import TableUnits

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


def table_content(path: Path, x: Tensor, units: TableUnits | None, classes: Sequence[str] | None = None) -> bytes:
    """Return the content of a table with one line for each draw.

    Args:
        path: its suffix says which format.
        x: draws as the model makes them, (N, D).
        units: names of the columns, and what turns x into measurements; None: x itself, named x1, ..., xD.
        classes: the class of each draw, for a last column, see `CLASS_COLUMN`.
    """
    units = units or TableUnits.unchanged(x.shape[1])
    numbers = TableUnits.unchanged(x.shape[1]).columns
    # a line of numbers would be taken for a row when the file is read
    names = [f"x{name}" for name in numbers] if units.columns == numbers else list(units.columns)
    rows = units.measured(x)
    if classes is not None:
        others = (f"{CLASS_COLUMN}_{number}" for number in itertools.count(2))
        names.append(next(name for name in itertools.chain([CLASS_COLUMN], others) if name not in names))
    if path.suffix == ".parquet":
        arrow = _pyarrow(path)
        from pyarrow import parquet

        columns = [arrow.array(column.numpy()) for column in rows.T.contiguous()]
        table = arrow.table(columns if classes is None else [*columns, arrow.array(list(classes))], names=names)
        sink = io.BytesIO()
        parquet.write_table(table, sink)
        return sink.getvalue()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for index, row in enumerate(rows.tolist()):
        writer.writerow([*map(repr, row), *(() if classes is None else (classes[index],))])
    return text.getvalue().encode()


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise UsageError(
            f"{path.name}: writing .parquet needs pyarrow", hint="Install it with `pip install 'gebm-kit[parquet]'`."
        ) from error
    return pyarrow
