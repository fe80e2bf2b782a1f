"""The plain series that the figure of a trace is drawn from: one panel for each of the metric's values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Line:
    """A metric against the evaluations spent on each chain.

    Attributes:
        label: the line's text in the legend.
        x: evaluations per chain, increasing.
        y, low, high: the metric and its 95 % interval at each x; NaN where an interval is unknown.
        marked: the x to ring, or None.
    """

    label: str
    x: Sequence[int]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    marked: int | None


@dataclass(frozen=True, slots=True)
class Panel:
    """One value of the metric.

    Attributes:
        label: label of the vertical axis.
        lines: one for each beta.
        base, floor: levels of the base and of held-out data.
    """

    label: str
    lines: Sequence[Line]
    base: float
    floor: float
