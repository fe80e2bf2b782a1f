"""The evaluation of a model with classes: overall, with classes in the data's shares, and class by class.

- *Overall*, every set of base and GEBM draws has each class in its share of the training data. Metrics don't see labels.
- *By class*, the draws of a class are scored against that class's rows, by the metrics that need no more rows than it has.
- The log-partition A_y and KALE are those of each class, ``q(x | y)`` against ``p(x | y)``. The overall KALE is their mean
  over the data's classes, the overall A is ``log sum_y pi_y exp(A_y)``.
- Chains are those of one class. They are not continued to longer lengths, no inverse temperature is looked for, and a budget
  cuts nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gebm_kit.core.errors import UsageError
from gebm_kit.core.files import plain
from gebm_kit.core.interfaces import Dataset, Metric, Sampler
from gebm_kit.core.model import GEBM
from gebm_kit.core.progress import OnProgress, ignore, warn
from gebm_kit.core.seeds import stream
from gebm_kit.engine.datasets.class_rows import OneClass, apportioned, labels_in_shares, labels_of
from gebm_kit.engine.datasets.held_out import HeldOut, evenly_spaced_rows
from gebm_kit.engine.evaluation.budget import Ledger, Plan
from gebm_kit.engine.evaluation.data_rows import DataRows, place_of, scorer_of
from gebm_kit.engine.evaluation.draw_sets import DrawSets, base_sets, gebm_sets
from gebm_kit.engine.evaluation.equilibrium import Equilibrium, gap_of, rows_in_groups, summary_of
from gebm_kit.engine.evaluation.score_table import Scorer, score_table
from gebm_kit.engine.evaluation.settings import FLOOR_PART, EvaluationSettings
from gebm_kit.engine.evaluation.task import Scores, diagnostics_of, worth
from gebm_kit.engine.evaluation.verdict import verdict
from gebm_kit.engine.likelihood.class_log_partitions import FEWEST_DRAWS
from gebm_kit.engine.likelihood.log_partition import LogPartition
from gebm_kit.engine.likelihood.model_fit import NUM_DRAWS, Energies, ModelDraws, ModelFit, model_fit
from gebm_kit.engine.process.distributed import Ranks
from gebm_kit.engine.sampling.by_class import merged, share_of
from gebm_kit.engine.sampling.settings import SampleSettings, check_sampling

NOT_CONTINUED = "chains of a model with classes are not continued"


@dataclass(frozen=True)
class ClassTask:
    """One evaluation of a model with classes.

    Attributes:
        model, dataset, metrics, sampler: what is scored, and how.
        sampling, settings: the settings of the draws and of the evaluation.
        rows: rows that draws are scored against.
        where: the device.
        on_progress, ranks: as for `score`.
    """

    model: GEBM
    dataset: Dataset
    metrics: Mapping[str, Metric]
    sampler: Sampler
    sampling: SampleSettings
    settings: EvaluationSettings
    rows: DataRows
    where: torch.device
    on_progress: OnProgress
    ranks: Ranks

    @property
    def num_classes(self) -> int:
        """K."""
        assert self.model.num_classes is not None
        return self.model.num_classes

    @property
    def counts(self) -> list[int]:
        """Draws of each class in a set."""
        return apportioned(self.model.class_weights, self.settings.num_samples)

    def scored(self) -> dict[str, Any]:
        """Draw and score; return the fields of `gebm_kit.engine.evaluation.evaluation.Evaluation`.

        Raises:
            UsageError: a metric or a setting does not serve models with classes; the data have no labels.
        """
        check_serves(self.metrics, self.settings)
        for part in {self.settings.reference, FLOOR_PART[self.settings.reference]}:
            labels_of(self.dataset, part, self.num_classes)
        check_sampling(self.model.given(0), self.sampler, self.sampling)
        ledger = Ledger(self.settings.budget)
        with ledger.stage("base"):
            base = self._base()
        with ledger.stage("sampling"):
            found = self._draws()
        labels = torch.arange(self.num_classes).repeat_interleave(torch.tensor(self.counts))
        gebm = [torch.cat([found[label].sets[index] for label in found]) for index in range(self.settings.num_sets)]
        diagnostics = merged(
            {label: diagnostics_of(sets) for label, sets in found.items()},
            diagnostics_of(next(iter(found.values()))).num_samples if len(found) == 1 else len(labels) * len(gebm),
            self.sampling.seed,
        )
        diagnostics.warn()
        with self.ranks.together():
            scores, energies = None, None
            if self.ranks.rank == 0:
                scores, energies = self._scores(ledger, base, gebm, found, labels)
            scores = Scores.from_first(scores, self.ranks)
        names = ("metrics", "protocol", "fit", "equilibrium", "verdict", "budget", "classes")
        return {
            **{name: getattr(scores, name) for name in names},
            "inverse_temperature": self.sampling.inverse_temperature,
            "diagnostics": diagnostics,
            "data": self.rows.reference,
            "base_draws": base[0][_mixed(len(labels))],
            "gebm_draws": gebm[0][_mixed(len(labels))],
            "energies": energies,
        }

    # --- draws --------------------------------------------------------------------------------------------------------
    def _base(self) -> list[Tensor]:
        """Draw sets from the base, the classes in their shares and in order."""
        settings = self.settings
        labels = labels_in_shares(self.model.class_weights, settings.num_samples).to(self.where)
        report = self.on_progress if self.ranks.rank == 0 else ignore
        return base_sets(
            self.model, self.sampling, settings.num_samples, settings.num_sets, self.where, report, labels
        ).sets

    def _draws(self) -> dict[int, DrawSets]:
        """Draw sets of each class from the GEBM."""
        found = {}
        for label, count in enumerate(self.counts):
            if not count:
                continue
            share = share_of(self.sampling, self.sampler, count, self.settings.num_samples, label)
            sampling = replace(share, num_samples=count)
            found[label] = gebm_sets(
                self.model.given(label), self.sampler, sampling, count, self.settings.num_sets, self.where,
                self.on_progress, self.ranks, checked=True, warns=False,
            )  # fmt: skip
        return found

    # --- scores -------------------------------------------------------------------------------------------------------
    def _scores(
        self, ledger: Ledger, base: list[Tensor], gebm: list[Tensor], found: Mapping[int, DrawSets], labels: Tensor
    ) -> tuple[Scores, dict[str, Tensor]]:
        with ledger.stage("log_partition"):
            fits = {label: self._fit(label, sets) for label, sets in found.items()}
            fit = self._overall(fits)
        place = place_of(self.where)
        with ledger.stage("metrics"):
            scorer, floor = scorer_of(
                self.model, self.dataset, self.rows, self.settings, self.sampling.seed, self.where
            )
            columns = {"data": floor, "base": [x.to(place) for x in base], "gebm": [x.to(place) for x in gebm]}
            table = score_table(self.metrics, columns, scorer, self.on_progress)
            classes = self._by_class(scorer, columns, fits, labels) if self.settings.timed else None
        reference = self.settings.reference
        for entry in table.protocol.values():
            entry["reference_part"], entry["held_out_part"] = reference, FLOOR_PART[reference]
            entry["classes"] = (
                f"in the shares of {'data.class_weights' if self.settings.weighted else 'the training data'}"
            )
        energies = self._energies(fits)
        assert energies.draws is not None
        model, data, of_base = (
            summary_of(groups)
            for groups in (list(energies.draws), rows_in_groups(energies.data), rows_in_groups(energies.base))
        )
        equilibrium = Equilibrium(model, data, of_base, gap_of(model, data, of_base), reason=NOT_CONTINUED)
        sentences = verdict(table.metrics, table.protocol, table.differences, equilibrium)
        budget = ledger.as_dict(Plan(self.settings.num_samples, self.settings.num_sets, 1))
        if ledger.budget is not None and ledger.total > ledger.budget:
            warn(
                f"the evaluation took {ledger.total:.0f} seconds, and its budget is {ledger.budget:.0f}: an evaluation of a "
                "model with classes is not cut. Lower eval.num_samples or eval.num_sets."
            )
        scores = Scores(table.metrics, table.protocol, fit, equilibrium, sentences, budget, classes)

        return scores, {"data": energies.data, "base": energies.base, "GEBM": energies.draws[0]}

    def _fit(self, label: int, sets: DrawSets) -> tuple[ModelFit, Energies, int]:
        """Compute KALE and the log-partition of one class; return them with its held-out rows."""
        test = self._rows_of(label)
        train = None
        if not isinstance(self.dataset, HeldOut):
            train = OneClass(self.dataset.split("train"), labels_of(self.dataset, "train", self.num_classes), label)
        used = sets.sampler or self.sampler
        fit, energies = model_fit(
            self.model.given(label),
            train if train is not None and len(train) else None,
            test if len(test) else self.rows.reference[:1],
            replace(self.sampling, seed=stream(self.sampling.seed, "class", label).initial_seed() % 2**63),
            self.where,
            draws=ModelDraws(sets.sets, None if used.family == "refiner" else worth(used, sets)),
            method=self.settings.log_partition,
            may_anneal=False,
            num_draws=max(NUM_DRAWS // self.num_classes, FEWEST_DRAWS),
            on_progress=self.on_progress,
        )
        return fit, energies, len(test)

    def _rows_of(self, label: int) -> Tensor:
        """Return the rows of a class in the reference part, at most its share of the rows that are read."""
        part = self.settings.reference
        split = OneClass(self.dataset.split(part), labels_of(self.dataset, part, self.num_classes), label)
        if not len(split):
            return self.rows.reference[:0]
        return evenly_spaced_rows(split, f"{part} data", max(self.settings.num_reference // self.num_classes, 1))

    def _overall(self, fits: Mapping[int, tuple[ModelFit, Energies, int]]) -> ModelFit:
        """Return the mean KALE over the data's classes, and the log-partition of all classes."""
        test, train = [], []
        for label, (fit, _, num) in fits.items():
            share = float(self.model.class_weights[label]) if self.settings.weighted else None
            if num:
                test.append((fit.kale_test, num if share is None else share))
            if fit.kale_train is not None and fit.kale_train_rows:
                train.append((fit.kale_train, fit.kale_train_rows if share is None else share))
        shares = self.model.class_weights.double().cpu()[list(fits)]
        parts = [fit.log_partition for fit, _, _ in fits.values()]
        return ModelFit(
            kale_train=_mean(train) if train else None,
            kale_test=_mean(test),
            log_partition=_joined(parts, shares / shares.sum()),
            kale_train_rows=sum(fit.kale_train_rows or 0 for fit, _, _ in fits.values()) if train else None,
        )

    def _energies(self, fits: Mapping[int, tuple[ModelFit, Energies, int]]) -> Energies:
        """Return energies of all classes: data by their rows, base draws in the classes' shares, draws by set."""
        shares = self.model.class_weights.double().cpu()
        each = {label: found for label, (_, found, _) in fits.items()}
        most = max(float(shares[label]) for label in each)
        base = [found.base[: round(len(found.base) * float(shares[k]) / most)] for k, found in each.items()]
        draws = torch.cat([found.draws for found in each.values() if found.draws is not None], dim=1)
        rows = {label: found.data for label, (_, found, num) in fits.items() if num}
        if self.settings.weighted:  # as many as all shares allow
            most = min(len(found) / float(shares[label]) for label, found in rows.items())
            rows = {label: found[: max(round(most * float(shares[label])), 1)] for label, found in rows.items()}
        return Energies(torch.cat(base), torch.cat(list(rows.values())), None, draws)

    def _by_class(
        self,
        scorer: Scorer,
        columns: Mapping[str, Sequence[Tensor]],
        fits: Mapping[int, tuple[ModelFit, Energies, int]],
        labels: Tensor,
    ) -> dict[str, Any]:
        """Score the draws of each class against its rows; return plain JSON by class."""
        part = FLOOR_PART[self.settings.reference]
        held_out, found = labels_of(self.dataset, part, self.num_classes), {}
        for label, (fit, _, _) in fits.items():
            reference, rest = self._rows_of(label), OneClass(self.dataset.split(part), held_out, label)
            one = {name: [x[labels == label] for x in columns[name]] for name in ("base", "gebm")}
            one["data"] = [evenly_spaced_rows(rest, f"{part} data")] if len(rest) else []
            place = columns["gebm"][0].device
            rows = min(len(reference), len(rest), *(len(x) for x in one["gebm"]))
            metrics = {name: metric for name, metric in self.metrics.items() if metric.least_rows <= rows and rows > 1}
            values: dict[str, Any] = {}
            if metrics:
                one = {name: [x.to(place) for x in one[name]] for name in ("data", "base", "gebm")}
                of_class = replace(scorer, reference=reference.to(place), train=None)
                table = score_table(metrics, one, of_class, ignore).metrics
                values = {column: {k: v.as_dict() for k, v in cells.items()} for column, cells in table.items()}
            names = self.model.class_names
            found[str(label)] = {
                **({} if names is None else {"name": names[label]}),
                "share": float(self.model.class_weights[label]),
                "rows": len(reference),
                "draws": self.counts[label],
                "metrics": values,
                "kale_test": fit.kale_test if len(reference) else None,
                "log_partition": fit.log_partition.as_dict(),
            }
        return plain(found)


