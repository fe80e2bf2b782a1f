"""The data of a call in Python: a recipe's node where a recipe can name them, otherwise a dataset of rows in memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gebm_kit.config.build import build
from gebm_kit.config.given_node import given_node
from gebm_kit.config.schema import ComponentNode
from gebm_kit.config.supplied import class_of
from gebm_kit.core.components import parameters
from gebm_kit.core.contracts import check_dataset_facts
from gebm_kit.core.errors import DataError, GebmKitError, UsageError, nearest
from gebm_kit.core.frames import is_frame
from gebm_kit.core.interfaces import Dataset, HasLabels, HasStandardisation, SplitName
from gebm_kit.core.paths import user_path
from gebm_kit.core.plugins import installed
from gebm_kit.core.stacked_rows import HELD_OUT, StackedRows
from gebm_kit.core.units import HasUnits
from gebm_kit.engine.datasets.composed import Composed, joined
from gebm_kit.engine.datasets.given_rows import ALLOWED, Given, is_rows, read_given
from gebm_kit.engine.datasets.guess import TABLES, data_node
from gebm_kit.engine.datasets.held_out import evenly_spaced, evenly_spaced_rows

OF_FILES = ("path", "key", "columns", "where", "origin", "missing", "header", "labels")
"""Parameters of ``arrays`` and ``tabular`` that say what is in a file; of these, ``missing`` has a meaning in memory too."""

IN_PYTHON = {
    "missing=drop": "reading={'missing': 'drop'}",
    "columns=[...]": "data.drop(columns=[...])",
    "standardise=true": "reading={'standardise': True}",
    "Drop such rows": "Drop such rows, reading={'missing': 'drop'},",
}
"""What hints about files say, and the same of rows in memory."""

PARTS: tuple[SplitName, ...] = ("train", "valid", "test")

TABLE_FILES = (".csv", ".parquet")
"""Endings of files that are read as a data frame is, by the dataset ``tabular``."""


@dataclass(frozen=True, slots=True)
class Source:
    """The data of a call.

    Attributes:
        node: the node of a recipe that names them, as plain values; None for data that only the caller has.
        dataset: these, as a dataset; None where there is a node.
        facts: what the recipe says about them, so that other data are not taken for them.
        original: class of what the caller gave.
    """

    node: dict[str, Any] | None
    dataset: Dataset | None = None
    facts: Mapping[str, Any] | None = None
    original: str = ""


def source_of(
    data: Any, valid: Any = None, test: Any = None, *, labels: Any = None, reading: Mapping[str, Any] | None = None
) -> Source:
    """Return the data that a caller gave as ``data``, ``valid`` and ``test``.

    Args:
        data: anything that `ALLOWED` lists.
        valid, test: the same; None: parts of ``data``.
        labels: classes of the rows of ``data``: one for each row, or the name of a column.
        reading: parameters of the dataset that reads ``data``, such as ``{"standardise": False}``.

    Raises:
        UsageError: a value of another type, or arguments that contradict each other.
        DataError: the data can't be used.
        RecipeError, PluginError: no installed dataset has this name, or it has no such parameter.
    """
    if reading is not None and not isinstance(reading, Mapping):
        raise UsageError(
            f"reading must be a mapping of parameters, for example {{'standardise': True}}, got {reading!r}"
        )
    reading = dict(reading or {})
    held_out = {part: value for part, value in zip(HELD_OUT, (valid, test), strict=True) if value is not None}
    if is_rows(data) and not isinstance(data, Dataset) and all(is_rows(value) for value in held_out.values()):
        return _in_memory(data, held_out, labels, reading)
    tables = [data, *held_out.values()]
    if held_out and labels is None and not set(reading) & {*OF_FILES} and all(map(_is_table, tables)):
        return _in_memory(data, held_out, None, reading)  # one scale and one grid for all parts
    node = _node(data, labels, reading)
    if node is not None and not held_out:
        return Source(node)
    main = (
        data
        if isinstance(data, Dataset)
        else _in_memory(data, {}, labels, reading).dataset
        if node is None
        else _built(node)
    )
    assert main is not None
    if not held_out:
        return Source(None, main, _sizes(main), class_of(data))
    made = _composed(main, held_out, data)
    return Source(None, made, fingerprint(made), class_of(data))


def dataset_of(source: Source) -> Dataset:
    """Return the dataset of a source, opened if only its node is known.

    Raises:
        DataError, UsageError: its files can't be read.
    """
    if source.dataset is not None:
        return source.dataset
    assert source.node is not None
    return _built(source.node)


# --- what a recipe can name ------------------------------------------------------------------------------------------


def _node(data: Any, labels: Any, reading: dict[str, Any], name: str = "data") -> dict[str, Any] | None:
    """Return the node that names the data, or None for data that no recipe can name."""
    if isinstance(data, ComponentNode):
        data = data.as_dict()
    if isinstance(data, Mapping):
        if labels is not None or reading:
            what = "labels" if labels is not None else "reading"
            raise UsageError(f"{name} is a recipe node, and {what} is given too; write its keys into the node")
        node = given_node("dataset", data, name)
        return {"name": node.name, **data}
    if isinstance(data, str | os.PathLike):
        try:
            node = data_node(os.fspath(data))
        except UsageError as error:
            message = error.message.replace("DATA", name, 1)
            hint = f"{name} as text is a dataset's name, a folder of images, or a file {', '.join(TABLES)}."
            raise UsageError(message, hint=hint) from error
        if labels is not None and not isinstance(labels, str):
            raise UsageError(
                f"{name} is a name or a path, so labels must name a column of it, got {type(labels).__name__}"
            )
        own = {**({} if labels is None else {"labels": labels}), **reading}
        if name == "data" and _is_table_file(data) and not (set(own) - {*_parameters_of("tabular")}):
            node = replace(node, name="tabular")  # as a data frame is read
        allowed = _parameters_of(node.name)
        for key in own:
            if key not in allowed:
                what = "labels" if key == "labels" and labels is not None else f"reading[{key!r}]"
                raise UsageError(f"{what}: dataset {node.name!r} has no parameter {key!r}; {nearest(key, allowed)}")
        values = {"name": node.name, **node.parameters, **own}
        given_node("dataset", values, name)
        return values
    if isinstance(data, Dataset):
        if labels is not None or reading:
            raise UsageError(f"{name} is a Dataset, which is read already; leave out labels and reading")
        return None
    if is_rows(data):
        return None
    hint = "For a list of rows: torch.tensor(rows), or numpy.array(rows)." if isinstance(data, list) else ""
    raise UsageError(f"{name} must be {ALLOWED}; got {type(data).__name__}", hint=hint)


def _parameters_of(name: str) -> list[str]:
    """Return the parameters of a dataset that a recipe can give."""
    found = parameters(installed().registry.get("dataset", name).load())
    return [key for key, parameter in found.items() if not parameter.injected]


def _is_table_file(value: object) -> bool:
    """Return whether a value is the path of a file that is read as a data frame is."""
    return isinstance(value, str | os.PathLike) and user_path(os.fspath(value)).suffix.lower() in TABLE_FILES


def _is_table(value: object) -> bool:
    return _is_table_file(value) or is_frame(value)


def _built(node: Mapping[str, Any]) -> Dataset:
    known = given_node("dataset", node, "data")
    made: Dataset = build("dataset", known, {"directory": Path.cwd()})
    check_dataset_facts(made)
    return made


# --- rows in memory --------------------------------------------------------------------------------------------------


def _in_memory(data: Any, held_out: Mapping[SplitName, Any], labels: Any, reading: dict[str, Any]) -> Source:
    drop = _drops_missing(reading)
    given = {"train": _given(data, "data", labels, drop_missing=drop)}
    given |= {part: _given(value, part, drop_missing=drop) for part, value in held_out.items()}
    made = _rows_dataset(given, {name: value for name, value in reading.items() if name != "missing"})
    facts = fingerprint(made)
    facts |= {"reading": reading} if reading else {}
    facts |= {"labels": labels} if isinstance(labels, str) else {}
    return Source(None, made, facts, class_of(data))


def _given(value: Any, name: str, labels: Any = None, *, drop_missing: bool = False) -> Given:
    """Read rows, and those of a table's file too; see `read_given`."""
    if not _is_table_file(value):
        return read_given(value, name, labels, drop_missing=drop_missing)
    reader: Any = installed().registry.get("dataset", "arrays").load()
    file = user_path(value, error=DataError)
    rows, names, _ = reader.rows_of_file(file, None, (1,), None, None, None)
    return Given(rows, str(file), names, table=True)


