"""The files of an evaluation in its run directory: evaluation.json and the pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gebm_kit.core.files import make_directory, write_json
from gebm_kit.core.progress import warn
from gebm_kit.core.seeds import stream
from gebm_kit.engine.evaluation.kept_draws import keep_draws
from gebm_kit.engine.figures.class_figures import class_bars, class_grid
from gebm_kit.engine.figures.run_figures import OfTable, draw_all
from gebm_kit.engine.run_directory.facts import units_of
from gebm_kit.engine.run_directory.run import remove_leftovers

if TYPE_CHECKING:
    from gebm_kit.core.interfaces import Dataset
    from gebm_kit.core.model import GEBM
    from gebm_kit.engine.evaluation.evaluation import Evaluation
    from gebm_kit.engine.run_directory.run import Run


def write_report(run: Run, evaluation: Evaluation) -> list[Path]:
    """Write ``evaluation.json`` and ``figures/`` in place of an earlier evaluation's, and return the pictures' paths.

    Raises:
        UsageError: the run directory can't be written.
        RunFailed: the disk is full.
    """
    remove_leftovers(run)
    pictures = write_pictures(run.figures, run.model, run.dataset, evaluation, run.rows_to_draw(), tables=True)
    checkpoint = run.checkpoint.path.name
    try:
        keep_draws(run.figures, evaluation, _mixed(evaluation), checkpoint, run.dataset.value_range)
    except (ValueError, IndexError, RuntimeError) as error:  # the report draws again; the evaluation is not lost for it
        warn(f"no draws were kept for the report: {type(error).__name__}: {error}")
    of = {"schema": 1, "checkpoint": checkpoint}
    write_json(run.outputs / "evaluation.json", {**of, **evaluation.as_dict()})
    return pictures


def write_pictures(
    folder: Path,
    model: GEBM,
    dataset: Dataset,
    evaluation: Evaluation,
    rows: Sequence[Mapping[str, Any]],
    *,
    tables: bool = False,
) -> list[Path]:
    """Draw every picture that suits the data into ``folder``.

    Args:
        rows: rows of metrics.jsonl.
        tables: whether those of a table are drawn too, which take a few seconds: at the end, not at every look.
    """
    make_directory(folder)
    mixed = _mixed(evaluation)
    labels = evaluation.labels
    paths = draw_all(
        folder,
        model=model,
        data=evaluation.data[mixed],
        base=evaluation.base_draws,
        gebm=evaluation.gebm_draws,
        value_range=dataset.value_range,
        rows=rows,
        energies=evaluation.energies,
        labels=None if labels is None else labels["data"][mixed],
        table=_of_table(model, dataset, evaluation) if tables else None,
    )
    if labels is not None and len(model.data_shape) == 3 and model.num_classes is not None:
        images = {"data": evaluation.data[mixed], "base": evaluation.base_draws, "GEBM": evaluation.gebm_draws}
        of_images = {**labels, "data": labels["data"][mixed]}
        path = folder / "samples.png"
        paths.insert(0, class_grid(path, images, of_images, model.num_classes, dataset.value_range, model.class_names))
    if evaluation.classes is None:
        return paths
    law = None if evaluation.classifier is None else evaluation.classifier["law"]
    bars = class_bars(folder / "classes.png", evaluation.classes, law)
    return paths if bars is None else [*paths, bars]


def _mixed(evaluation: Evaluation) -> Tensor:
    """Return an order of the data in which classes are mixed: a split may come sorted by class."""
    return torch.randperm(len(evaluation.data), generator=stream(0, "pictures"))


def _of_table(model: GEBM, dataset: Dataset, evaluation: Evaluation) -> OfTable | None:
    """Return what pictures of a table need; None for other data, such as points in the plane without names."""
    units = units_of(dataset)
    if len(model.data_shape) != 1 or (units is None and model.data_shape == (2,)):
        return None
    return OfTable(units, evaluation.inverse_temperature)
