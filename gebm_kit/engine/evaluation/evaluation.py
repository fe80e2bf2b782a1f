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
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gebm_kit.core.errors import DataError
from gebm_kit.core.interfaces import Dataset, Metric, Sampler, Split
from gebm_kit.core.model import GEBM
from gebm_kit.core.progress import OnProgress, ignore
from gebm_kit.engine.datasets.contract import check_dataset
from gebm_kit.engine.datasets.held_out import HeldOut, evenly_spaced_rows, floor_sets
from gebm_kit.engine.evaluation.draw_sets import DrawSets, base_sets, gebm_sets
from gebm_kit.engine.evaluation.feature_maps import FeatureMaps, FeatureSettings
from gebm_kit.engine.evaluation.intervals import Estimate
from gebm_kit.engine.evaluation.metrics import build_metrics, check_data_serves, metrics_of
from gebm_kit.engine.evaluation.score_table import Scorer, check_rows, score_table
from gebm_kit.engine.evaluation.settings import BRIEF_SETS, FLOOR_PART, EvaluationSettings
from gebm_kit.engine.likelihood.log_partition import LogPartition
from gebm_kit.engine.likelihood.model_fit import ModelDraws, ModelFit, model_fit
from gebm_kit.engine.likelihood.nll import Likelihood, check_space, log_det_of
from gebm_kit.engine.process.devices import placed
from gebm_kit.engine.process.distributed import ALONE, Ranks
from gebm_kit.engine.process.memory import require_memory
from gebm_kit.engine.sampling.contract import check_contract
from gebm_kit.engine.sampling.diagnostics import Diagnostics
from gebm_kit.engine.sampling.settings import MOST, SampleSettings, require_whole, resolve_sampler, settings_of
from gebm_kit.engine.sampling.shards import row_bytes