def _drops_missing(reading: Mapping[str, Any]) -> bool:
    missing = reading.get("missing", "refuse")
    if missing not in ("refuse", "drop"):
        raise UsageError(f"reading['missing'] is {missing!r}; allowed: refuse, drop")
    return bool(missing == "drop")


def _rows_dataset(given: Mapping[str, Given], reading: Mapping[str, Any]) -> Dataset:
    """Return the dataset of rows in memory: a table for data frames, arrays for all others."""
    first = given["train"]
    name = "tabular" if first.table else "arrays"
    cls: Any = installed().registry.get("dataset", name).load()
    allowed = [key for key, p in parameters(cls).items() if not p.injected and key not in OF_FILES]
    for key in reading:
        if key not in allowed:
            raise UsageError(
                f"reading[{key!r}]: rows in memory have no such parameter; {nearest(key, [*allowed, 'missing'])}"
            )
    given_node("dataset", {"name": name, "path": ".", **reading}, "reading")
    stacked = _stacked(given)
    try:
        made: Dataset = cls.of_rows(stacked, **reading)
    except GebmKitError as error:
        raise _in_words_of_python(error) from error
    return made


def _in_words_of_python(error: GebmKitError) -> GebmKitError:
    """Return the error with the argument in place of the recipe's keys that its message names."""
    hint = error.hint
    for words, in_python in IN_PYTHON.items():
        hint = hint.replace(words, in_python)
    if "data." in error.message:
        hint = (
            "Parameters of data go into the argument reading: reading={'layout': 'grey'}, reading={'pixels': 'keep'}."
        )
    return type(error)(error.message, hint=hint)


