"""Rows from wherever a caller in Python has them: a tensor, an array, a data frame, or a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

import numpy as np
from torch import Tensor

from gebm_kit.core.frames import frame_names, is_frame, is_index_name, rows_of_frame
from gebm_kit.core.given_rows import tensor_of_rows
from gebm_kit.core.interfaces import Dataset, HasStandardisation
from gebm_kit.core.model import GEBM
from gebm_kit.core.paths import user_path
from gebm_kit.core.plugins import installed
from gebm_kit.engine.likelihood.run_data import data_of
from gebm_kit.engine.likelihood.usable_rows import BadRows
from gebm_kit.engine.likelihood.user_rows import as_data, columns_of, wanted_columns

if TYPE_CHECKING:
    from gebm_kit.engine.run_directory.run import Run

ALLOWED = "a tensor, a numpy array or a data frame of rows (N, ...), or the path of a file"
"""What the arguments that take rows allow, for messages."""

Rows: TypeAlias = "Tensor | np.ndarray | FrameLike | str | Path"
"""Rows that a caller gives: a tensor or array (N, ...), a data frame, or the path of a file."""


class FrameLike(Protocol):
    """A table with named columns, such as a DataFrame of pandas or polars."""

    @property
    def columns(self) -> Any: ...

    def to_numpy(self) -> Any: ...

    def __getitem__(self, name: Any) -> Any: ...


class ReadsRows(Protocol):
    """The dataset ``arrays``, whose class reads rows of other files too; the engine reaches it through the registry."""

    @classmethod
    def rows_of_file(
        cls,
        file: Path,
        key: str | None,
        data_shape: Sequence[int],
        dataset: object,
        wanted: tuple[str, ...] | None,
        choose: Callable[[tuple[str, ...], tuple[str, ...], str], list[int]],
        bad_rows: BadRows,
    ) -> tuple[Tensor, tuple[str, ...], Mapping[int, str]]: ...

    @classmethod
    def image_rows(cls, rows: Tensor, source: Path, dataset: object) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class SourcedRows:
    """Rows as they were given.

    Attributes:
        rows: (N, ...).
        names: names of the columns, in the order of ``rows``; () without names.
        source: where they come from, for messages.
        measured: whether they are in the units of the data's file, as frames and files are.
        bad: what is wrong with rows that can't be used, by row number from 1, if a reader was asked to keep them with NaN.
    """

    rows: Tensor
    names: tuple[str, ...]
    source: str
    measured: bool
    bad: Mapping[int, str] = field(default_factory=dict)


def sourced(
    rows: object, name: str, data_shape: Sequence[int], dataset: object = None, bad_rows: BadRows = "stop"
) -> SourcedRows:
    """Read the rows of an argument.

    Columns of a frame are matched with the dataset's by name, and others are left out, whatever they hold; so are those of a
    file where the dataset standardises. Without names on either side all columns are taken in order, but for row labels.

    Args:
        rows: see `Rows`.
        name: what the argument is called, for messages.
        data_shape: shape of a data point of the model.
        dataset: the model's data, or None.
        bad_rows: ``skip``: rows of a file that can't be used are kept with NaN, see `SourcedRows.bad`.

    Raises:
        UsageError: rows of another type.
        DataError: a file that can't be read, a column that is missing or holds no numbers.
    """
    if isinstance(rows, str | os.PathLike):
        return _of_file(Path(rows), None, data_shape, dataset, bad_rows)
    if is_frame(rows):
        return _of_frame(rows, name, data_shape, dataset)
    source = "the data" if name == "rows" else name
    return SourcedRows(tensor_of_rows(rows, name, allowed=ALLOWED), (), source, measured=False)


def as_seen(
    rows: object, name: str, run: Run | None, model: GEBM | None, or_else: str = ""
) -> tuple[Tensor, tuple[str, ...]]:
    """Return rows as the model sees them, (N, *D), and the names of their columns.

    A frame or file holds measurements of the run's data, and is standardised if these are. A tensor or an array is taken as
    the model sees data, and not checked against the model.

    Args:
        run: the run whose model it is; None: a model built by hand.
        model: the model; None: one that is not known yet, to which a table gives its columns in order.
        or_else: what the argument allows besides rows, for messages.

    Raises:
        UsageError, DataError: as for `sourced`; a frame or file that does not fit the model, or is not finite.
    """
    if not is_frame(rows) and not isinstance(rows, str | os.PathLike):
        return tensor_of_rows(rows, name, allowed=f"{ALLOWED}, or {or_else}" if or_else else ALLOWED), ()
    known = None if run is None else data_of(run)
    if model is None:
        return sourced(rows, name, (1,)).rows, ()
    found = sourced(rows, name, model.data_shape, known)
    return as_data(found.rows, found.names, found.source, model, known), wanted_columns(known) or found.names


def rows_of_file(
    file: Path, key: str | None, data_shape: Sequence[int], dataset: Dataset | None, bad_rows: BadRows = "stop"
) -> SourcedRows:
    """Read the rows of a file as they stand there, and the names of their columns, () for data that are not a table.

    Where columns are identified by name, those that the run was not trained on may hold anything. Images of bytes are
    scaled to [-1, 1], as in training.

    Raises:
        DataError: the file can't be read.
    """
    return _of_file(file, key, data_shape, dataset, bad_rows)


def _of_file(file: Path, key: str | None, data_shape: Sequence[int], dataset: object, bad_rows: BadRows) -> SourcedRows:
    place = user_path(file)
    wanted = dataset.columns if isinstance(dataset, HasStandardisation) else None
    rows, names, bad = _reader().rows_of_file(place, key, data_shape, dataset, wanted, columns_of, bad_rows)
    return SourcedRows(rows, names, str(place), measured=True, bad=bad)


def _of_frame(frame: Any, name: str, data_shape: Sequence[int], dataset: object) -> SourcedRows:
    names, wanted = frame_names(frame), wanted_columns(dataset)
    kept = [place for place, column in enumerate(names) if column in (wanted or ()) or not is_index_name(column)]
    if len(data_shape) != 1:
        rows = rows_of_frame(frame, kept, name)
        return SourcedRows(_reader().image_rows(rows, Path(name), dataset), (), name, measured=True)
    if wanted is not None:
        kept = [kept[place] for place in columns_of(tuple(names[place] for place in kept), wanted, name)]
    return SourcedRows(rows_of_frame(frame, kept, name), tuple(names[place] for place in kept), name, measured=True)


def _reader() -> ReadsRows:
    reader: Any = installed().registry.get("dataset", "arrays").load()
    return cast(ReadsRows, reader)
