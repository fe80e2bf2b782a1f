"""The tables of an evaluation, for loggers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from gebm_kit.engine.evaluation.evaluation import Evaluation

Cell = str | float | None

COLUMNS = ("data", "base", "gebm", "ratio")


class LoggedTable(NamedTuple):
    """A table with its name, as `gebm_kit.core.loggers.Logger.log_table` takes it."""

    name: str
    columns: list[str]
    rows: list[list[Cell]]


def logged_tables(evaluation: Evaluation) -> Iterator[LoggedTable]:
    """Yield the values with their intervals as table ``evaluation``, and those of each class as table ``classes``."""
    names = list(dict.fromkeys(name for column in COLUMNS for name in evaluation.metrics.get(column, {})))
    rows: list[list[Cell]] = []
    for name in names:
        row: list[Cell] = [name]
        for column in COLUMNS:
            found = evaluation.metrics.get(column, {}).get(name)
            row += [None, None, None] if found is None else [found.value, found.low, found.high]
        rows.append(row)
    heads = [f"{column}{end}" for column in COLUMNS for end in ("", "_low", "_high")]
    yield LoggedTable("evaluation", ["value", *heads], rows)
    if evaluation.classes:
        flat = {label: dict(_leaves("", found)) for label, found in evaluation.classes.items()}
        keys = list(dict.fromkeys(key for found in flat.values() for key in found))
        yield LoggedTable(
            "classes", ["class", *keys], [[str(label), *map(found.get, keys)] for label, found in flat.items()]
        )


def _leaves(prefix: str, value: Any) -> Iterator[tuple[str, Cell]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(f"{prefix}.{key}".lstrip("."), inner)
    elif value is None or isinstance(value, str | int | float):
        yield prefix, value
