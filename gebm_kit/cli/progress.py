"""Progress as lines of text, for pipes and log files, and the pace of a stage, which progress bars also show."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gebm_kit.core.progress import Progress


LINES_PER_STAGE = 20
"""Approximate number of progress lines in each stage, where stderr is not a terminal."""


SECONDS_PER_LINE = 10
"""Time between lines in a stage of unknown length."""


LINE_SCALARS = ("energy_loss", "base_loss", "kale", "log_partition", "acceptance", "divergences", "step_size")
"""Scalars that a line of progress shows, in this order; a run's metrics.jsonl has them all."""


class PlainProgress:
    """One line every N steps of a stage, where N is about a twentieth of its length."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._stages: dict[str, Pace] = {}
        self._printed: dict[str, int] = {}

    def __call__(self, report: Progress) -> None:
        pace = self._stages.get(report.stage)
        if pace is None or report.step < pace.step:
            pace = self._stages[report.stage] = Pace(report)
            self._printed[report.stage] = self._mark(report, pace)
        pace.update(report)
        mark, done = self._mark(report, pace), 0 <= report.total <= report.step
        if mark > self._printed[report.stage] or (done and pace.last_line < report.step):
            self._printed[report.stage] = mark
            pace.last_line = report.step
            parts = [
                f"{report.stage} {report.step}" + (f"/{report.total}" if report.total >= 0 else ""),
                *pace.scalars(LINE_SCALARS),
                pace.speed(),
                pace.left(),
            ]
            self._say("  ".join(part for part in parts if part))

    def _mark(self, report: Progress, pace: Pace) -> int:
        """Return a number that grows by one whenever a line is due."""
        if report.total < 0:
            return int(pace.seconds // SECONDS_PER_LINE)
        return report.step // max(1, math.ceil(report.total / LINES_PER_STAGE))


class Pace:
    """Speed and remaining time of one stage, computed from its progress reports."""

    def __init__(self, report: Progress) -> None:
        self.first_step = report.step
        self.started = time.monotonic()
        self.step = report.step
        self.total = report.total
        self.last_line = -1
        self._scalars: dict[str, float] = {}

    def update(self, report: Progress) -> None:
        self.step, self.total = report.step, report.total
        if report.scalars:  # replaced, not merged: energy-only training no longer has a base_loss
            self._scalars = dict(report.scalars)

    def scalars(self, names: Sequence[str]) -> list[str]:
        """Return ``loss 0.123``, ``kale 0.456``, ... for the ``names`` that were reported."""
        known = [name for name in names if name in self._scalars]
        return [f"{'loss' if name == 'energy_loss' else name} {self._scalars[name]:.4g}" for name in known]

    @property
    def seconds(self) -> float:
        """Seconds since the first report."""
        return time.monotonic() - self.started

    @property
    def rate(self) -> float:
        """Steps per second since the first report; 0 before the second report."""
        seconds = self.seconds
        return (self.step - self.first_step) / seconds if seconds > 0 else 0.0

    def speed(self) -> str:
        return f"{self.rate:.3g} steps/s" if self.rate > 0 else ""

    def left(self) -> str:
        """Return the time left, or the time taken once the stage is done; "" if the length is unknown."""
        if self.total < 0:
            return ""
        if self.step >= self.total:
            return f"in {duration(self.seconds)}"
        return f"{duration((self.total - self.step) / self.rate)} left" if self.rate > 0 else ""


def duration(seconds: float) -> str:
    """Write a duration as ``45 s``, ``3 min 20 s`` or ``2 h 05 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