if TYPE_CHECKING:
    from gebm_kit.config.schema import Recipe


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        metrics: column (``data``, ``base``, ``gebm``, ``ratio``) -> value name -> estimate.
        protocol: metric -> what its values depend on.
        fit: KALE on training and held-out data, the log-partition and the likelihood.
        inverse_temperature: beta of the GEBM draws and of ``fit``.
        diagnostics: diagnostics of the GEBM's chains.
        data, base_draws, gebm_draws: the reference and the first set of each, (N, *D), for pictures.
    """

    metrics: dict[str, dict[str, Estimate]]
    protocol: dict[str, dict[str, Any]]
    fit: ModelFit
    inverse_temperature: float
    diagnostics: Diagnostics
    data: Tensor = field(repr=False)
    base_draws: Tensor = field(repr=False)
    gebm_draws: Tensor = field(repr=False)

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
            "diagnostics": self.diagnostics.as_dict(),
        }

    def scalars(self) -> dict[str, float]:
        """Return the values alone, for loggers: ``eval.gebm.frechet`` and so on."""
        flat = {
            f"eval.{column}.{name}": estimate.value
            for column, values in self.metrics.items()
            for name, estimate in values.items()
        }
        return flat | {f"eval.{name}": value for name, value in self.fit.scalars().items()}


def score_recipe(
    model: GEBM,
    dataset: Dataset,
    recipe: Recipe,
    *,
    device: torch.device | str | None = None,
    brief: bool = False,
    on_progress: OnProgress = ignore,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Score a model as its recipe says.

    Args:
        brief: for a look during training: at most `BRIEF_SETS` sets, A by importance sampling, no training data, and the
            validation part as the reference. Looks choose checkpoints, so they must not see the test part.
    """
    settings = EvaluationSettings.of(recipe)
    if brief:
        settings = replace(
            settings,
            num_sets=min(settings.num_sets, BRIEF_SETS),
            reference="valid",
            log_partition="importance-sampling",
            against_train=False,
        )
    return score(
        model,
        dataset,
        build_metrics(metrics_of(recipe, dataset)),
        resolve_sampler(None, recipe.sampler, model),
        replace(settings_of(recipe.sample), seed=recipe.eval.seed),
        settings,
        device=device,
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
    on_progress: OnProgress = ignore,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Draw sets from base and GEBM and score them; see the protocol above.

    Several ranks share the drawing from the GEBM. The first rank computes the metrics while the others wait, and all ranks
    return the result.

    Args:
        sampling: chains, warm-up, thinning, beta and seed; its ``num_samples`` is not used.

    Raises:
        UsageError: fewer than one set or two draws; a metric that needs what the dataset does not have.
        DataError: the data does not fit the model, or is not finite.
        RunFailed: draws that are not finite.
    """
    num_samples, num_sets = settings.num_samples, settings.num_sets
    check_request(model, dataset, num_samples, num_sets)
    check_dataset(dataset, disjoint=not isinstance(dataset, HeldOut))
    check_space(dataset, settings.nll_space)
    check_data_serves(metrics, dataset, settings.features)
    rows = _data_rows(dataset, metrics, settings)
    check_rows(
        metrics, {"draws": num_samples, "reference rows": len(rows.reference), "held-out rows": len(rows.floor[0])}
    )
    with placed(model, device) as (where, _):
        check_contract(model, sampler, where)
        base = base_sets(model, sampling, num_samples, num_sets, where, on_progress if ranks.rank == 0 else ignore)
        gebm = gebm_sets(model, sampler, sampling, num_samples, num_sets, where, on_progress, ranks)
        scorer, columns = _ready_to_score(model, dataset, rows, base, gebm, settings.features, sampling.seed, where)
        with ranks.together():
            scores = None
            sampler = gebm.sampler or sampler  # the one that a directive settled on
            if ranks.rank == 0:
                draws = None if sampler.family == "refiner" else ModelDraws(gebm.sets, _worth(sampler, gebm))
                fit = _fit(model, dataset, rows.reference, draws, sampling, settings, where, on_progress)
                scores = Scores(*score_table(metrics, columns, scorer, on_progress), fit)
            scores = Scores.from_first(scores, ranks)
    for entry in scores.protocol.values():
        entry["reference_part"], entry["held_out_part"] = settings.reference, FLOOR_PART[settings.reference]
    return Evaluation(
        metrics=scores.metrics,
        protocol=scores.protocol,
        fit=scores.fit,
        inverse_temperature=sampling.inverse_temperature,
        diagnostics=_diagnostics(gebm),
        data=rows.reference,
        base_draws=base.sets[0],
        gebm_draws=gebm.sets[0],
    )


@dataclass(frozen=True)
class _DataRows:
    """Rows of the dataset, (N, *D) on the CPU: the reference, training data or None, and the floor's sets."""

    reference: Tensor
    train: Tensor | None
    floor: list[Tensor]


def _data_rows(dataset: Dataset, metrics: Mapping[str, Metric], settings: EvaluationSettings) -> _DataRows:
    """Read the rows that draws are scored against, and the held-out rows of the floor."""
    part, floor_part = settings.reference, FLOOR_PART[settings.reference]
    reference = evenly_spaced_rows(dataset.split(part), f"{part} data", settings.num_reference)
    train, train_split = None, _train_split(dataset)
    if settings.against_train and train_split is not None and any(m.against_train for m in metrics.values()):
        train = evenly_spaced_rows(train_split, "train data", settings.num_reference)
    held_out = evenly_spaced_rows(dataset.split(floor_part), f"{floor_part} data")
    return _DataRows(reference, train, floor_sets(held_out, settings.num_samples, settings.num_sets))


def _train_split(dataset: Dataset) -> Split | None:
    """Return the training part; None for held-out rows that came without one."""
    return None if isinstance(dataset, HeldOut) else dataset.split("train")


def _ready_to_score(
    model: GEBM,
    dataset: Dataset,
    rows: _DataRows,
    base: DrawSets,
    gebm: DrawSets,
    features: FeatureSettings,
    seed: int,
    where: torch.device,
) -> tuple[Scorer, dict[str, list[Tensor]]]:
    """Bring rows and draws to where metrics compute; return the scorer and the sets of each column."""
    # Metrics compute in float64, which only CUDA has besides the CPU.
    place = where if where.type == "cuda" else torch.device("cpu")
    columns = {
        column: [samples.to(place) for samples in sets]
        for column, sets in (("data", rows.floor), ("base", base.sets), ("gebm", gebm.sets))
    }
    reference, train = rows.reference.to(place), None if rows.train is None else rows.train.to(place)
    constant = [*columns["data"], reference, *([] if train is None else [train])]
    return Scorer(model, dataset, reference, FeatureMaps(dataset, where, features, constant), seed, train), columns


def _fit(
    model: GEBM,
    dataset: Dataset,
    reference: Tensor,
    draws: ModelDraws | None,
    sampling: SampleSettings,
    settings: EvaluationSettings,
    where: torch.device,
    on_progress: OnProgress,
) -> ModelFit:
    """Compute KALE, the log-partition and the likelihood."""
    return model_fit(
        model,
        _train_split(dataset),
        reference,
        sampling,
        where,
        draws=draws,
        method=settings.log_partition,
        space=settings.nll_space,
        log_det=log_det_of(dataset),
        on_progress=on_progress,
    )


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


def _worth(sampler: Sampler, gebm: DrawSets) -> float:
    """Return the number of independent draws that all sets together are worth.

    The diagnostics cover all sets, or the first set alone where each set was a run of its own; see `gebm_sets`.
    """
    runs = len(gebm.sets) if sampler.needs_one_block() else 1
    return runs * _diagnostics(gebm).ess_min


def _diagnostics(gebm: DrawSets) -> Diagnostics:
    assert gebm.diagnostics is not None
    return gebm.diagnostics


@dataclass(frozen=True)
class Scores:
    """The fields of `Evaluation` with these names, which the first rank computes."""

    metrics: dict[str, dict[str, Estimate]]
    protocol: dict[str, dict[str, Any]]
    fit: ModelFit

    @classmethod
    def from_first(cls, scores: Scores | None, ranks: Ranks) -> Scores:
        """Return the first rank's scores, on every rank."""
        text = ranks.from_first("" if scores is None or ranks.size == 1 else json.dumps(asdict(scores)))
        if scores is not None:
            return scores
        found = json.loads(text)
        metrics = {
            column: {name: Estimate(**estimate) for name, estimate in values.items()}
            for column, values in found["metrics"].items()
        }
        fit = found["fit"]
        fit["log_partition"] = LogPartition(**fit["log_partition"])
        fit["nll"] = None if fit["nll"] is None else Likelihood.restored(fit["nll"])
        return cls(metrics, found["protocol"], ModelFit(**fit))