def _stacked(given: Mapping[str, Given]) -> StackedRows:
    first = given["train"]
    for part, one in given.items():
        if sorted(one.columns) != sorted(first.columns):
            other = sorted(set(one.columns) ^ set(first.columns))
            raise DataError(f"data and {part} have different columns: {', '.join(map(repr, other[:10]))} in one only")
        if one.rows.shape[1:] != first.rows.shape[1:]:
            shapes = f"{tuple(first.rows.shape[1:])} and {tuple(one.rows.shape[1:])}"
            raise DataError(f"the rows of data and {part} have different shapes: {shapes}")
        if (one.rows.dtype == torch.uint8) != (first.rows.dtype == torch.uint8):
            raise DataError(
                f"data hold {first.rows.dtype} and {part} {one.rows.dtype}; bytes and other numbers don't mix"
            )
        if (one.labels is None) != (first.labels is None):
            some, none = ("data", part) if one.labels is None else (part, "data")
            raise DataError(
                f"{some} has labels, {none} has none",
                hint="Give a pair for each part: valid=(rows, labels).",
            )
    rows = torch.cat([_ordered(one, first.columns) for one in given.values()])
    labels = None if first.labels is None else [label for one in given.values() for label in one.labels or ()]
    counts: Any = {part: len(one.rows) for part, one in given.items()}
    notes = tuple(dict.fromkeys(note for one in given.values() for note in one.notes))
    return StackedRows(rows, counts, f"data ({first.what})", first.columns, labels, notes)


def _ordered(one: Given, columns: tuple[str, ...]) -> Tensor:
    return one.rows if one.columns == columns else one.rows[:, [one.columns.index(name) for name in columns]]


# --- parts of several kinds ------------------------------------------------------------------------------------------


def _composed(main: Dataset, held_out: Mapping[SplitName, Any], data: Any) -> Dataset:
    """Return a dataset whose held-out parts are other data than ``main``'s."""
    found: dict[SplitName, Dataset] = {}
    whole: dict[SplitName, bool] = {}
    for part, value in held_out.items():
        node = _node(value, None, {}, part)
        if isinstance(value, Dataset):
            found[part], whole[part] = value, False
        elif node is None:
            found[part], whole[part] = _rows_dataset({"train": read_given(value, part)}, _plain_reading(main)), True
        else:
            found[part] = _built(node)
            whole[part] = node["name"] == "arrays"  # rows of a file, which has no parts of its own
    rows = {part: joined(one, PARTS if whole[part] else (part,)) for part, one in found.items()}
    standardised = _standardised(main)
    for part, one in found.items():
        if tuple(one.data_shape) != tuple(main.data_shape):
            raise DataError(f"rows of data have shape {tuple(main.data_shape)}, rows of {part} {tuple(one.data_shape)}")
        names, others = _columns(main), _columns(one)
        if names and others and names != others:
            raise DataError(f"data have the columns {', '.join(names)}, and {part} {', '.join(others)}, in this order")
        if isinstance(main, HasLabels) != isinstance(one, HasLabels):
            raise DataError(
                f"{'data' if isinstance(main, HasLabels) else part} alone have labels; give all parts labels"
            )
        if standardised is not None and whole[part]:
            rows[part] = rows[part].mapped(standardised)
    return Composed(main, rows, found)


def _columns(dataset: Any) -> tuple[str, ...]:
    """Return the names of a table's columns; () for numbers in place of names, and for data that are no table."""
    names = dataset.units.columns if isinstance(dataset, HasUnits) else ()
    return () if all(name.isdecimal() for name in names) else names


def _plain_reading(main: Dataset) -> dict[str, Any]:
    return {"standardise": False} if len(main.data_shape) == 1 else {}


def _standardised(main: Dataset) -> Callable[[Tensor], Tensor] | None:
    """Return how the dataset standardises measurements, or None if it does not."""
    known: object = main
    return known.standardised if isinstance(known, HasStandardisation) else None


# --- what is known of the data again ---------------------------------------------------------------------------------


def _sizes(dataset: Dataset) -> dict[str, Any]:
    return {"rows": [len(dataset.split(part)) for part in PARTS], "shape": list(dataset.data_shape)}


def fingerprint(dataset: Dataset) -> dict[str, Any]:
    """Return the sizes of the parts, and a checksum of rows and labels: of at most 10,000 evenly spaced rows of a part."""
    digest = hashlib.sha256()
    for part in PARTS:
        rows = evenly_spaced_rows(dataset.split(part), f"{part} data").contiguous()
        digest.update(rows.numpy().tobytes())
        if isinstance(dataset, HasLabels):
            labels = dataset.labels(part)
            digest.update(labels[evenly_spaced(len(labels))].contiguous().numpy().tobytes())
    return {**_sizes(dataset), "sha256": digest.hexdigest()}
