"""The subject of an evaluation: a run or a model built by hand, its data, and its recipe's settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gebm_kit.core.errors import UsageError
from gebm_kit.core.given_rows import check_precision
from gebm_kit.core.interfaces import Dataset
from gebm_kit.core.model import GEBM
from gebm_kit.engine.datasets.held_out import HeldOut
from gebm_kit.engine.likelihood.row_sources import Rows, as_seen
from gebm_kit.engine.sampling.settings import SampleSettings, settings_of

if TYPE_CHECKING:
    from gebm_kit.config.schema import EvalSection, Recipe
    from gebm_kit.engine.run_directory.run import Run


def eval_section(recipe: Recipe | None) -> EvalSection:
    """Return the recipe's ``eval`` section, or its defaults."""
    from gebm_kit.config.schema import EvalSection

    return EvalSection() if recipe is None else recipe.eval


def sampling_settings(recipe: Recipe | None) -> SampleSettings:
    """Return the settings of the recipe's ``sample`` section, or the defaults."""
    return SampleSettings() if recipe is None else settings_of(recipe.sample)


def training_seconds(run_or_model: Run | GEBM | str | Path) -> float | None:
    """Return how long a run was trained, in seconds; None for a model built by hand, or where it is not known."""
    from gebm_kit.engine.run_directory.run import Run, subject_of

    subject = subject_of(run_or_model)
    return subject.training_seconds if isinstance(subject, Run) else None


def opened(run_or_model: Run | GEBM | str | Path, data: Rows | Dataset | None) -> tuple[Recipe | None, GEBM, Dataset]:
    """Return the recipe (None for a hand-built model), the model, and the data to score against.

    Raises:
        UsageError: neither a run nor a model, data of another type, or a model without data.
        DataError: rows that do not fit the model, or a file that can't be read.
        CheckpointError: the path is not a run directory with a usable checkpoint.
    """
    from gebm_kit.engine.run_directory.run import Run, subject_of

    subject = subject_of(run_or_model)
    model = subject.model if isinstance(subject, Run) else subject
    if data is not None and not isinstance(data, Dataset):
        rows, names = as_seen(data, "data", subject if isinstance(subject, Run) else None, model, or_else="a Dataset")
        check_precision(rows, model.dtype, names, "the data")
        data = HeldOut(rows)
    if isinstance(subject, Run):
        return subject.recipe, subject.model, subject.dataset if data is None else data
    if data is None:
        raise UsageError("a model built by hand comes without data: give evaluate(model, data=...) held-out rows")
    return None, subject, data
