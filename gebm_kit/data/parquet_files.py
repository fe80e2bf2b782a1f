"""Columns of a .parquet file, by pyarrow, within bounds of memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gebm_kit.core.errors import DataError
from gebm_kit.core.frames import is_index_name
from gebm_kit.core.reading import amount, available_memory, open_regular
from gebm_kit.data.fields import Column

BATCH_ROWS = 2**16
"""Rows that are read at a time."""


class ParquetFile:
    """A .parquet file whose rows are read in batches.

    Attributes:
        names: names of the columns.
        unnamed: indices of the columns that hold pandas' index.
        class_names: names of the classes in columns that the library ``datasets`` wrote as ClassLabel, by column.

    Raises:
        DataError: pyarrow is missing, or the file can't be read.
    """

    nameless: tuple[int, ...] = ()

    def __init__(self, path: Path) -> None:
        try:
            from pyarrow import parquet
        except ImportError as error:
            raise DataError(
                f"{path}: reading .parquet needs pyarrow", hint="Install it with `pip install 'gebm-kit[parquet]'`."
            ) from error
        self.path = path
        try:
            self._file = parquet.ParquetFile(open_regular(path))
            schema = self._file.schema_arrow
            self.names = tuple(schema.names)
            self._types = list(schema.types)
            self._num = self._file.metadata.num_rows
        except DataError:
            raise
        except Exception as error:  # damaged files: ArrowException, OSError, UnicodeDecodeError and others
            raise _unreadable(path, error) from error
        index = _pandas_index(schema.metadata or {})
        self.class_names = _class_names(schema.metadata or {})
        self.unnamed = tuple(p for p, name in enumerate(self.names) if name in index or is_index_name(name))

    def type_of(self, place: int) -> str | None:
        """Return the type of a column that holds no numbers, such as ``string``; None for numbers."""
        from pyarrow import types

        kind = self._types[place]
        plain = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind)
        return None if plain else str(kind)

    def is_plain(self, place: int) -> bool:
        """Return whether a column's values can be read as numbers or text, unlike lists and bytes."""
        return not _has_no_text(self._types[place])

    def blocks(self, places: Sequence[int]) -> Iterator[tuple[range, dict[int, Column]]]:
        """Yield row numbers from 1 and some columns, a batch at a time.

        Raises:
            DataError: the file is damaged, or its columns need more memory than there is.
        """
        needed = 8 * self._num * max(1, len(places))
        if needed > available_memory() // 2:
            raise DataError(f"{self.path} unpacks to {amount(needed)}, more than half of the memory that is available")
        if not self._num:
            raise DataError(f"{self.path} holds no row of data")
        names, done = [self.names[place] for place in places], 0
        try:
            for batch in self._file.iter_batches(BATCH_ROWS, columns=list(dict.fromkeys(names))):
                yield (
                    range(done + 1, done + 1 + len(batch)),
                    {place: _column(batch.column(self.names[place])) for place in places},
                )
                done += len(batch)
        except DataError:
            raise
        except Exception as error:
            raise _unreadable(self.path, error) from error
        if done != self._num:
            raise DataError(f"{self.path} is damaged: it holds {done:,} rows and claims {self._num:,}")


def _unreadable(path: Path, error: Exception) -> DataError:
    said = (str(error).splitlines() or [type(error).__name__])[0]
    return DataError(f"{path} can't be read as .parquet: {said}")


def _has_no_text(kind: Any) -> bool:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    binary = types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
    return bool(types.is_nested(kind) or binary or types.is_binary_view(kind))


def _has_long(values: np.ndarray) -> bool:
    """Return whether a whole number is among them that double precision may not hold."""
    return bool((values > 2**53).any() or (values < -(2**53)).any())


def _column(column: Any) -> Column:
    from pyarrow import compute, float64, string, types

    kind = column.type
    if types.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    if types.is_integer(kind) and not column.null_count:
        return np.asarray(column.to_numpy(zero_copy_only=False))
    if types.is_integer(kind) or (types.is_decimal(kind) and kind.scale <= 0):
        exact = column.fill_null(0) if types.is_integer(kind) else None
        if exact is None or _has_long(exact.to_numpy(zero_copy_only=False)):  # which a cast would refuse or round
            return ["" if value is None else str(int(value)) for value in column.to_pylist()]
    if types.is_boolean(kind) or types.is_decimal(kind) or types.is_integer(kind):
        column = compute.cast(column, float64(), safe=not types.is_decimal(kind))
        kind = column.type
    if types.is_floating(kind):
        return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)
    if _has_no_text(kind):  # which Reading refuses by name
        return [str(kind)] * len(column)
    return ["" if field is None else field for field in compute.cast(column, string()).to_pylist()]


def _pandas_index(metadata: dict[bytes, bytes]) -> set[str]:
    """Return the names of the columns that pandas wrote as a table's index."""
    try:
        found = json.loads(metadata.get(b"pandas", b"{}")).get("index_columns", [])
        return {name for name in found if isinstance(name, str)}
    except (ValueError, AttributeError, TypeError, RecursionError):
        return set()


def _class_names(metadata: dict[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """Return the names of classes that the library ``datasets`` declared, by column."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return {
            column: tuple(feature["names"])
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and _are_texts(feature.get("names"))
        }
    except (ValueError, AttributeError, TypeError, KeyError, RecursionError):
        return {}


def _are_texts(names: object) -> bool:
    return isinstance(names, list) and bool(names) and all(isinstance(name, str) for name in names)
