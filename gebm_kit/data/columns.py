"""Tables of numbers from files: some columns and rows are chosen, and one error names all columns that can't be used."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from gebm_kit.core.errors import DataError
from gebm_kit.data.class_texts import class_indices
from gebm_kit.data.conditions import parse_condition
from gebm_kit.data.csv_files import CsvFile
from gebm_kit.data.fields import Column
from gebm_kit.data.parquet_files import ParquetFile
from gebm_kit.data.table_reading import BadRows, Reading, TableFile, place_of
from gebm_kit.data.table_rows import Table
from gebm_kit.data.tables import check_key, load

Missing = Literal["refuse", "drop"]
"""What to do with a row that has a missing value: end with an error, or leave the row out."""

BLOCK_ROWS = 2**16
"""Rows of an array that are checked at a time."""


def read_table(
    file: Path,
    key: str | None = None,
    columns: Sequence[str] | None = None,
    where: Sequence[str] | str | None = None,
    origin: str | None = None,
    *,
    missing: Missing = "refuse",
    header: bool | None = None,
    varying: bool = False,
    labels: str | None = None,
    bad_rows: BadRows | None = None,
) -> Table:
    """Read columns and rows of a file.

    Args:
        file: .csv, .npz, .npy, .safetensors or .parquet.
        key: name of the array in an archive.
        columns: names, or numbers from 1, in the order wanted; None: all but row labels. The contents of other columns do
            not matter.
        where: conditions such as ``age >= 18`` or ``kind == 'red'``; the rows that meet all of them are kept.
        origin: where the file comes from, for the error if it is missing.
        missing: what to do with rows that have a missing value in one of the columns.
        header: whether the first line of a .csv holds names; None: judge by its fields.
        varying: whether every column needs two different values.
        labels: a column of class labels, of any kind, that is read beside the others.
        bad_rows: ``skip``: keep rows that can't be used, with NaN, and say what is wrong with them in `Table.bad`; ``stop``:
            raise, and say that they can be left out; None: raise, as data for training do.

    Raises:
        DataError: the file is missing or not a table, a column does not exist, or no row is left. One message names all
            columns that can't be used, and the hint those that can.
    """
    if not file.exists() and origin is not None:
        raise DataError(f"data file {file} does not exist", hint=f"Where it comes from: {origin}")
    table = open_table(file, key, header)
    conditions = [parse_condition(text, str(file)) for text in ([where] if isinstance(where, str) else where or ())]
    label = None if labels is None else place_of(labels, table.names, file)
    aside = {*table.unnamed, *table.nameless, label}
    by_default = [place for place in range(len(table.names)) if place not in aside]
    if columns is None and not by_default:
        raise DataError(f"{file} has no column left besides {'row labels' if label is None else 'the labels'}")
    places = by_default if columns is None else _places(columns, table.names, file)
    check_names([table.names[place] for place in places], str(file))
    reading = Reading(
        table,
        file,
        places,
        conditions,
        labels=label,
        drop=missing == "drop",
        counting=columns is None,
        bad_rows=bad_rows,
    )
    reading.run()
    return reading.table(varying)


def table_classes(table: Table, source: str) -> tuple[Tensor, tuple[str, ...]]:
    """Return the class of each row of a table with labels, (N,) int64, and what each class is called.

    Args:
        source: file and column, for messages.

    Raises:
        DataError: a label can't be a class.
    """
    assert table.labels is not None
    if (names := table.class_names) is None:
        return class_indices(table.labels, source)
    if len(set(names)) < len(names):
        raise DataError(f"{source} declares the classes {', '.join(map(repr, names[:10]))}, two of which have one name")
    allowed = {str(index): index for index in range(len(names))}
    for label in table.labels:
        if label not in allowed:
            raise DataError(
                f"{source}: a label is {label!r}, not one of 0 to {len(names) - 1}, which the file declares"
            )
    return torch.tensor([allowed[label] for label in table.labels]), names


def open_table(file: Path, key: str | None = None, header: bool | None = None) -> TableFile:
    """Open a file of columns; its suffix says how.

    Raises:
        DataError: the file is missing, damaged or no table.
    """
    suffix = file.suffix.lower()
    if header is not None and suffix != ".csv":
        raise DataError(f"{file}: header={str(header).lower()} has a meaning for .csv files only; leave it out")
    check_key(file, key)
    if suffix == ".parquet":
        return ParquetFile(file)
    return CsvFile(file, header) if suffix == ".csv" else _ArrayFile(file, key)


def check_names(names: Sequence[str], source: str) -> None:
    """Raise if two columns have the same name.

    Raises:
        DataError: the message says which.
    """
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        listed = ", ".join(map(repr, twice))
        raise DataError(
            f"{source}: more than one column is called {listed}", hint="Rename them, or leave one out: columns=[...]."
        )


def check_finite(rows: Tensor, columns: Sequence[str], source: str) -> None:
    """Raise if a value is missing or infinite.

    Raises:
        DataError: the message names row and column of the first such value.
    """
    bad = (~torch.isfinite(rows)).nonzero()
    if len(bad):
        row, column = bad[0].tolist()
        value = float(rows[row, column])
        what = "is missing" if math.isnan(value) else f"holds {value:g}"
        more = f" ({len(bad)} such values)" if len(bad) > 1 else ""
        raise DataError(
            f"{source}: row {row + 1}, column {columns[column]!r} {what}{more}",
            hint="Drop such rows or fill them in first; nothing is imputed here.",
        )


def _places(words: Sequence[str], names: tuple[str, ...], file: Path) -> list[int]:
    found: dict[int, None] = {}  # in order
    for word in words:
        place = place_of(word, names, file)
        if place in found:
            raise DataError(f"{file}: column {names[place]!r} is asked for twice")
        found[place] = None
    if not found:
        raise DataError(f"{file}: columns is empty; name at least one")
    return list(found)


class _ArrayFile:
    """An array of a file as columns, whose names are their numbers from 1."""

    unnamed: tuple[int, ...] = ()
    nameless: tuple[int, ...] = ()

    def __init__(self, file: Path, key: str | None) -> None:
        rows = load(file, key, None).rows
        if rows.ndim == 1:
            rows = rows.unsqueeze(1)
        if rows.ndim != 2 or rows.numel() == 0:
            raise DataError(f"{file} holds an array of shape {tuple(rows.shape)}; a table (rows, columns) is needed")
        self._rows = rows.double().numpy() if rows.dtype == torch.bfloat16 else rows.numpy()
        self.names = tuple(str(place + 1) for place in range(rows.shape[1]))

    def blocks(self, places: Sequence[int]) -> Iterator[tuple[range, dict[int, Column]]]:
        for first in range(0, len(self._rows), BLOCK_ROWS):
            part = self._rows[first : first + BLOCK_ROWS]
            yield range(first + 1, first + 1 + len(part)), {place: part[:, place] for place in places}
