"""Reports: one HTML page about a run that opens from disk without network."""

from __future__ import annotations

from pathlib import Path

import torch

from gebm_kit.core.arguments import check_path
from gebm_kit.core.paths import HTML_ENDINGS, check_ending, user_path
from gebm_kit.engine.reporting.tilt_page import is_tilt
from gebm_kit.engine.reporting.write import write_run_report, write_tilt_report
from gebm_kit.engine.run_directory.run import Run, open_run


def report(run: Run | str | Path, out: str | Path | None = None, *, device: torch.device | str | None = None) -> Path:
    """Write a report about a run, whatever its state: one HTML file that asks for nothing from a network.

    Nothing is evaluated for it. What needs an evaluation, the model or the data says so where they are missing.

    >>> gk.report("runs/quickstart/20260101T000000Z-abcdef")  # doctest: +SKIP

    Args:
        run: a run or the path of its directory, or the directory that `gebm_kit.tilt` wrote. A run of `gebm_kit.fit` on your
            own objects comes from ``gk.load_run(path, base=..., energy=..., data=...)``; from its path alone, draws are
            left out.
        out: the file to write, which is replaced; None: ``report.html`` in the run directory.
        device: where a few dozen draws are made; None: the recipe's device.

    Returns:
        The path of the file.

    Raises:
        UsageError: ``out`` can't be written.
        CheckpointError: ``run`` is not a run directory.
        RunFailed: the disk is full.
    """
    path = None if out is None else _html(out)
    if isinstance(run, Run):
        return write_run_report(run, path, device)
    check_path("a run", run)
    place = user_path(run, what="the run")
    if is_tilt(place):
        return write_tilt_report(place, path)
    return write_run_report(open_run(place), path, device)


def _html(out: str | Path) -> Path:
    check_path("out", out)
    path = user_path(out, what="out")
    check_ending(path, HTML_ENDINGS, "a report is an HTML file", "For example report.html.")
    return path
