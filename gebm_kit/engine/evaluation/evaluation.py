"""Evaluation of a model: metrics of held-out data, base and GEBM, the paired ratio, KALE and the log-partition.

Protocol:

- The *reference* is the dataset's test part, unless another part is asked for.
- *base* and *gebm* are ``num_sets`` independent sets of ``num_samples`` draws each. Every set is scored against the same
  reference. The value is the mean over the sets, and the interval is Student's over the sets. The intervals are conditional
  on the reference rows: they cover the randomness of the draws, but not the sampling of the reference, which all columns
  share.
- *data*, the floor, is held-out data outside the reference, scored in the same way. With few held-out rows it is noisy, and
  not exactly what a perfect model would score.
- *ratio* is GEBM over base, paired: set k against set k, with the same reference and the same shuffles. The draws of the two
  are independent.
- *equilibrium* says whether the model's own law is good: see `gebm_kit.engine.evaluation.equilibrium`.
- A *budget* may cut sets and draws: see `gebm_kit.engine.evaluation.budget`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gebm_kit.core.errors import DataError
from gebm_kit.core.html import Shown, cell, interval
from gebm_kit.core.interfaces import Dataset, Metric, Sampler
from gebm_kit.core.model import GEBM
from gebm_kit.core.progress import OnProgress, ignore
from gebm_kit.engine.datasets.class_rows import InShares
from gebm_kit.engine.datasets.contract import check_dataset
from gebm_kit.engine.datasets.held_out import HeldOut
from gebm_kit.engine.evaluation.budget import Plan
from gebm_kit.engine.evaluation.calibration import Calibration
from gebm_kit.engine.evaluation.class_scores import ClassTask
from gebm_kit.engine.evaluation.data_rows import DataRows, data_rows
from gebm_kit.engine.evaluation.draw_sets import base_sets, gebm_sets, shared_by
from gebm_kit.engine.evaluation.equilibrium import GROUPS, LENGTHS, Equilibrium
from gebm_kit.engine.evaluation.intervals import Estimate
from gebm_kit.engine.evaluation.metrics import build_metrics, check_data_serves, metrics_of
from gebm_kit.engine.evaluation.score_table import check_rows
from gebm_kit.engine.evaluation.settings import BRIEF_SETS, EvaluationSettings
from gebm_kit.engine.evaluation.task import Scores, Task, diagnostics_of
from gebm_kit.engine.likelihood.model_fit import ModelFit
from gebm_kit.engine.likelihood.nll import check_space
from gebm_kit.engine.process.devices import placed
from gebm_kit.engine.process.distributed import ALONE, Ranks
from gebm_kit.engine.process.memory import require_memory
from gebm_kit.engine.run_directory.evaluation_html import evaluation_sections
from gebm_kit.engine.sampling.contract import check_contract
from gebm_kit.engine.sampling.diagnostics import Diagnostics
from gebm_kit.engine.sampling.settings import MOST, SampleSettings, require_whole, resolve_sampler, settings_of
from gebm_kit.engine.sampling.shards import row_bytes

if TYPE_CHECKING:
    from gebm_kit.config.schema import Recipe


OF_SCORES = ("metrics", "protocol", "fit", "equilibrium", "verdict", "budget")
"""Fields of `Evaluation` that are those of `Scores`."""


@dataclass(frozen=True, repr=False)
class Evaluation(Shown):
    """The result of an evaluation.

    Attributes:
        metrics: column (``data``, ``base``, ``gebm``, ``ratio``) -> value name -> estimate.
        protocol: metric -> what its values depend on.
        fit: KALE on training and held-out data, the log-partition and the likelihood.
        inverse_temperature: beta of the GEBM draws and of ``fit``.
        diagnostics: diagnostics of the GEBM's chains.
        calibration: the beta that fits the validation part best; None where there is none, and in a brief evaluation.
        data, base_draws, gebm_draws: the reference and the first set of each, (N, *D), for pictures.
        equilibrium: energies of model draws beside held-out data, and the first metric after 1x, 2x and 4x the chain length.
        verdict: a sentence for each metric by value name, and one for equilibrium.
        budget: the budget in seconds, the seconds that stages were estimated to take and took, and what was cut.
        classes: of a model with classes, by label: share, rows, draws, metrics, KALE and log-partition, as JSON; else None.
        classifier: of a model with classes, `gebm_kit.engine.evaluation.classification.Classification` as JSON; else None.
        labels: of a model with classes, the class of each row of ``data``, ``base`` (draws) and ``GEBM`` (draws), (N,) each.
        energies: energies of ``data``, ``base_draws`` and ``gebm_draws``, for pictures; None on other ranks.
    """

    metrics: dict[str, dict[str, Estimate]]
    protocol: dict[str, dict[str, Any]]
    fit: ModelFit
    inverse_temperature: float
    diagnostics: Diagnostics
    data: Tensor = field(repr=False)
    base_draws: Tensor = field(repr=False)
    gebm_draws: Tensor = field(repr=False)
    equilibrium: Equilibrium
    verdict: dict[str, str]
    budget: dict[str, Any]
    energies: dict[str, Tensor] | None = field(default=None, repr=False)
    calibration: Calibration | None = None
    classes: dict[str, Any] | None = None
    classifier: dict[str, Any] | None = None
    labels: dict[str, Tensor] | None = field(default=None, repr=False)

    def _summary(self) -> str:
        first = next(iter(self.metrics.get("gebm", {})), None)
        values = (
            ""
            if first is None
            else "".join(
                f", {column} {interval(e.value, e.low, e.high)}"
                for column, e in ((column, values[first]) for column, values in self.metrics.items() if first in values)
            )
        )
        return f"Evaluation({first or 'no metric'}{values}; log Z {cell(self.fit.log_partition.value)})"

    def _sections(self) -> Iterator[str]:
        return evaluation_sections(self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON of ``gebm-kit eval``."""
        return {
            "metrics": {
                column: {name: estimate.as_dict() for name, estimate in values.items()}
                for column, values in self.metrics.items()
            },
            "protocol": self.protocol,
            **self.fit.as_dict(),
            "inverse_temperature": self.inverse_temperature,
            "calibration": None if self.calibration is None else self.calibration.as_dict(),
            "diagnostics": self.diagnostics.as_dict(),
            "equilibrium": self.equilibrium.as_dict(),
            "verdict": self.verdict,
            "budget": self.budget,
            **({} if self.classes is None else {"classes": self.classes, "classifier": self.classifier}),
        }

    def scalars(self) -> dict[str, float]:
        """Return the values alone, for loggers: ``eval.gebm.frechet`` and so on."""
        flat = {
            f"eval.{column}.{name}": estimate.value
            for column, values in self.metrics.items()
            for name, estimate in values.items()
        }
        rest = self.fit.scalars() | self.equilibrium.scalars()
        if self.classifier is not None:
            rest["classifier.accuracy"] = self.classifier["accuracy"]["value"]
        return flat | {f"eval.{name}": value for name, value in rest.items()}


