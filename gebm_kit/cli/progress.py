"""Progress as lines of text, for pipes and log files; and the pace of a stage, which the bars show too."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gebm_kit.core.progress import Progress


LINES_PER_STAGE = 20
"""Where stderr is no terminal, a stage of progress prints about that many lines."""


SECONDS_PER_LINE = 10
"""The same where it is not known how long the stage is."""


LINE_SCALARS = ("energy_loss", "base_loss", "kale", "log_partition", "acceptance", "divergences", "step_size")
"""Scalars that a line of progress shows, in this order; a run's metrics.jsonl has them all."""


class PlainProgress:
    """One line every N steps of a stage, N being about a twentieth of it."""

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
        """A number that grows by one where a line is due."""
        if report.total < 0:
            return int(pace.seconds // SECONDS_PER_LINE)
        return report.step // max(1, math.ceil(report.total / LINES_PER_STAGE))


class Pace:
    """Speed and time left of one stage, from the reports about it."""

    def __init__(self, report: Progress) -> None:
        self.first_step = report.step
        self.started = time.monotonic()
        self.step = report.step
        self.total = report.total
        self.last_line = -1
        self._scalars: dict[str, float] = {}

    def update(self, report: Progress) -> None:
        self.step, self.total = report.step, report.total
        if report.scalars:  # all of them: energy-only training no longer has a base_loss
            self._scalars = dict(report.scalars)

    def scalars(self, names: Sequence[str]) -> list[str]:
        """``loss 0.123``, ``kale 0.456``, for those of ``names`` that are known."""
        known = [name for name in names if name in self._scalars]
        return [f"{'loss' if name == 'energy_loss' else name} {self._scalars[name]:.4g}" for name in known]

    @property
    def seconds(self) -> float:
        """Since the first report."""
        return time.monotonic() - self.started

    @property
    def rate(self) -> float:
        """Steps a second since the first report; 0 before the second one."""
        seconds = self.seconds
        return (self.step - self.first_step) / seconds if seconds > 0 else 0.0

    def speed(self) -> str:
        return f"{self.rate:.3g} steps/s" if self.rate > 0 else ""

    def left(self) -> str:
        """Time left, or when there is none, the time it took; "" where that is not known."""
        if self.total < 0:
            return ""
        if self.step >= self.total:
            return f"in {duration(self.seconds)}"
        return f"{duration((self.total - self.step) / self.rate)} left" if self.rate > 0 else ""


def duration(seconds: float) -> str:
    """``45 s``, ``3 min 20 s``, ``2 h 05 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
