"""The subject of an evaluation: a run or a model built by hand, its data, and its recipe's settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from gebm_kit.core.errors import UsageError, nearest
from gebm_kit.core.frames import frame_names, is_frame
from gebm_kit.core.given_rows import check_precision
from gebm_kit.core.interfaces import Dataset
from gebm_kit.core.model import GEBM
from gebm_kit.engine.datasets.given_rows import label_texts
from gebm_kit.engine.datasets.held_out import HeldOut, LabelledHeldOut
from gebm_kit.engine.likelihood.class_densities import labels_of_rows
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


def opened(
    run_or_model: Run | GEBM | str | Path, data: Rows | tuple[Rows, Any] | Dataset | None, labels: Any = None
) -> tuple[Recipe | None, GEBM, Dataset]:
    """Return the recipe (None for a hand-built model), the model, and the data to score against.

    Args:
        labels: the classes of ``data``, see `gebm_kit.evaluate`.

    Raises:
        UsageError: neither a run nor a model, data of another type, a model without data, or labels that do not fit.
        DataError: rows that do not fit the model, or a file that can't be read.
        CheckpointError: the path is not a run directory with a usable checkpoint.
    """
    from gebm_kit.engine.run_directory.run import Run, subject_of

    subject = subject_of(run_or_model)
    model = subject.model if isinstance(subject, Run) else subject
    if labels is not None and (data is None or isinstance(data, Dataset)):
        raise UsageError("labels are the classes of rows in data; a dataset has its own, so leave labels out")
    if data is not None and not isinstance(data, Dataset):
        if isinstance(data, tuple):
            data, labels = _pair(data, labels)
        rows, names = as_seen(data, "data", subject if isinstance(subject, Run) else None, model, or_else="a Dataset")
        check_precision(rows, model.dtype, names, "the data")
        known = subject.recipe.data.parameters.get("labels") if isinstance(subject, Run) else None
        classes = _classes(model, data, len(rows) if rows.ndim else 0, labels, known)
        data = HeldOut(rows) if classes is None else LabelledHeldOut(rows, classes, model.num_classes or 0)
    if isinstance(subject, Run):
        return subject.recipe, subject.model, subject.dataset if data is None else data
    if data is None:
        raise UsageError("a model built by hand comes without data: give evaluate(model, data=...) held-out rows")
    return None, subject, data


def _pair(data: tuple[Any, ...], labels: Any) -> tuple[Any, Any]:
    """Return the rows and the labels of a pair."""
    if len(data) != 2:
        raise UsageError(f"data is a tuple of {len(data)}; a pair (rows, labels) is allowed")
    if labels is not None:
        raise UsageError("data is a pair (rows, labels), and labels is given too; give one of them")
    return data


def _classes(model: GEBM, data: Any, num_rows: int, labels: Any, known: Any) -> Tensor | None:
    """Return the class of each row, (N,) int64; None where it is not given.

    Args:
        labels: the caller's; text names a column of a data frame.
        known: the column of classes of the run's own data, which is taken if a data frame has it.
    """
    names = frame_names(data) if is_frame(data) else ()
    if labels is None and model.num_classes is not None and known in names:
        labels = known
    if not isinstance(labels, str):
        return labels_of_rows(model, labels, num_rows)
    if labels not in names:
        what = f"has no such column; {nearest(labels, names)}" if names else "is not a data frame, so it has no columns"
        raise UsageError(f"labels={labels!r} names a column, and data {what}")
    texts = label_texts(np.asarray(data[list(data.columns)[names.index(labels)]]), num_rows, f"data, column {labels!r}")
    called = model.class_names or ()
    return labels_of_rows(model, [t if t in called or not t.isdecimal() else int(t) for t in texts], num_rows)
