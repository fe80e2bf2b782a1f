"""Choosing the inverse temperature of a model by the recipe's first metric against the validation part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Dataset
from gebm_kit.core.model import GEBM
from gebm_kit.core.progress import OnProgress, ignore
from gebm_kit.core.seeds import stream
from gebm_kit.engine.datasets.held_out import evenly_spaced_rows
from gebm_kit.engine.evaluation.data_rows import train_rows
from gebm_kit.engine.evaluation.draw_sets import base_sets, gebm_sets
from gebm_kit.engine.evaluation.feature_maps import FeatureMaps, FeatureSettings
from gebm_kit.engine.evaluation.metrics import build_metrics, metrics_of
from gebm_kit.engine.evaluation.score_table import Scorer
from gebm_kit.engine.figures.run_figures import GRID_SIDE
from gebm_kit.engine.process.devices import placed
from gebm_kit.engine.sampling.settings import resolve_sampler, settings_of

if TYPE_CHECKING:
    from gebm_kit.config.schema import Recipe


BETAS = (1.0, 2.0, 3.0, 5.0, 8.0)
"""Inverse temperatures that are tried: from the model's own on, each about 1.6 times the one before."""


CHOICE_SETS = 2
"""Number of draw sets at each beta: the mean of two halves the variance of the metric, at twice the cost."""


# --- before and after ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Trial:
    """Result at one beta: the metric's mean over the draw sets, on the validation part, and some draws for a picture."""

    inverse_temperature: float
    value: float
    draws: Tensor = field(repr=False)

    def as_dict(self) -> dict[str, float]:
        return {"inverse_temperature": self.inverse_temperature, "value": self.value}


@dataclass(frozen=True)
class Choice:
    """The chosen beta, and what it was chosen from.

    Attributes:
        name: name of the value that decided.
        trials: one result for every beta that was tried, in order.
        best: the trial of the chosen beta.
        base: the same value for the base's own draws.
        base_draws: some of the base's draws.
    """

    name: str
    trials: tuple[Trial, ...]
    best: Trial
    base: float
    base_draws: Tensor = field(repr=False)


def choose_beta(
    model: GEBM,
    dataset: Dataset,
    recipe: Recipe,
    betas: Sequence[float] | None = None,
    *,
    device: torch.device | str | None = None,
    on_progress: OnProgress = ignore,
) -> Choice:
    """Choose the best of ``betas`` (None: `BETAS`) by the first metric, on the validation part.

    They are tried in turn until one is worse than the one before.

    Raises:
        UsageError: the metric has no better and worse, or does not judge draws.
    """
    name, metric = next(iter(build_metrics(metrics_of(recipe, dataset)).items()))
    if metric.of_model or metric.lower_is_better is None:
        raise UsageError(
            f"beta is chosen by the first metric, but {name!r} can't tell better draws from worse",
            hint="Put another metric first in eval.metrics, or set sample.inverse_temperature yourself.",
        )
    sign = 1.0 if metric.lower_is_better else -1.0
    sampler = resolve_sampler(None, recipe.sampler, model)
    seed = stream(recipe.eval.seed, "choice of beta").initial_seed()
    settings, num = replace(settings_of(recipe.sample), seed=seed), recipe.eval.num_samples
    valid = evenly_spaced_rows(dataset.split("valid"), "valid data", recipe.eval.num_reference)
    train = train_rows(dataset, recipe.eval.num_reference) if metric.needs_train else None
    with placed(model, device) as (where, _):
        place = where if where.type == "cuda" else torch.device("cpu")
        rows, train = valid.to(place), None if train is None else train.to(place)
        constant = [rows] if train is None else [rows, train]
        maps = FeatureMaps(dataset, where, FeatureSettings.of(recipe), constant, on_progress)
        scorer = Scorer(model, dataset, rows, maps, seed, train, against_train=False)

        def mean(sets: Sequence[Tensor]) -> tuple[str, float]:
            values = [metric(scorer.context(name, samples.to(place), index)) for index, samples in enumerate(sets)]
            key = next(iter(values[0]))
            return key, fmean(value[key] for value in values)

        before = base_sets(model, settings, num, CHOICE_SETS, where, on_progress).sets
        key, base = mean(before)
        trials: list[Trial] = []
        for beta in betas or BETAS:
            at = replace(settings, inverse_temperature=beta)
            sets = gebm_sets(model, sampler, at, num, CHOICE_SETS, where, on_progress).sets
            trials.append(Trial(beta, mean(sets)[1], sets[0][: GRID_SIDE**2]))
            if len(trials) > 1 and sign * trials[-1].value > sign * trials[-2].value:
                break
    best = min(trials, key=lambda trial: sign * trial.value)
    return Choice(key, tuple(trials), best, base, before[0][: GRID_SIDE**2])
