"""Writing the page about a run into its directory, or elsewhere."""

from __future__ import annotations

import logging
import os
import warnings
from dataclasses import replace
from pathlib import Path

import torch

from gebm_kit.core.errors import GebmKitError
from gebm_kit.core.files import make_directory, write_atomic
from gebm_kit.core.progress import NOTES, warn
from gebm_kit.engine.evaluation.comparison import Comparison
from gebm_kit.engine.reporting.comparison_page import comparison_page
from gebm_kit.engine.reporting.facts import facts_of
from gebm_kit.engine.reporting.material import gather
from gebm_kit.engine.reporting.render import html_of
from gebm_kit.engine.reporting.run_page import run_page
from gebm_kit.engine.run_directory.run import Run
from gebm_kit.engine.run_directory.run_files import EVALUATION

FILE = "report.html"
"""Name of the report in the run directory."""

SWITCH = "GEBM_KIT_REPORT"
"""Environment variable: 0 keeps training and evaluation from writing a report."""


def write_run_report(run: Run, out: Path | None = None, device: str | torch.device | None = None) -> Path:
    """Write the page about a run, whatever its state; return its path.

    Args:
        out: the file; None: ``report.html`` in the run directory.
        device: where the few draws of the page are made; None: the recipe's device.

    Raises:
        CheckpointError: the run directory is gone.
        UsageError, RunFailed: the file can't be written.
    """
    facts = facts_of(run.path)
    with _quiet():
        material = gather(run, facts.record.evaluation, device)
        page = html_of(run_page(facts, material))
    path = run.path / FILE if out is None else out
    if out is not None:
        make_directory(path.parent)
    write_atomic(path, page.encode(errors="replace"))
    return path


def write_comparison_report(comparison: Comparison, out: Path) -> Path:
    """Write the page about several runs; return its path.

    Raises:
        UsageError, RunFailed: the file can't be written.
    """
    page = html_of(comparison_page(comparison))
    make_directory(out.parent)
    write_atomic(out, page.encode(errors="replace"))
    return out


def written_at_the_end(run: Run, device: str | torch.device | None = None) -> Path | None:
    """Write the report at the end of training or of an evaluation; None if it is switched off or can't be written.

    A report never costs a run: whatever goes wrong is a warning.
    """
    if os.environ.get(SWITCH) == "0":
        return None
    try:
        return write_run_report(run, device=device)
    except GebmKitError as error:
        reason = error.message
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    warn(f"no report was written: {reason}. `gebm-kit report {run.path}` tries again.")
    return None


def written_if_due(run: Run, device: str | torch.device | None) -> None:
    """Do as `written_at_the_end` if the run's report is missing, or older than its evaluation."""
    try:
        due = (run.path / FILE).stat().st_mtime < (run.path / EVALUATION).stat().st_mtime
    except OSError:
        due = True
    if due:  # a copy of the run: the caller's does not keep the model that is read for the page
        written_at_the_end(replace(run), device)


class _quiet:
    """Leave out notes and warnings of models and data that are opened for a page; the page says what is missing."""

    def __enter__(self) -> None:
        self._level, self._caught = NOTES.level, warnings.catch_warnings()
        NOTES.setLevel(logging.CRITICAL)
        self._caught.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, *failure: object) -> None:
        self._caught.__exit__(None, None, None)
        NOTES.setLevel(self._level)
