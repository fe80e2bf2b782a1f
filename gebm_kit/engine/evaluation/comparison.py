"""Comparison of runs: how their recipes differ, how they went, and which of their scores are comparable.

Two values of a metric are comparable if they were computed by the same protocol (numbers of draws and of reference rows,
features and their checksum, bandwidths, ...) on the same data. The number of draw sets only changes the intervals' width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gebm_kit.core.errors import UsageError
from gebm_kit.core.paths import user_path
from gebm_kit.engine.run_directory.record import COLUMNS, RunRecord, read_record
from gebm_kit.engine.run_directory.values import is_count

IRRELEVANT = ("sets", "interval", "ratio_interval", "held_out", "held_out_sets", "held_out_part", "lower_is_better")
"""Entries of a protocol that do not affect the values of base and GEBM."""


IMPLIED = {"resize": "none"}
"""Values of entries that older protocols lack."""


class Absent:
    """Placeholder for the value of a key that a recipe does not have."""

    def __repr__(self) -> str:
        return "-"


ABSENT = Absent()


@dataclass(frozen=True)
class ComparedMetric:
    """One value of a metric for all runs.

    Attributes:
        name: name of the value.
        columns: for each of ``data``, ``base``, ``gebm`` and ``ratio`` one estimate (``value``, ``low``, ``high``, ``n``)
            or None per run.
        reasons: why the runs can't be compared by this value; empty if they can.
        protocols: what each run's value depends on; empty where that is unknown.
    """

    name: str
    columns: Mapping[str, tuple[Mapping[str, Any] | None, ...]]
    reasons: tuple[str, ...]
    protocols: tuple[Mapping[str, Any], ...]

    def as_dict(self) -> dict[str, Any]:
        columns = {column: list(values) for column, values in self.columns.items()}
        protocols = [dict(protocol) or None for protocol in self.protocols]
        return {"comparable": not self.reasons, "reasons": list(self.reasons), **columns, "protocols": protocols}


@dataclass(frozen=True)
class Comparison:
    """Several runs side by side.

    Attributes:
        records: the runs.
        labels: the shortest ends of their paths that tell them apart.
        differences: for each recipe key that differs, one value (or `ABSENT`) per run.
        metrics: all values by which at least one run was scored.
    """

    records: tuple[RunRecord, ...]
    labels: tuple[str, ...]
    differences: Mapping[str, tuple[Any, ...]]
    metrics: tuple[ComparedMetric, ...]

    def outcomes(self) -> list[dict[str, Any]]:
        """Return how each run went."""
        return [_outcome(label, record) for label, record in zip(self.labels, self.records, strict=True)]

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON of ``gebm-kit compare``."""
        differences = {
            key: [None if value is ABSENT else value for value in values] for key, values in self.differences.items()
        }
        return {
            "runs": self.outcomes(),
            "differences": differences,
            "metrics": {metric.name: metric.as_dict() for metric in self.metrics},
        }


def compare(paths: Sequence[str | Path]) -> Comparison:
    """Read run directories and compare them.

    Raises:
        UsageError: fewer than two paths are given, or one of them twice.
        CheckpointError: a path is not a run directory, or the run is damaged.
    """
    places = [user_path(path).resolve() for path in paths]
    twice = [str(path) for path, place in zip(paths, places, strict=True) if places.count(place) > 1]
    if twice:
        raise UsageError(f"{twice[-1]} is named twice")
    if len(paths) < 2:
        raise UsageError("at least two runs are needed", hint="`gebm-kit runs` lists the runs under runs/.")
    records = tuple(read_record(path) for path in paths)
    names = list(dict.fromkeys(name for record in records for name in record.value_names()))
    return Comparison(
        records=records,
        labels=shortest_ends(places),
        differences=differences([record.resolved for record in records]),
        metrics=tuple(_compared(name, records) for name in names),
    )


def protocol_groups(records: Sequence[RunRecord], names: Sequence[str | None]) -> list[int | None]:
    """Group the values ``names[i]`` of ``records[i]`` by protocol and data.

    Returns:
        For each record the number of its group, counted from 1 among values of the same name; None where there is no value
        or its protocol is unknown.
    """
    found: dict[str, list[RunRecord]] = {}
    groups: list[int | None] = []
    for record, name in zip(records, names, strict=True):
        if name is None or not record.protocol(name):
            groups.append(None)
            continue
        firsts = found.setdefault(name, [])
        alike = (index for index, first in enumerate(firsts) if not _reasons(name, [first, record]))
        index = next(alike, len(firsts))
        if index == len(firsts):
            firsts.append(record)
        groups.append(index + 1)
    return groups


