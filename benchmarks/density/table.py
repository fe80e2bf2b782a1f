"""Markdown tables of the records: means over seeds, paired differences, and whether the goals are met."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from benchmarks.density.settings import METHODS

Record = dict[str, Any]

PER_DIMENSION = 0.05
"""The goal: joint training is worse than maximum likelihood by at most this many nats per dimension."""


def markdown(records: Sequence[Record]) -> str:
    """Format the two tables."""
    rows = [
        "| data (columns) | flow | ML | joint | joint, weighted | joint, pathwise | ML, then energy "
        "| ML, then joint, pathwise | seeds |",
        "|" + "---|" * 9,
    ]
    paired = [
        f"| data | flow | joint - ML, per dimension (goal <= {PER_DIMENSION}) | joint, weighted - ML, per dimension "
        "| joint, pathwise - ML, per dimension | ML, then energy - ML (goal below -2 se) |",
        "|" + "---|" * 6,
    ]
    for data, flow in dict.fromkeys((r["data"], r["flow"]) for r in records):
        found = {(r["method"], r["seed"]): r for r in records if (r["data"], r["flow"]) == (data, flow)}
        seeds = sorted({seed for _, seed in found})
        dimensions = next(iter(found.values()))["dimensions"]
        ml = {seed: found["energy", seed]["base"] for seed in seeds if ("energy", seed) in found}
        values = {m: {s: found[m, s]["gebm"] for s in seeds if (m, s) in found} for m in METHODS}
        shown = (ml, values["joint"], values["weighted"], values["pathwise"], values["energy"], values["both"])
        cells = [_mean(list(column.values())) for column in shown]
        rows.append(f"| {data} ({dimensions}) | {flow} | " + " | ".join(cells) + f" | {len(seeds)} |")
        both_parts = [
            _mean([(values[method][s] - ml[s]) / dimensions for s in seeds if s in values[method] and s in ml])
            for method in ("joint", "weighted", "pathwise")
        ]
        energy = [values["energy"][s] - ml[s] for s in ml]
        paired.append(f"| {data} | {flow} | {' | '.join(both_parts)} | {_mean(energy)}{_verdict(energy)} |")
    return "\n".join(rows) + "\n\n" + "\n".join(paired)


def _mean(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{fmean(values):.3f}" + (f" ± {_se(values):.3f}" if len(values) > 1 else "")


def _se(values: Sequence[float]) -> float:
    return stdev(values) / math.sqrt(len(values))


def _verdict(differences: Sequence[float]) -> str:
    if len(differences) < 2:
        return ""
    if abs(fmean(differences)) <= 2 * _se(differences):
        return ", equal within 2 se"
    return ", better" if fmean(differences) < 0 else ", worse"
