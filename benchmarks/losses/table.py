"""Markdown tables of the records: means over seeds, steps to the final metric, what went wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from benchmarks.losses.problems import GAUSSIANS, LOSSES, PROBLEMS

NEAR = 1.25
"""A run has reached its final metric once all later scores are at most this many times the final value."""

Record = dict[str, Any]


def markdown(records: Sequence[Record]) -> str:
    """Format a table for each problem, with the losses that have records."""
    parts = []
    for problem in PROBLEMS:
        rows = [row for loss in LOSSES if (row := _row(problem, _of(records, problem, loss), loss))]
        if rows:
            parts.append(_problem(problem, records) + "\n".join(rows))
    rows = [row for loss in LOSSES if (row := _gaussian_row(_of(records, "gaussians", loss), loss))]
    if rows:
        names = [f"{case.differs}, {case.dim}-d, KL {case.divergence:g}" for case in GAUSSIANS]
        head = "### Gaussians of known divergence: KALE / KL\n\n| loss | " + " | ".join(names) + " |\n"
        parts.append(head + "|---|" + "---|" * len(names) + "\n" + "\n".join(rows))
    return "\n\n".join(parts)


def _of(records: Iterable[Record], problem: str, loss: str) -> list[Record]:
    return [record for record in records if record["problem"] == problem and record["loss"] == loss]


def _problem(problem: str, records: Sequence[Record]) -> str:
    settings = PROBLEMS[problem]
    floor = [r["data"] for r in records if r["problem"] == problem and "data" in r]
    text = f"### {problem}: {settings.metric}"
    text += f" (held-out data: {fmean(floor):.3f})\n\n" if floor else "\n\n"
    also = f" {settings.also}, base | {settings.also}, GEBM |" if settings.also else ""
    head = (
        f"| loss | base | GEBM |{also} base at its final value after | GEBM, final phase | skipped | diverged | seeds |"
    )
    return f"{text}{head}\n{'|---' * head.count(' | ')}|---|\n"


def _row(problem: str, found: Sequence[Record], loss: str) -> str:
    if not found:
        return ""
    good = [record for record in found if "final" in record]
    settings = PROBLEMS[problem]
    columns = 7 + 2 * (settings.also is not None)
    if not good:
        return f"| {loss} | {found[0]['error'][:80]} |" + " |" * (columns - 2) + f" {len(found)} |"
    names = ["base", "gebm", *(["base also", "gebm also"] if settings.also else [])]
    cells = [_spread([record["final"][name] for record in good]) for name in names]
    cells.append(_mean_steps([_steps_to(r, "base", 0, settings.steps) for r in good]))
    cells.append(_mean_steps([_steps_to(r, "gebm", settings.steps, math.inf) for r in good], settings.steps))
    cells.append(f"{fmean(r['skipped'] for r in good):.0f}")
    cells.append(f"{fmean(r['divergences'] for r in good):.0f}")
    failed = f" ({len(found) - len(good)} failed)" if len(good) < len(found) else ""
    return f"| {loss} | " + " | ".join(cells) + f" | {len(found)}{failed} |"


def _spread(values: Sequence[float]) -> str:
    """Format the mean, with the range over seeds."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{fmean(values):.3f} ({min(values):.3f}-{max(values):.3f})"


def _steps_to(record: Record, column: str, above: float, upto: float) -> float | None:
    """Return the first step in (above, upto] after which the metric stays within `NEAR` times its final value."""
    looks = [look for look in record["looks"] if above < look["step"] <= upto]
    if not looks or not math.isfinite(record["final"][column]):
        return None
    reached = None
    for look in reversed(looks):
        if look[column] > NEAR * max(record["final"][column], 0.0):
            break
        reached = look["step"]
    return reached


def _mean_steps(steps: Sequence[float | None], since: float = 0) -> str:
    known = [value - since for value in steps if value is not None]
    if not known:
        return "the end"
    late = len(steps) - len(known)
    return f"{fmean(known):.0f}" + (f" ({late} at the end)" if late else "")


def _gaussian_row(found: Sequence[Record], loss: str) -> str:
    good = [record for record in found if "ratios" in record]
    if not good:
        return ""
    names = list(good[0]["ratios"])
    return f"| {loss} | " + " | ".join(_spread([record["ratios"][name] for record in good]) for name in names) + " |"
