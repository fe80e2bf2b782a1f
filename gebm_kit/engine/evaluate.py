"""Scoring a trained run, or any GEBM built by hand.

`gebm_kit.engine.evaluation.evaluation` states the protocol: what the columns, values and intervals mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gebm_kit.core.arguments import check_choice
from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Dataset, Metric, Sampler, SplitName
from gebm_kit.core.model import GEBM
from gebm_kit.core.progress import OnProgress
from gebm_kit.engine.evaluation.budget import check_budget
from gebm_kit.engine.evaluation.evaluation import Evaluation, score
from gebm_kit.engine.evaluation.metrics import build_metrics, metrics_of
from gebm_kit.engine.evaluation.settings import EvaluationSettings, with_given
from gebm_kit.engine.evaluation.subject import eval_section, opened, sampling_settings, training_seconds
from gebm_kit.engine.likelihood.estimate_log_partition import Method
from gebm_kit.engine.likelihood.nll import Space
from gebm_kit.engine.likelihood.row_sources import Rows
from gebm_kit.engine.process.distributed import joined_ranks
from gebm_kit.engine.process.progress_bar import check_progress, progress_shown
from gebm_kit.engine.process.torchrun import local_device
from gebm_kit.engine.run_directory.calibrated import Beta, is_calibrated
from gebm_kit.engine.sampling.settings import resolve_sampler

if TYPE_CHECKING:
    from gebm_kit.engine.run_directory.run import Run


def evaluate(
    run_or_model: Run | GEBM | str | Path,
    *,
    data: Rows | tuple[Rows, Any] | Dataset | None = None,
    labels: Any = None,
    metrics: Sequence[str | Mapping[str, Any] | Metric] | None = None,
    sampler: str | Mapping[str, Any] | Sampler | None = None,
    num_samples: int | None = None,
    num_sets: int | None = None,
    inverse_temperature: Beta | None = None,
    seed: int | None = None,
    device: torch.device | str | None = None,
    reference: SplitName = "test",
    log_partition: Method | None = None,
    nll_space: Space | None = None,
    budget: float | None = None,
    progress: bool | None = None,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Score a trained run, or any GEBM built by hand.

    Arguments that are None come from the run's recipe; for a hand-built model, from the defaults of recipes. The ranks of
    torchrun, or of the caller's process group, share the sampling: call it on all of them.

    Args:
        run_or_model: a run, the path of its directory, or a model.
        data: a dataset, or held-out rows, which alternate between reference and floor. None: the run's own data. A tensor or
            array (N, *D) holds rows as the model sees them: standardised, for a run whose dataset standardises. A data
            frame, or the path of a file, holds measurements like those in the run's file. A pair is (rows, labels).
        labels: of a model with classes, the class of each row of ``data``: indices or names, or the name of a data frame's
            column. None: the column that the run's own labels came from, if a data frame has it.
        metrics: names, nodes or metric objects. None: the recipe's, else frechet, mmd, sliced-wasserstein and, for data
            with known modes, modes.
        sampler: name, node or object; None: the recipe's, else auto.
        num_samples, num_sets: draws in each set, and sets.
        inverse_temperature: beta; ``calibrated``: the one that fits the validation part best, found first.
        seed: seed of the draws.
        reference, log_partition, nll_space: part to score against; keys ``eval.log_partition`` and ``nll.space``.
        budget: seconds that the evaluation may take. None: the recipe's, else a third of a run's training time, if any.
        progress: True: show progress; False: do not; None: on a terminal or in a notebook.
        on_progress: called with each `gebm_kit.core.progress.Progress`; nothing is shown then.

    Raises:
        UsageError, DataError: inconsistent arguments, no data for a hand-built model; data that do not fit the model.
        RecipeError, PluginError, CheckpointError: as for `gebm_kit.sample`.
    """
    check_progress(progress, on_progress)
    _check(metrics, reference, log_partition, nll_space, budget)
    recipe, model, dataset = opened(run_or_model, data, labels)
    calibrated = None if inverse_temperature is None else is_calibrated(inverse_temperature)
    beta, seed = None if calibrated else inverse_temperature, eval_section(recipe).seed if seed is None else seed
    sampling = with_given(sampling_settings(recipe), inverse_temperature=beta, seed=seed)
    settings = with_given(
        EvaluationSettings.of(recipe), num_samples=num_samples, num_sets=num_sets, reference=reference,
        log_partition=log_partition, nll_space=nll_space, budget=budget, calibrated=calibrated,
    ).budgeted(training_seconds(run_or_model))  # fmt: skip
    where = device if device is not None or recipe is None else recipe.device
    with joined_ranks(work="evaluation") as ranks, progress_shown(progress, on_progress) as report:
        return score(
            model,
            dataset,
            build_metrics(metrics_of(recipe, dataset) if metrics is None else metrics),
            resolve_sampler(sampler, None if recipe is None else recipe.sampler, model),
            sampling,
            settings,
            device=local_device(where),
            on_progress=report,
            ranks=ranks,
        )


def _check(metrics: object, reference: object, log_partition: object, nll_space: object, budget: object) -> None:
    """Raise UsageError for a choice that does not exist, or an argument of the wrong kind."""
    check_choice("reference", reference, ("train", "valid", "test"))
    check_choice("log_partition", log_partition, ("auto", "importance-sampling", "smc"))
    check_choice("nll_space", nll_space, ("standardised", "raw"))
    check_budget(budget)
    if isinstance(metrics, str):
        raise UsageError(f"metrics is a list of names, got one text: [{metrics!r}] is meant, it seems")