def check_serves(metrics: Mapping[str, Metric], settings: EvaluationSettings | None = None) -> None:
    """Refuse metrics and settings that do not serve models with classes.

    Raises:
        UsageError: there is one.
    """
    for name, metric in metrics.items():
        if metric.of_model:
            raise UsageError(
                f"metric {name} scores the model's energy without labels, and the model has classes",
                hint="Leave it out of eval.metrics; kale_test and log_partition are reported anyway.",
            )
    if settings is not None and settings.calibrated:
        raise UsageError("inverse_temperature is calibrated, which does not serve models with classes; give a number")


def _mean(values: Sequence[tuple[float, float]]) -> float:
    """Return the mean of values by their numbers of rows, or their shares; NaN without any."""
    total = sum(weight for _, weight in values)
    return sum(value * weight for value, weight in values) / total if total else math.nan


def _joined(parts: Sequence[LogPartition], shares: Tensor) -> LogPartition:
    """Return ``log sum_y pi_y exp(A_y)`` with its error by the delta method; the rest is the worst of the classes."""
    values = torch.tensor([part.value for part in parts], dtype=torch.float64) + shares.log()
    errors = torch.tensor([part.se for part in parts], dtype=torch.float64)
    kept = shares > 0
    return LogPartition(
        value=float(torch.logsumexp(values[kept], 0)),
        se=float((torch.softmax(values[kept], 0) * errors[kept]).square().sum().sqrt()),
        ess=min(part.ess for part in parts),
        pareto_k=max(part.pareto_k for part in parts),
        num_draws=sum(part.num_draws for part in parts),
        method=parts[0].method if len({part.method for part in parts}) == 1 else "importance-sampling",
        degrees=min(part.degrees for part in parts),
        reason="the log-partitions of the classes, weighted by their shares",
    )


def _mixed(num: int) -> Tensor:
    """Return an order of draws in which the classes are mixed, for pictures."""
    return torch.randperm(num, generator=stream(0, "classes in pictures"))