def score_recipe(
    model: GEBM,
    dataset: Dataset,
    recipe: Recipe,
    *,
    device: torch.device | str | None = None,
    brief: bool = False,
    training_seconds: float | None = None,
    checked: bool = False,
    on_progress: OnProgress = ignore,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Score a model as its recipe says.

    Args:
        training_seconds: time that the model was trained for, a third of which is the budget unless the recipe sets one.
        checked: whether model and sampler have been checked (`check_contract`), as training does.
        brief: for a look during training: at most `BRIEF_SETS` sets, A by importance sampling, no training data, and the
            validation part as the reference. Looks choose checkpoints, so they must not see the test part. Chains are not
            continued, and nothing is timed or cut.
    """
    settings = EvaluationSettings.of(recipe).budgeted(training_seconds)
    if brief:
        settings = replace(
            settings,
            num_sets=min(settings.num_sets, BRIEF_SETS),
            reference="valid",
            log_partition="importance-sampling",
            against_train=False,
            calibrate=False,
            continues=False,
            budget=None,
            timed=False,
        )
    return score(
        model,
        dataset,
        build_metrics(metrics_of(recipe, dataset)),
        resolve_sampler(None, recipe.sampler, model),
        replace(settings_of(recipe.sample), seed=recipe.eval.seed),
        settings,
        device=device,
        checked=checked,
        on_progress=on_progress,
        ranks=ranks,
    )


def score(
    model: GEBM,
    dataset: Dataset,
    metrics: Mapping[str, Metric],
    sampler: Sampler,
    sampling: SampleSettings,
    settings: EvaluationSettings,
    *,
    device: torch.device | str | None = None,
    checked: bool = False,
    on_progress: OnProgress = ignore,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Draw sets from base and GEBM and score them; see the protocol above.

    Several ranks share the drawing from the GEBM. The first rank computes the metrics while the others wait, and all ranks
    return the result.

    Args:
        sampling: chains, warm-up, thinning, beta and seed; its ``num_samples`` is not used.
        checked: as for `score_recipe`.

    Raises:
        UsageError: fewer than one set or two draws; a metric that needs what the dataset does not have.
        DataError: the data does not fit the model, or is not finite.
        RunFailed: draws that are not finite.
    """
    asked = Plan(settings.num_samples, settings.num_sets, LENGTHS[-1] if settings.continues else 1)
    rows = _checked_rows(model, dataset, metrics, settings)
    with placed(model, device) as (where, _):
        if not checked:
            check_contract(model, sampler, where)
        if model.conditional:
            by_class = (model, dataset, metrics, sampler, sampling, settings, rows, where, on_progress, ranks)
            return Evaluation(**ClassTask(*by_class).scored())
        task = Task(model, dataset, metrics, sampler, sampling, settings, rows, where, on_progress, ranks)
        plan = task.planner.planned(asked, sampling)
        quiet = on_progress if ranks.rank == 0 else ignore
        with task.ledger.stage("base"):
            base = base_sets(model, sampling, plan.num_samples, plan.num_sets, where, quiet)
            calibration, sampling = task.calibrated(base)
        plan = task.planner.planned_with_chains(asked, plan, sampling, task.pilot)
        base = task.base_within(plan, base)
        with task.ledger.stage("sampling"):
            gebm = gebm_sets(
                model, sampler, sampling, plan.num_samples, plan.num_sets, where, on_progress, ranks,
                keep_chains=plan.longest > 1, checked=True, pilot=task.pilot, bounds=task.planner.bounds(plan),
            )  # fmt: skip
        task.take_sampler(gebm)
        plan = task.planner.planned_again(plan, shared_by(gebm, min(GROUPS, len(gebm.sets))))
        longer = task.longer_sets(plan, gebm)
        with ranks.together():
            scores, energies = task.scored(plan, base, gebm, longer) if ranks.rank == 0 else (None, None)
            scores = Scores.from_first(scores, ranks)
    return Evaluation(
        **{name: getattr(scores, name) for name in OF_SCORES},
        inverse_temperature=sampling.inverse_temperature,
        diagnostics=diagnostics_of(gebm),
        data=rows.reference,
        base_draws=base.sets[0],
        gebm_draws=gebm.sets[0],
        energies=energies,
        calibration=calibration,
    )


def _checked_rows(
    model: GEBM, dataset: Dataset, metrics: Mapping[str, Metric], settings: EvaluationSettings
) -> DataRows:
    """Return the rows that draws are scored against, once request, data and metrics are known to fit together."""
    check_request(model, dataset, settings.num_samples, settings.num_sets)
    check_dataset(dataset, disjoint=not isinstance(dataset, HeldOut))
    check_space(dataset, settings.nll_space)
    check_data_serves(metrics, dataset, settings.features)
    weighted = settings.weighted and model.conditional
    rows = data_rows(InShares(dataset, model.class_weights) if weighted else dataset, metrics, settings)
    counts = {"draws": settings.num_samples, "reference rows": len(rows.reference), "held-out rows": len(rows.floor[0])}
    check_rows(metrics, counts)
    return rows


def check_request(model: GEBM, dataset: Dataset, num_samples: int, num_sets: int) -> None:
    """Raise UsageError for a number of draws, or DataError for data, that can't be scored."""
    for name, value, least in (("num_samples", num_samples, 2), ("num_sets", num_sets, 1)):
        require_whole(name, value, least, MOST)
    if tuple(dataset.data_shape) != tuple(model.data_shape):
        raise DataError(
            f"the data has shape {tuple(dataset.data_shape)}, the model makes {tuple(model.data_shape)}",
            hint="Evaluate the model on data like that it was trained on.",
        )
    size = num_samples * num_sets * row_bytes(model.data_shape, model.latent_dim, model.dtype)
    hint = "Score fewer draws: num_samples, num_sets (eval.num_samples, eval.num_sets on the command line)."
    require_memory(size, f"{num_sets:,} sets of {num_samples:,} draws", hint)