def differences(recipes: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """Return the keys in which resolved recipes differ, each with one value (or `ABSENT`) per recipe."""
    leaves = [_leaves(recipe) for recipe in recipes]
    keys = dict.fromkeys(key for one in leaves for key in one)
    values = {key: tuple(one.get(key, ABSENT) for one in leaves) for key in keys}
    return {key: row for key, row in values.items() if any(value != row[0] for value in row)}


def shortest_ends(paths: Sequence[Path]) -> tuple[str, ...]:
    """Shorten each path to as few last parts as tell it from all others.

    >>> shortest_ends([Path("a/x"), Path("b/x"), Path("b/y")])
    ('a/x', 'b/x', 'y')
    """
    ends = []
    for path in paths:
        others = [other.parts for other in paths if other != path]
        count = 1
        while count < len(path.parts) and any(other[-count:] == path.parts[-count:] for other in others):
            count += 1
        ends.append(str(Path(*path.parts[-count:])))
    return tuple(ends)


# --- parts -----------------------------------------------------------------------------------------------------------
def _leaves(value: Any, key: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and (value or not key):
        return {
            k: v for name, item in value.items() for k, v in _leaves(item, f"{key}.{name}" if key else name).items()
        }
    if isinstance(value, list) and (not value or any(isinstance(item, dict) for item in value)):
        return {k: v for i, item in enumerate(value) for k, v in _leaves(item, f"{key}[{i}]").items()}
    return {key: value}


def _outcome(label: str, record: RunRecord) -> dict[str, Any]:
    evaluation = record.evaluation or {}
    diagnostics = _mapping(evaluation.get("diagnostics"))
    partition = _mapping(evaluation.get("log_partition"))
    return {
        "run": str(record.path),
        "label": label,
        "recipe": record.recipe,
        "state": record.state,
        "step": record.step,
        "total_steps": record.total_steps,
        "seconds": record.seconds,
        "skipped_updates": _skipped_updates(record),
        "restores": _number(record.checkpoint_state.get("restores")),
        "kale_train": evaluation.get("kale_train"),
        "kale_test": evaluation.get("kale_test"),
        "log_partition": partition.get("value"),
        "nll": _mapping(_mapping(evaluation.get("nll")).get("gebm")).get("value"),
        "inverse_temperature": evaluation.get("inverse_temperature"),
        "acceptance": diagnostics.get("acceptance"),
        "divergences": diagnostics.get("divergences"),
        "problems": list(diagnostics.get("problems") or []),
    }


def _skipped_updates(record: RunRecord) -> int | None:
    """Return the number of non-finite updates of base and energy that were skipped; None if unknown."""
    counts = [_mapping(part).get("total") for part in _mapping(record.checkpoint_state.get("non_finite")).values()]
    known = [count for count in counts if is_count(count)]
    return sum(known) if known else None


def _compared(name: str, records: Sequence[RunRecord]) -> ComparedMetric:
    scores = [record.score(name) for record in records]
    columns = {column: tuple(None if s is None else s.columns[column] for s in scores) for column in COLUMNS}
    scored = [record for record, score in zip(records, scores, strict=True) if score is not None]
    protocols = tuple(record.protocol(name) if score else {} for record, score in zip(records, scores, strict=True))
    return ComparedMetric(name, columns, _reasons(name, scored), protocols)


def _reasons(name: str, records: Sequence[RunRecord]) -> tuple[str, ...]:
    reasons = [
        f"{record.path} was not evaluated after training; its value is from a look during training"
        for record in records
        if not record.protocol(name)
    ]
    recipes = [{"data": record.resolved.get("data")} for record in records]
    protocols = [p for record in records if (p := record.protocol(name))]
    for key, values in differences(recipes).items():
        if not all(
            value is None or value is False or value is ABSENT for value in values
        ):  # an older run lacks the key
            reasons.append(f"{key}: {_listed(values)}")
    for key in dict.fromkeys(key for protocol in protocols for key in protocol):
        values = tuple(protocol.get(key, IMPLIED.get(key, ABSENT)) for protocol in protocols)
        if key not in IRRELEVANT and not all(_alike(value, values[0]) for value in values):
            reasons.append(f"{key}: {_listed(values)}")
    return tuple(reasons)


def _listed(values: Sequence[Any]) -> str:
    words = [value[:8] if isinstance(value, str) and len(value) == 64 else str(value) for value in values]  # checksums
    return ", ".join(words)


def _alike(a: Any, b: Any) -> bool:
    """Return whether two entries are equal, up to rounding differences between machines."""
    if isinstance(a, float) and isinstance(b, int | float):
        return math.isclose(a, b, rel_tol=1e-6)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_alike(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def _number(value: Any) -> int | None:
    return value if is_count(value) else None


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
