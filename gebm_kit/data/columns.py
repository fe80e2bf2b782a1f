"""Tables of numbers from files: some columns and rows are chosen, and errors name row and column."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gebm_kit.core.errors import DataError, nearest
from gebm_kit.data.tables import as_number, cell, csv_lines, delimiter, is_header, load

Take = Callable[[list[int]], Tensor]
"""Function that reads the columns at given places, (N, number of places) float64."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows, (N, D) float64, all finite, and the names of the columns (their numbers from 1 if the file has no names)."""

    rows: Tensor
    columns: tuple[str, ...]


def read_table(
    file: Path,
    key: str | None = None,
    columns: Sequence[str] | None = None,
    where: Sequence[str] | None = None,
    origin: str | None = None,
) -> Table:
    """Read columns and rows of a file.

    Args:
        file: .csv, .npz, .npy, .safetensors or .parquet.
        key: name of the array in an archive.
        columns: names, or numbers from 1, in the order wanted; None: all. The contents of other columns do not matter.
        where: conditions ``column=number``; the rows that meet all of them are kept.
        origin: where the file comes from, for the error if it is missing.

    Raises:
        DataError: the file is missing or not a table of numbers, a column does not exist, a value is missing or not finite,
            or no row meets the conditions.
    """
    if not file.exists() and origin is not None:
        raise DataError(f"data file {file} does not exist", hint=f"Where it comes from: {origin}")
    try:
        names, take = _opened(file, key)
    except OSError as error:
        raise DataError(f"{file} can't be read: {error.strerror}") from error
    keep = list(range(len(names))) if columns is None else _places(columns, names, file)
    conditions = [_condition(text, names, file) for text in where or ()]
    read = list(dict.fromkeys([*keep, *(place for place, _ in conditions)]))
    rows = take(read)
    check_finite(rows, [names[place] for place in read], str(file))
    chosen = torch.ones(len(rows), dtype=torch.bool)
    for place, value in conditions:
        chosen &= rows[:, read.index(place)] == value
    if conditions and not chosen.any():
        raise DataError(f"{file}: none of the {len(rows)} rows meets where={list(where or ())}")
    return Table(rows[chosen][:, : len(keep)], tuple(names[place] for place in keep))


def column_names(file: Path, key: str | None = None) -> tuple[str, ...]:
    """Return the names of all columns of a file, or their numbers from 1 if it has no names.

    The contents of the columns are not read if that can be avoided.

    Raises:
        DataError: the file is missing or not a table.
    """
    try:
        return _opened(file, key)[0]
    except OSError as error:
        raise DataError(f"{file} can't be read: {error.strerror}") from error


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
    found: list[int] = []
    for word in words:
        place = _place(word, names, file)
        if place in found:
            raise DataError(f"{file}: column {names[place]!r} is asked for twice")
        found.append(place)
    if not found:
        raise DataError(f"{file}: columns is empty; name at least one")
    return found


def _place(word: str, names: tuple[str, ...], file: Path) -> int:
    if word in names:
        return names.index(word)
    if word.isdecimal() and 1 <= int(word) <= len(names):
        return int(word) - 1
    raise DataError(f"{file} has no column {word!r}; {nearest(word, names)}")


def _condition(text: str, names: tuple[str, ...], file: Path) -> tuple[int, float]:
    word, sign, value = text.rpartition("=")
    wanted = as_number(value.strip())
    if not sign or wanted is None:
        raise DataError(f"{file}: the condition {text!r} in where must read column=number")
    return _place(word.strip(), names, file), wanted


# --- kinds of files --------------------------------------------------------------------------------------------------


def _opened(file: Path, key: str | None) -> tuple[tuple[str, ...], Take]:
    """Return the names of all columns, and a function that reads some of them."""
    suffix = file.suffix.lower()
    if suffix == ".parquet" and file.is_file():
        return _parquet(file)
    if suffix == ".csv" and file.is_file() and key is None:
        return _csv(file)
    rows = load(file, key, None).rows
    if rows.ndim == 1:
        rows = rows.unsqueeze(1)
    if rows.ndim != 2 or rows.numel() == 0:
        raise DataError(f"{file} holds an array of shape {tuple(rows.shape)}; a table (rows, columns) is needed")
    return _numbered(rows.shape[1]), lambda places: rows[:, places].double()


def _numbered(num: int) -> tuple[str, ...]:
    return tuple(str(place + 1) for place in range(num))


def _csv(file: Path) -> tuple[tuple[str, ...], Take]:
    first = next(csv_lines(file), None)
    if first is None:
        raise DataError(f"{file} holds no row of data")
    line, fields = first
    header = is_header(fields)
    names = tuple(fields) if header else _numbered(len(fields))

    def take(places: list[int]) -> Tensor:
        _check_lines(file, len(names), header)  # loadtxt does not notice lines of another length
        try:
            rows = np.loadtxt(
                file,
                delimiter=delimiter(file),
                skiprows=line if header else 0,
                usecols=places,
                comments=None,
                quotechar='"',
                encoding="utf-8-sig",
                ndmin=2,
            )
        except (ValueError, OSError):
            return _csv_slowly(file, names, header, places)
        return torch.from_numpy(rows) if np.isfinite(rows).all() else _csv_slowly(file, names, header, places)

    return names, take


def _csv_slowly(file: Path, names: tuple[str, ...], header: bool, places: list[int]) -> Tensor:
    """Read the file line by line, so that the error says where the number is that can't be read."""
    lines = csv_lines(file)
    if header:
        next(lines)
    rows = [[cell(fields[place], _at(file, line, names[place])) for place in places] for line, fields in lines]
    return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(places))


def _check_lines(file: Path, num: int, header: bool) -> None:
    lines = 0
    for line, fields in csv_lines(file):
        lines += 1
        if len(fields) != num:
            raise DataError(f"{file}, line {line}: {len(fields)} fields where the first line has {num}")
    if lines == header:
        raise DataError(f"{file} holds no row of data")


def _at(file: Path, line: int, name: str) -> Callable[[], str]:
    return lambda: f"{file}, line {line}: column {name!r}"


def _parquet(file: Path) -> tuple[tuple[str, ...], Take]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DataError(
            f"{file}: reading .parquet needs pyarrow", hint="Install it with `pip install 'gebm-kit[parquet]'`."
        ) from error
    try:
        names = tuple(parquet.read_schema(file).names)
    except (ArrowException, OSError) as error:
        raise DataError(f"{file} can't be read as .parquet: {error}") from error

    def take(places: list[int]) -> Tensor:
        try:
            table = parquet.read_table(file, columns=[names[place] for place in places])
        except (ArrowException, OSError) as error:
            raise DataError(f"{file} can't be read as .parquet: {error}") from error
        return torch.stack([_parquet_column(table, names[place], file) for place in places], dim=1)

    return names, take


def _parquet_column(table: object, name: str, file: Path) -> Tensor:
    column = table.column(name)  # type: ignore[attr-defined]
    values = column.to_numpy()
    if values.dtype.kind not in "fiub":
        raise DataError(
            f"{file}: column {name!r} holds {column.type}; numbers are needed",
            hint="Choose columns that hold numbers: columns=[...].",
        )
    return torch.from_numpy(np.array(values, dtype=np.float64))
