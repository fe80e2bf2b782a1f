"""Reading arrays and tables from files, with errors that name the row and the column."""

from __future__ import annotations

import csv
import math
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gebm_kit.core.errors import DataError, nearest

TABLE_SUFFIXES = (".npz", ".npy", ".safetensors", ".csv")
"""Suffixes of the files that `load` reads."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Rows (N, ...) as the file holds them, labels (N,) if requested, and the names of csv columns."""

    rows: Tensor
    labels: Tensor | None
    columns: tuple[str, ...] = ()


def load(path: Path, key: str | None, labels: str | None) -> Loaded:
    """Read ``path``; its suffix says how.

    Args:
        path: a .npz, .npy, .safetensors or .csv file.
        key: name of the array in an archive; None: the only one, or ``x``.
        labels: name of the labels: in an archive an array, in a .csv file a column, for .npy another .npy file beside it.

    Raises:
        DataError: anything that keeps the file from being read as rows of numbers.
    """
    if not path.is_file():
        raise DataError(f"data file {path} {'is a directory' if path.is_dir() else 'does not exist'}")
    suffix = path.suffix.lower()
    if suffix not in TABLE_SUFFIXES:
        raise DataError(
            f"{path}: files of type {suffix or '(none)'} can't be read; allowed: {', '.join(TABLE_SUFFIXES)}"
        )
    if key is not None and suffix in (".npy", ".csv"):
        raise DataError(f"{path}: a {suffix} file holds one array, so key={key!r} has no meaning; leave it out")
    try:
        if suffix == ".csv":
            return _load_csv(path, labels)
        if suffix == ".npy":
            return Loaded(_numbers(_npy(path), path), None if labels is None else _npy_labels(path, labels))
        archive = _npz(path, key, labels) if suffix == ".npz" else _safetensors(path, key, labels)
    except (OSError, EOFError, zipfile.BadZipFile, SafetensorError) as error:
        raise DataError(f"{path} can't be read as {suffix}: {error}") from error
    return archive


# --- archives --------------------------------------------------------------------------------------------------------


def _pick(names: list[str], key: str | None, path: Path, what: str) -> str:
    if key is None:
        if len(names) == 1:
            return names[0]
        if "x" in names:
            return "x"
        listed = ", ".join(names) or "none"
        raise DataError(f"{path} holds {len(names)} arrays ({listed}); name the one with the data: key=...")
    if key not in names:
        raise DataError(f"{path} has no {what} {key!r}; {nearest(key, names)}")
    return key


def _npz(path: Path, key: str | None, labels: str | None) -> Loaded:
    with _numpy_archive(path) as archive:
        names = [name for name in archive.files if name != labels]
        rows = _member(archive, _pick(names, key, path, "array"), path)
        if labels is None:
            return Loaded(_numbers(rows, path), None)
        chosen = _member(archive, _pick(list(archive.files), labels, path, "labels"), path)
        return Loaded(_numbers(rows, path), _numbers(chosen, path))


def _numpy_archive(path: Path) -> np.lib.npyio.NpzFile:
    try:
        archive = np.load(path, allow_pickle=False)
    except ValueError as error:  # numpy raises this if the content is not an archive
        raise DataError(f"{path} is not a .npz archive") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise DataError(f"{path} is not a .npz archive")
    return archive


def _member(archive: np.lib.npyio.NpzFile, name: str, path: Path) -> np.ndarray:
    try:
        return np.asarray(archive[name])
    except ValueError as error:
        raise _pickled(path, f"array {name!r} of ") from error


def _npy(path: Path) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except ValueError as error:
        if "allow_pickle" in str(error) or "pickle" in str(error).lower():
            raise _pickled(path) from error
        raise DataError(f"{path} is not a .npy file: {error}") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path} is not a .npy file but an archive; rename it to .npz")
    return array


def _pickled(path: Path, part: str = "") -> DataError:
    return DataError(
        f"{part}{path} holds Python objects (pickled) or is damaged, and is not read: unpickling runs code from the file",
        hint="Save it again as an array of numbers, for example np.save(path, array.astype('float32')).",
    )


def _npy_labels(path: Path, labels: str) -> Tensor:
    other = path.parent / labels
    if other.suffix.lower() != ".npy" or not other.is_file():
        raise DataError(
            f"labels={labels!r}: for a .npy file this names another .npy file beside it, and {other} is not one"
        )
    return _numbers(_npy(other), other)


