"""Progress bars in a notebook: one HTML output that is updated, which needs no widgets."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from gebm_kit.core.html import escaped
from gebm_kit.core.progress_lines import Pace

if TYPE_CHECKING:
    from gebm_kit.core.progress import Progress

SECONDS_PER_UPDATE = 0.25
"""Least time between two updates of the output, each of which is a message to the browser."""

NOTEBOOK_SCALARS = ("energy_loss", "kale", "acceptance")
"""Scalars that a bar shows."""


def in_notebook() -> bool:
    """Return whether this process runs the cells of a notebook, whose output is HTML."""
    ipython: Any = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


class NotebookBars:
    """One bar for each stage, in one output of the cell; a line with the stages' times stays when the work is done."""

    def __init__(self) -> None:
        self._stages: dict[str, tuple[Progress, Pace]] = {}
        self._handle: Any = None
        self._updated = -1.0

    def __enter__(self) -> NotebookBars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            self._show(done=True)

    def __call__(self, report: Progress) -> None:
        _, pace = self._stages.get(report.stage, (None, None))
        if pace is None or report.step < pace.step:
            pace = Pace(report)
        pace.update(report)
        self._stages[report.stage] = report, pace
        now = time.monotonic()
        if self._handle is None or now - self._updated >= SECONDS_PER_UPDATE:
            self._updated = now
            self._show()

    def _show(self, *, done: bool = False) -> None:
        display: Any = importlib.import_module("IPython.display")
        content = display.HTML(_finished(self._stages) if done else "".join(map(_bar, self._stages.values())))
        if self._handle is None:
            self._handle = display.display(content, display_id=True)
        else:
            self._handle.update(content)


def _bar(stage: tuple[Progress, Pace]) -> str:
    report, pace = stage
    known = report.total > 0
    share = f' value="{min(report.step, report.total)}" max="{report.total}"' if known else ""
    steps = f"{report.step:,}/{report.total:,}" if known else f"{report.step:,}"
    details = [steps, *pace.scalars(NOTEBOOK_SCALARS), pace.speed(), pace.left()]
    text = escaped("  ".join(detail for detail in details if detail))
    return (
        f'<div style="font-family:monospace;white-space:pre">{escaped(report.stage):<10} '
        f'<progress{share} style="width:14em;vertical-align:middle"></progress> {text}</div>'
    )


def _finished(stages: Mapping[str, tuple[Progress, Pace]]) -> str:
    parts = [
        f"{report.stage} {report.step:,}" + (f"/{report.total:,} {pace.left()}" if report.total >= 0 else "")
        for report, pace in stages.values()
    ]
    return f'<div style="font-family:monospace;opacity:.7">{escaped("; ".join(parts))}</div>'
