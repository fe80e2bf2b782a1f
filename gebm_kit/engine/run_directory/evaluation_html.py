"""An evaluation, as its JSON has it, as tables for a notebook."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gebm_kit.core.html import interval, table

COLUMNS = ("data", "base", "gebm", "ratio")
"""Columns of the table: held-out data, the base, the GEBM, and the ratio of GEBM over base."""


def evaluation_sections(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the metrics of data, base, GEBM and their ratio with 95 % intervals, log Z and KALE, and the verdict."""
    metrics = {column: found["metrics"].get(column, {}) for column in COLUMNS}
    names = dict.fromkeys(name for values in metrics.values() for name in values)
    rows = [[name, *(_cell(metrics[column].get(name)) for column in COLUMNS)] for name in names]
    yield table(("metric", *COLUMNS), rows, "value [95 % interval]; ratio is GEBM over base")
    partition = found.get("log_partition") or {}
    numbers: list[tuple[str, Any]] = []
    if partition:
        numbers.append(("log Z", _cell(partition)))
    numbers += [(name, found.get(name)) for name in ("kale_test", "kale_train") if found.get(name) is not None]
    if (nll := found.get("nll")) and isinstance(nll, Mapping):
        numbers += [(f"nll of {column}", _cell(nll.get(column))) for column in ("base", "gebm") if nll.get(column)]
    numbers.append(("inverse temperature", found.get("inverse_temperature")))
    yield table(("fit", "value"), numbers)
    if verdict := found.get("verdict"):
        yield table(("", "verdict"), list(verdict.items()))


def _cell(estimate: Any) -> str:
    if not isinstance(estimate, Mapping):
        return "-"
    return interval(estimate.get("value"), estimate.get("low"), estimate.get("high"))
