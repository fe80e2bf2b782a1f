"""Rows and classes out of what a caller in Python holds: tensors, arrays, data frames, torch's datasets and loaders.

Shapes: N rows, ``*D`` whatever a row has.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset as TorchDataset, IterableDataset, default_collate

from gebm_kit.core.errors import DataError, GebmKitError, UsageError, nearest, shown
from gebm_kit.core.frames import frame_names, is_frame, is_index_name, rows_of_frame
from gebm_kit.core.given_rows import tensor_of_rows

MOST_BYTES = 2**33
"""Most bytes of rows that are read into memory out of a torch dataset, a loader or an iterable: 8 GiB."""

ALLOWED = (
    "a tensor, a numpy array, a data frame, a pair (rows, labels), a torch Dataset or DataLoader, an iterable of batches, a "
    "path, a dataset's name, a recipe node {name: ...}, or a Dataset of the kit"
)
"""What may be given as data, for messages."""


@dataclass(frozen=True, slots=True)
class Given:
    """Rows in memory.

    Attributes:
        rows: (N, *D).
        what: what they were, for messages, such as ``a DataFrame``.
        columns: names of a data frame's columns; () for other rows.
        labels: the class of each row in text, or None.
        table: whether they are those of a data frame.
        notes: what was done to them.
    """

    rows: Tensor
    what: str
    columns: tuple[str, ...] = ()
    labels: tuple[str, ...] | None = None
    table: bool = False
    notes: tuple[str, ...] = ()


def is_rows(value: object) -> bool:
    """Return whether a value holds rows that `read_given` takes."""
    if isinstance(value, str | bytes | dict | set) or hasattr(value, "__fspath__"):
        return False
    return isinstance(value, Tensor | np.ndarray | TorchDataset | DataLoader) or is_frame(value) or _is_iterable(value)


def _is_iterable(value: object) -> bool:
    return isinstance(value, tuple) or (isinstance(value, Iterable) and not isinstance(value, list | np.generic))


def read_given(value: Any, name: str, labels: Any = None, *, drop_missing: bool = False) -> Given:
    """Read rows, and their classes where there are any.

    Args:
        value: anything that `is_rows` accepts.
        name: what the caller's argument is called, for messages.
        labels: a class for each row; for a data frame also the name of the column that holds them.
        drop_missing: whether rows with a missing value are left out.

    Raises:
        UsageError: it is of a type that is not understood, or labels are given twice.
        DataError: rows or labels can't be used.
    """
    pair = isinstance(value, tuple)
    if pair:
        if len(value) != 2:
            raise UsageError(f"{name} is a tuple of {len(value)}; a pair (rows, labels) is allowed")
        if labels is not None:
            raise UsageError(f"{name} is a pair (rows, labels), and labels is given too; give one of them")
        value, labels = value
        if isinstance(value, tuple) or not is_rows(value):
            raise UsageError(f"the rows in {name} must be a tensor, a numpy array or a data frame, got {_type(value)}")
    if _is_column(value):
        value = value.to_frame()
    if is_frame(value):
        found = _frame(value, name, labels if isinstance(labels, str) else None)
        labels = None if isinstance(labels, str) else labels
    elif isinstance(labels, str):
        raise UsageError(f"labels={labels!r} names a column, and {name} is {_article(_type(value))} without columns")
    elif hasattr(value, "__array__") and not isinstance(value, Tensor | TorchDataset):  # of numpy, h5py, zarr, jax, ...
        found = Given(tensor_of_rows(np.asarray(value), name).cpu(), _article(_type(value)))
    elif isinstance(value, Tensor):
        found = Given(tensor_of_rows(value, name).cpu(), _article(_type(value)))
    else:
        found = _of_items(value, name)
    if found.rows.ndim == 0 or len(found.rows) == 0:
        raise DataError(f"{name} holds no rows: its shape is {tuple(found.rows.shape)}")
    if labels is not None:
        if found.labels is not None:
            raise UsageError(f"{name} has labels of its own, and labels is given too; give one of them")
        found = replace(found, labels=label_texts(labels, len(found.rows), name))
    return _without_missing(found, name) if drop_missing else found


def _is_column(value: object) -> bool:
    """Return whether a value is a single column of a data frame."""
    return not is_frame(value) and hasattr(value, "to_frame") and hasattr(value, "to_numpy")


def _without_missing(found: Given, name: str) -> Given:
    if not found.rows.is_floating_point():
        return found
    whole = ~found.rows.flatten(1).isnan().any(1) if found.rows.ndim > 1 else ~found.rows.isnan()
    dropped = len(whole) - int(whole.sum())
    if not dropped:
        return found
    labels = found.labels and tuple(itertools.compress(found.labels, whole.tolist()))
    note = f"{dropped:,} row(s) of {name} with a missing value dropped"
    return replace(found, rows=found.rows[whole], labels=labels, notes=(*found.notes, note))


def label_texts(labels: Any, num_rows: int, name: str) -> tuple[str, ...]:
    """Return the class of each row in text.

    Raises:
        UsageError: labels are no list of numbers or texts.
        DataError: there is not one for each row, or one is missing.
    """
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu().numpy()
    elif not isinstance(labels, np.ndarray | list | tuple | range) and not _is_column(labels):
        raise UsageError(
            f"the labels of {name} must be an array or a list of one class a row, or the name of a data frame's column; "
            f"got {_type(labels)}"
        )
    try:
        values = np.asarray(labels)
    except ValueError as error:  # a list of lists of several lengths
        raise DataError(f"the labels of {name} are no list of numbers or texts: {error}") from error
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.shape != (num_rows,):
        raise DataError(
            f"the labels of {name} have shape {values.shape} for {num_rows} rows; one label a row is needed"
        )
    return tuple(_text(value, name) for value in values.tolist())


def _text(value: Any, name: str) -> str:
    if value is None or value != value or not isinstance(value, str | int | float):
        raise DataError(f"the labels of {name} hold {shown(value)}; classes are whole numbers or text")
    if isinstance(value, bool):
        return str(int(value))
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


# --- data frames -----------------------------------------------------------------------------------------------------


def _frame(frame: Any, name: str, labels: str | None) -> Given:
    """Read a data frame: its numeric columns, and the column of labels, which is left out of the rows."""
    what = _article(_type(frame))
    source, names = f"{name} ({what})", frame_names(frame)
    twice = next((one for one, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{source} has more than one column called {twice!r}")
    if labels is not None and labels not in names:
        raise UsageError(f"labels={labels!r} is no column of {name}; {nearest(labels, names)}")
    found, refused, left_out, classes = {}, [], [], None
    for place, (label, column) in enumerate(zip(list(frame.columns), names, strict=True)):
        if column == labels:
            classes = label_texts(np.asarray(frame[label]), len(frame), f"{name}, column {labels!r}")
        elif is_index_name(column):
            left_out.append(column)
        else:
            try:
                found[column] = rows_of_frame(frame, [place], source)
            except DataError as error:
                refused.append((column, error))
    if refused:
        listed = ", ".join(repr(column) for column, _ in refused[:10])
        kept = ", ".join(map(repr, [*found][:10])) + ", ..." * (len(found) > 10)
        reason = refused[0][1].message.removeprefix(f"{source}: ")
        raise DataError(
            f"{source} has columns that hold no numbers: {listed} ({reason})",
            hint=f"Leave them out: {name}[[{kept}]]; a column of classes is named by labels=...",
        )
    if not found:
        raise DataError(f"{source} has no column of measurements")
    notes = (f"row labels left out: {', '.join(map(repr, left_out))}",) if left_out else ()
    return Given(torch.cat([*found.values()], dim=1), what, tuple(found), classes, table=True, notes=notes)


# --- datasets, loaders and iterables ---------------------------------------------------------------------------------


def _of_items(value: Any, name: str) -> Given:
    """Read a torch dataset, a loader or an iterable of batches into memory."""
    what = _article(_type(value))
    if isinstance(value, DataLoader):
        inner = value.dataset
        if value.collate_fn is default_collate and not isinstance(inner, IterableDataset) and hasattr(inner, "__len__"):
            value, what = inner, f"{what} of {_article(_type(inner))}"  # each row once, whatever the loader's sampler
    map_style = isinstance(value, TorchDataset) and not isinstance(value, IterableDataset)
    if map_style and not (hasattr(value, "__len__") and hasattr(value, "__getitem__")):
        raise UsageError(f"{name} ({what}) has no length, so its rows can't be read")
    if isinstance(value, IterableDataset):
        batches: Iterator[Any] = ([item] for item in value)
        single = True
    elif map_style:
        batches, single = ([value[index]] for index in range(len(value))), True
    else:
        batches, single = iter(value), False
    return _gathered(batches, name, what, single=single, expected=len(value) if map_style else None)


def _gathered(batches: Iterator[Any], name: str, what: str, *, single: bool, expected: int | None) -> Given:
    rows: list[Tensor] = []
    labels: list[str] = []
    left_out, size = False, 0
    for number, batch in enumerate(_guarded(batches, f"{name} ({what})")):
        item = batch[0] if single else batch
        x, y = _pair(item, f"{name} ({what})", number)
        part = _row(x, f"{name} ({what})", number)
        part = part.unsqueeze(0) if single else part
        if not single and part.ndim < 2:
            raise DataError(
                f"{name} ({what}): item {number} has shape {tuple(part.shape)}, and batches of rows (B, ...) are needed",
                hint="Stack single rows to one tensor: torch.stack(list(rows)).",
            )
        if rows and (part.shape[1:] != rows[0].shape[1:] or part.dtype != rows[0].dtype):
            raise DataError(
                f"{name} ({what}): {'row' if single else 'batch'} {number} has shape {tuple(part.shape[1:])} and type "
                f"{part.dtype}, the first {tuple(rows[0].shape[1:])} and {rows[0].dtype}; all rows must be alike"
            )
        size += part.numel() * part.element_size()
        if max(size, size * (expected or 0) if number == 0 else 0) > MOST_BYTES:
            raise DataError(
                f"{name} ({what}) holds more than {MOST_BYTES / 2**30:g} GiB of rows, which are read into memory",
                hint="Save them as images in a folder, or as a .npy file, and give the path.",
            )
        classes = None if y is None else _classes(y, len(part), single=single)
        left_out = left_out or (y is not None and classes is None)
        labels += classes or ()
        rows.append(part)
    if not rows:
        raise DataError(f"{name} ({what}) holds no rows")
    found = torch.cat(rows)
    usable = len(labels) == len(found)
    notes = ["read into memory once: random transforms give each row one fixed value"] if expected is not None else []
    notes += ["targets that are no classes are left out"] if left_out or (labels and not usable) else []
    return Given(found, what, labels=tuple(labels) if usable else None, notes=tuple(notes))


def _guarded(batches: Iterator[Any], what: str) -> Iterator[Any]:
    """Yield the items; an error of the code that makes them says which it was.

    Raises:
        DataError: one can't be read.
    """
    number = 0
    while True:
        try:
            item = next(batches)
        except StopIteration:
            return
        except GebmKitError:
            raise
        except Exception as error:
            words = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise DataError(f"{what}: item {number} can't be read: {words}") from error
        yield item
        number += 1


def _pair(item: Any, what: str, number: int) -> tuple[Any, Any]:
    """Return the row of an item and its target, or None."""
    if isinstance(item, tuple | list):
        if len(item) in (1, 2) and not isinstance(item[0], int | float):
            return item[0], item[1] if len(item) == 2 else None
        if not all(isinstance(value, int | float) for value in item):
            raise DataError(f"{what}: item {number} has {len(item)} values; a row, or a row and its class, is needed")
    if isinstance(item, dict):
        keys = ", ".join(map(repr, list(item)[:10]))
        raise DataError(
            f"{what}: item {number} is a dict with the keys {keys}; a row, or a row and its class, is needed",
            hint="Give the rows alone, such as [item['image'] for item in ...] stacked to a tensor.",
        )
    return item, None


def _row(x: Any, what: str, number: int) -> Tensor:
    """Return a row, or a batch of rows, as a tensor on the CPU; pictures of Pillow become bytes (H, W) or (H, W, C)."""
    if not isinstance(x, Tensor):
        try:
            x = np.asarray(x)
        except (ValueError, TypeError) as error:
            raise DataError(f"{what}: item {number} can't be read as numbers: {error}") from error
        if x.dtype.kind not in "fiub":
            raise DataError(
                f"{what}: item {number} holds {_type(x[()]) if x.ndim == 0 else x.dtype}; numbers are needed"
            )
    return tensor_of_rows(x, f"item {number} of {what}").cpu()


def _classes(y: Any, num: int, *, single: bool) -> list[str] | None:
    """Return the targets of rows as classes in text; None if they are no whole numbers or texts."""
    values = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    if values.dtype.kind not in "iubU" or values.size != num:
        return None
    return [_text(value, "the items") for value in values.reshape(-1).tolist()]


def _type(value: object) -> str:
    return type(value).__name__


def _article(word: str) -> str:
    return f"{'an' if word[:1].lower() in 'aeiou' or word == 'ndarray' else 'a'} {word}"
