"""An evaluation of a run, kept in its directory: evaluation.json and the pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gebm_kit.engine.figures import draw_all
from gebm_kit.engine.files import make_directory, write_json

if TYPE_CHECKING:
    from gebm_kit.engine.evaluate import Evaluation
    from gebm_kit.engine.run import Run


def write_report(run: Run, evaluation: Evaluation) -> list[Path]:
    """Write ``evaluation.json`` and ``figures/``, replacing those of an earlier evaluation; returns the pictures' paths.

    Raises:
        UsageError: the run directory can't be written.
        RunFailed: the disk is full.
    """
    make_directory(run.figures)
    pictures = draw_all(
        run.figures,
        model=run.model,
        data=evaluation.data,
        base=evaluation.base_draws,
        gebm=evaluation.gebm_draws,
        value_range=run.dataset.value_range,
        rows=run.metrics(),
    )
    write_json(run.path / "evaluation.json", {"schema": 1, **evaluation.as_dict()})
    return pictures
