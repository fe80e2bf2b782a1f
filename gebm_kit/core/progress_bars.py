"""Progress bars on a terminal, in a file of their own because rich is slow to import."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress as RichProgress, TaskID, TextColumn
from rich.table import Column

from gebm_kit.core.progress_lines import Pace

if TYPE_CHECKING:
    from gebm_kit.core.progress import Progress


BAR_SCALARS = ("energy_loss", "kale", "acceptance")
"""Scalars that a bar shows, fewer than `LINE_SCALARS`, so that it fits into 80 columns."""


class Bars:
    """One bar for each stage, with its scalars, steps per second and time left; removed when the work ends."""

    def __init__(self, console: Console) -> None:
        self._progress = RichProgress(
            TextColumn("{task.description:<8}", markup=False, table_column=Column(min_width=8, no_wrap=True)),
            TextColumn("{task.completed:.0f}/{task.total:.0f}", table_column=Column(min_width=9, no_wrap=True)),
            BarColumn(bar_width=10),
            TextColumn("{task.fields[detail]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=console,
            transient=True,
            redirect_stdout=sys.stdout is not None
            and sys.stdout.isatty(),  # else what a model prints would go to the bar's console, stderr
        )
        self._tasks: dict[str, tuple[TaskID, Pace]] = {}

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, report: Progress) -> None:
        task, pace = self._tasks.get(report.stage, (None, None))
        if task is None:
            task = self._progress.add_task(report.stage, total=report.total, detail="")
        if pace is None or report.step < pace.step:
            pace = Pace(report)
            self._tasks[report.stage] = task, pace
        pace.update(report)
        detail = "  ".join(part for part in [*pace.scalars(BAR_SCALARS), pace.speed(), pace.left()] if part)
        within = report.stage != next(iter(self._tasks))  # such as sampling for an evaluation during training
        visible = not (within and 0 <= report.total <= report.step)
        total = report.total if report.total >= 0 else report.step + 1  # -1: unknown
        self._progress.update(task, completed=report.step, total=total, detail=detail, visible=visible)