def _safetensors(path: Path, key: str | None, labels: str | None) -> Loaded:
    with safe_open(path, framework="pt") as archive:
        names = list(archive.keys())
        rows = archive.get_tensor(_pick([n for n in names if n != labels], key, path, "tensor"))
        chosen = None if labels is None else archive.get_tensor(_pick(names, labels, path, "labels"))
    for tensor in (rows, chosen):
        if tensor is not None and tensor.is_complex():
            raise DataError(f"{path} holds complex numbers; real ones are needed")
    return Loaded(rows, chosen)


def _numbers(array: np.ndarray, path: Path) -> Tensor:
    if array.dtype.kind not in "fiub":
        raise DataError(f"{path} holds values of type {array.dtype}; numbers are needed")
    if array.dtype.kind in "fi" or array.dtype == np.bool_:
        wide = np.float64 if array.dtype.kind == "f" else np.int64
        return torch.from_numpy(array.astype(wide))
    return torch.from_numpy(array.astype(array.dtype if array.dtype == np.uint8 else np.int64))


# --- csv -------------------------------------------------------------------------------------------------------------


def _load_csv(path: Path, labels: str | None) -> Loaded:
    """Read numbers between commas, semicolons or tabs; the first line is a header if anything in it is not a number."""
    columns: tuple[str, ...] = ()
    rows: list[list[float]] = []
    width, classes = 0, _Classes()
    label_column: int | None = None

    def place(line: int, index: int) -> Callable[[], str]:
        column = index if label_column is None or index < label_column else index + 1
        return lambda: f"{path}, line {line}: column {repr(columns[column]) if columns else column + 1}"

    for line, fields in csv_lines(path):
        if width == 0:
            width = len(fields)
            columns = tuple(fields) if is_header(fields) else ()
            label_column = None if labels is None else _column(labels, columns, width, path)
            if columns:
                continue
        if len(fields) != width:
            raise DataError(f"{path}, line {line}: {len(fields)} fields where the first line has {width}")
        if label_column is not None:
            classes.add(fields.pop(label_column))
        rows.append([cell(field, place(line, index)) for index, field in enumerate(fields)])
    if not rows:
        raise DataError(f"{path} holds no row of data")
    names = tuple(name for index, name in enumerate(columns) if index != label_column)
    table = torch.tensor(rows, dtype=torch.float64)
    return Loaded(table, None if label_column is None else classes.indices(), names)


def delimiter(path: Path) -> str:
    """Return what separates the fields of the first line: a comma, or without one a semicolon or a tab."""
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        first = next((line for line in file if line.strip()), "")
    return next((mark for mark in ",;\t" if mark in first), ",")


def csv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield line numbers and fields, without blank lines.

    Raises:
        DataError: the file is not UTF-8 text in csv format.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter=delimiter(path))
            for fields in reader:
                if fields:
                    yield reader.line_num, [field.strip() for field in fields]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} can't be read as .csv: {error}", hint="Save it as UTF-8 text.") from error


def as_number(field: str) -> float | None:
    """Return the number that a field holds; None if it holds something else."""
    try:
        return float(field)
    except ValueError:
        return None


def is_header(fields: list[str]) -> bool:
    """Return whether some field of a file's first line is neither a number nor empty."""
    return any(field and as_number(field) is None for field in fields)


def cell(field: str, where: Callable[[], str]) -> float:
    """Return the finite number that a field holds.

    Raises:
        DataError: the field does not hold one; the message begins with ``where()``.
    """
    value = as_number(field)
    if value is not None and math.isfinite(value):
        return value
    problem = "is empty" if field == "" else f"holds {field!r}, which is not a {'finite ' * (value is not None)}number"
    raise DataError(f"{where()} {problem}")


def _column(labels: str, columns: tuple[str, ...], width: int, path: Path) -> int:
    if columns:
        if labels not in columns:
            raise DataError(f"{path} has no column {labels!r}; {nearest(labels, columns)}")
        index = columns.index(labels)
    else:
        number = as_number(labels)
        if number is None or number != int(number) or not 1 <= number <= width:
            raise DataError(
                f"{path} has no header, so labels is the number of a column, from 1 to {width}, not {labels!r}"
            )
        index = int(number) - 1
    if width < 2:
        raise DataError(f"{path} has no column left besides the labels")
    return index


class _Classes:
    """Class names of a csv column, turned into indices in sorted order (numbers by value)."""

    def __init__(self) -> None:
        self._names: list[str] = []

    def add(self, name: str) -> None:
        self._names.append(name)

    def indices(self) -> Tensor:
        distinct = sorted(set(self._names), key=lambda name: (as_number(name) is None, as_number(name) or 0.0, name))
        number = {name: index for index, name in enumerate(distinct)}
        return torch.tensor([number[name] for name in self._names])
