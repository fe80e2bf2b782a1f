"""Progress as lines of text, for pipes and log files, and the pace of a stage, which progress bars also show."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from gebm_kit.core.progress import Progress


LINES_PER_STAGE = 20
"""Approximate number of progress lines in each stage, where stderr is not a terminal."""


SECONDS_PER_LINE = 10
"""Most time between lines, except in training."""


BRIEF_STAGES = ("base", "calibrate", "rows", "log Z", "ladder")
"""Stages that usually take a second and have lines only if they take longer."""


LINE_SCALARS = ("energy_loss", "base_loss", "kale", "log_partition", "acceptance", "divergences", "step_size")
"""Scalars that a line of progress shows, in this order; a run's metrics.jsonl has them all."""


class PlainProgress:
    """One line every N steps of a stage, where N is about a twentieth of its length.

    Stages other than training have a line every `SECONDS_PER_LINE` too. Within its ``with`` block a line also tells when
    nothing has been reported for that long.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say_line = say
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._watch: threading.Thread | None = None
        self._latest: Progress | None = None
        self._said = time.monotonic()
        self._stages: dict[str, Pace] = {}
        self._printed: dict[str, int] = {}

    def __enter__(self) -> Self:
        self._watch = threading.Thread(target=self._tell_that_it_works, name="gebm-kit-progress", daemon=True)
        self._watch.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        if self._watch is not None:
            self._watch.join()

    def _tell_that_it_works(self) -> None:
        while not self._end.wait(1.0):
            report = self._latest
            if not _is_training(report) and time.monotonic() - self._said >= SECONDS_PER_LINE - 2:
                after = "" if report is None else f" after {report.stage} {report.step}"
                self._say(f"still at work{after}")

    def _say(self, line: str) -> None:
        with self._lock:
            self._said = time.monotonic()
            self._say_line(line)

    def __call__(self, report: Progress) -> None:
        self._latest = report
        pace = self._stages.get(report.stage)
        if pace is None or report.step < pace.step:
            pace = self._stages[report.stage] = Pace(report)
            self._printed[report.stage] = self._mark(report, pace)
        pace.update(report)
        mark, done = self._mark(report, pace), 0 <= report.total <= report.step
        late = time.monotonic() - self._said >= SECONDS_PER_LINE - 2 and report.total >= 0 and not _is_training(report)
        brief = report.stage in BRIEF_STAGES and pace.last_line < 0
        regular = mark > self._printed[report.stage] or (done and pace.last_line < report.step)
        if late or (regular and not brief):
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


def _is_training(report: Progress | None) -> bool:
    """Return whether training is under way, whose lines come every N steps however long these take."""
    return report is not None and report.stage == "train" and report.step < report.total


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


def is_terminal(stream: TextIO) -> bool:
    """Return whether ``stream`` is a terminal that can draw tables and bars."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"
