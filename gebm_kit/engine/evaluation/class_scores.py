"""The evaluation of a model with classes: overall, with classes in the data's shares, and class by class.

- *Overall*, every set of base and GEBM draws has each class in its share of the training data. Metrics don't see labels.
- *By class*, the draws of a class are scored against that class's rows, by the metrics that need no more rows than it has.
- With ``data.class_weights``, its shares take the place of the data's in all of that, also of held-out rows.
- The log-partition A_y, KALE and any likelihood are those of each class, ``q(x | y)`` against ``p(x | y)``. The overall
  KALE is their mean over the data's classes, the overall A is ``log sum_y pi_y exp(A_y)``.
- Chains are those of one class, and each class's are continued to 2x and 4x their length; a set then has all classes again.
- One inverse temperature is calibrated for all classes, by the mean of their KALE.
- Costs are estimated on the most frequent class, with the chains of all of them.
- Held-out rows are classified: see `gebm_kit.engine.evaluation.classification`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gebm_kit.core.files import plain
from gebm_kit.core.interfaces import Dataset, HasDensity, Metric, Sampler
from gebm_kit.core.model import GEBM
from gebm_kit.core.progress import OnProgress, ignore
from gebm_kit.core.seeds import stream
from gebm_kit.engine.datasets.class_rows import apportioned, labels_in_shares
from gebm_kit.engine.evaluation.budget import Plan
from gebm_kit.engine.evaluation.calibration import (
    MAX_DRAWS,
    Calibration,
    calibration_of_classes,
    found_beta,
    shared_calibration,
)
from gebm_kit.engine.evaluation.class_fits import ClassFit, overall_energies, overall_fit
from gebm_kit.engine.evaluation.class_model_scores import ClassModelScores, model_scores
from gebm_kit.engine.evaluation.classification import Classification, classified
from gebm_kit.engine.evaluation.data_rows import DataRows, place_of, scorer_of
from gebm_kit.engine.evaluation.draw_sets import DrawSets, base_sets, gebm_sets, shared_by
from gebm_kit.engine.evaluation.equilibrium import (
    GROUPS,
    LENGTHS,
    Equilibrium,
    gap_of,
    rows_in_groups,
    summary_of,
)
from gebm_kit.engine.evaluation.labelled_rows import LabelledRows
from gebm_kit.engine.evaluation.longer_chains import followed, followed_values, longer_sets, unit_of, why_not
from gebm_kit.engine.evaluation.planner import Planner
from gebm_kit.engine.evaluation.score_table import ScoreTable, score_table
from gebm_kit.engine.evaluation.settings import FLOOR_PART, EvaluationSettings
from gebm_kit.engine.evaluation.task import Scores, diagnostics_of, worth
from gebm_kit.engine.evaluation.verdict import verdict
from gebm_kit.engine.likelihood.class_densities import ClassLogPartition, class_rows
from gebm_kit.engine.likelihood.class_log_partitions import draws_of_class
from gebm_kit.engine.likelihood.model_fit import Energies, ModelDraws, model_fit
from gebm_kit.engine.likelihood.nll import log_det_of
from gebm_kit.engine.process.distributed import Ranks
from gebm_kit.engine.sampling.by_class import merged, share_of
from gebm_kit.engine.sampling.diagnostics import Diagnostics
from gebm_kit.engine.sampling.settings import SampleSettings, check_sampling


@dataclass(frozen=True)
class OfClass:
    """Draw sets of one class from the GEBM, and the sampler and settings that drew them."""

    sets: DrawSets
    sampler: Sampler
    sampling: SampleSettings


class ClassTask:
    """One evaluation of a model with classes.

    Args:
        model, dataset, metrics, sampler: what is scored, and how.
        sampling, settings: the settings of the draws and of the evaluation.
        rows: rows that draws are scored against.
        where: the device.
        on_progress, ranks: as for `gebm_kit.engine.evaluation.evaluation.score`.

    Raises:
        UsageError: a metric does not serve models with classes; the data have no labels.
    """

    def __init__(
        self,
        model: GEBM,
        dataset: Dataset,
        metrics: Mapping[str, Metric],
        sampler: Sampler,
        sampling: SampleSettings,
        settings: EvaluationSettings,
        rows: DataRows,
        where: torch.device,
        on_progress: OnProgress,
        ranks: Ranks,
    ) -> None:
        assert model.num_classes is not None
        self._model, self._dataset, self._metrics, self._sampler = model, dataset, metrics, sampler
        self._of_draws = {name: metric for name, metric in metrics.items() if not metric.of_model}
        self._sampling, self._settings, self._rows, self._where = sampling, settings, rows, where
        self._on_progress, self._ranks, self._num_classes = on_progress, ranks, model.num_classes
        self._labelled = LabelledRows(dataset, model.class_weights, settings)
        self._labelled.check()
        check_sampling(model.given(0), sampler, sampling)
        self._scorer, floor = scorer_of(model, dataset, rows, settings, sampling.seed, where, on_progress)
        self._planner = Planner(
            model.given(int(model.class_weights.argmax())), dataset, metrics, sampler, settings, rows, self._scorer,
            floor, where, on_progress, ranks,
            as_run=self._all_chains, more_rows=self._num_classes * len(rows.reference) * settings.timed,
        )  # fmt: skip

    def scored(self) -> dict[str, Any]:
        """Draw and score; return the fields of `gebm_kit.engine.evaluation.evaluation.Evaluation`."""
        settings, planner = self._settings, self._planner
        asked = Plan(settings.num_samples, settings.num_sets, LENGTHS[-1] if settings.continues else 1)
        first = planner.planned(asked, self._sampling)
        with planner.ledger.stage("base"):
            base = self._base(first)
            calibration = self._calibrated(first, base)
        plan = planner.planned_with_chains(asked, first, self._sampling, None)
        with planner.ledger.stage("base"):
            base = base if plan.num_samples == first.num_samples else self._base(plan)
        with planner.ledger.stage("sampling"):
            found = self._draws(plan)
        plan = planner.planned_again(plan, self._share(plan, found))
        with planner.ledger.stage("equilibrium"):
            longer = self._longer(plan, found)
        gebm = _together([one.sets.sets for one in found.values()])
        diagnostics = self._diagnostics(plan, found)
        diagnostics.warn()
        with self._ranks.together():
            scores, energies = None, None
            if self._ranks.rank == 0:
                scores, energies = self._scores(plan, base[: plan.num_sets], gebm, found, longer)
            scores = Scores.from_first(scores, self._ranks)
        names = ("metrics", "protocol", "fit", "equilibrium", "verdict", "budget", "classes", "classifier")
        mixed = _mixed(plan.num_samples)
        labels = self._labels(plan)[mixed]
        return {
            **{name: getattr(scores, name) for name in names},
            "inverse_temperature": self._sampling.inverse_temperature,
            "calibration": calibration,
            "diagnostics": diagnostics,
            "data": self._rows.reference,
            "base_draws": base[0][mixed],
            "gebm_draws": gebm[0][mixed],
            "labels": {"data": self._labelled.labels(), "base": labels, "GEBM": labels},
            "energies": energies,
        }

    # --- draws --------------------------------------------------------------------------------------------------------
    def _counts(self, num: int) -> list[int]:
        """Return the draws of each class among ``num``."""
        return apportioned(self._model.class_weights, num)

    def _labels(self, plan: Plan) -> Tensor:
        """Return the classes of a set's draws, sorted."""
        return labels_in_shares(self._model.class_weights, plan.num_samples)

    def _all_chains(self, settings: SampleSettings) -> SampleSettings:
        """Return the settings of a set's draws with the chains of all classes together."""
        num = settings.num_samples
        shares = [share_of(settings, self._sampler, n, num, k) for k, n in enumerate(self._counts(num)) if n]
        return replace(settings, num_chains=sum(share.num_chains for share in shares))

    def _base(self, plan: Plan) -> list[Tensor]:
        """Draw sets from the base, the classes in their shares and in order."""
        labels = self._labels(plan).to(self._where)
        report = self._on_progress if self._ranks.rank == 0 else ignore
        return base_sets(self._model, self._sampling, plan.num_samples, plan.num_sets, self._where, report, labels).sets

    def _calibrated(self, plan: Plan, base: list[Tensor]) -> Calibration | None:
        """Find the beta that fits the validation part best, and take it if the settings ask for it."""
        if not (self._settings.calibrate or self._settings.calibrated):
            return None

        def find() -> Calibration | None:
            labels = self._labels(plan)
            rows = [torch.cat([x[labels == k] for x in base])[:MAX_DRAWS] for k in range(self._num_classes)]
            about: dict[str, Any] = {"weighted": self._settings.weighted, "on_progress": self._on_progress}
            return calibration_of_classes(self._model, self._dataset, rows, self._where, **about)

        found = shared_calibration(find, self._ranks)
        if self._settings.calibrated:
            self._sampling = replace(self._sampling, inverse_temperature=found_beta(found))
        return found

    def _draws(self, plan: Plan) -> dict[int, OfClass]:
        """Draw the sets of each class from the GEBM."""
        found, left = {}, plan.num_samples
        for label, count in enumerate(self._counts(plan.num_samples)):
            if not count:
                continue
            share = share_of(self._sampling, self._sampler, count, plan.num_samples, label)
            sampling = replace(share, num_samples=count)
            bounds = self._planner.bounds(plan, count / plan.num_samples, left / plan.num_samples)
            sets = gebm_sets(
                self._model.given(label), self._sampler, sampling, count, plan.num_sets, self._where,
                self._on_progress, self._ranks,
                keep_chains=plan.longest > 1, checked=True, bounds=bounds, warns=False,
            )  # fmt: skip
            found[label] = OfClass(sets, sets.sampler or self._sampler, sets.settings or sampling)
            left -= count
        return found

    def _share(self, plan: Plan, found: Mapping[int, OfClass]) -> float:
        """Return the share of the first length's time that one more takes for the chains that are continued."""
        each = [
            shared_by(one.sets, min(GROUPS, plan.num_sets)) * len(one.sets.sets[0]) / plan.num_samples
            for one in found.values()
        ]
        return sum(each)

    def _longer(self, plan: Plan, found: Mapping[int, OfClass]) -> dict[int, list[Tensor]]:
        """Return sets of all classes after 2x and 4x the chain length; {} where one of them has no longer draws."""
        if plan.longest == 1 or followed(self._metrics) is None or "refiner" in _families(found):
            return {}
        each = []
        for label, one in found.items():
            longer = longer_sets(
                self._model.given(label), one.sampler, one.sampling, one.sets, plan, self._where, self._on_progress,
                self._ranks, partial(gebm_sets, warns=False),
            )  # fmt: skip
            if not longer:
                return {}
            each.append(longer)
        return {length: _together([longer[length] for longer in each]) for length in each[0]}

    def _diagnostics(self, plan: Plan, found: Mapping[int, OfClass]) -> Diagnostics:
        """Return the worst of the classes."""
        each = {label: diagnostics_of(one.sets) for label, one in found.items()}
        total = next(iter(each.values())).num_samples if len(each) == 1 else plan.num_samples * plan.num_sets
        return merged(each, total, self._sampling.seed)

    # --- scores -------------------------------------------------------------------------------------------------------
    def _scores(
        self,
        plan: Plan,
        base: list[Tensor],
        gebm: list[Tensor],
        found: Mapping[int, OfClass],
        longer: Mapping[int, list[Tensor]],
    ) -> tuple[Scores, dict[str, Tensor]]:
        """Score all sets, and classify held-out rows; return the scores, and energies for pictures."""
        planner, place, timed = self._planner, place_of(self._where), self._settings.timed
        weights, weighted = self._model.class_weights, self._settings.weighted
        with planner.ledger.stage("log_partition"):
            fits = {label: self._fit(plan, label, one) for label, one in found.items()}
            fit = overall_fit(fits, weights, weighted=weighted)
        with planner.ledger.stage("metrics"):
            columns = {
                "data": planner.floor,
                "base": [x.to(place) for x in base],
                "gebm": [x.to(place) for x in gebm],
            }
            table = score_table(self._of_draws, columns, self._scorer, self._on_progress, planner.known)
            own = model_scores(self._model, self._metrics, self._scorer, self._labelled.reference, fits)
            own.join(table)
            tells = self._classified(plan, fits) if timed else None
            classes = self._by_class(plan, columns, fits, tells, own) if timed else None
        reference = self._settings.reference
        for entry in table.protocol.values():
            entry["reference_part"], entry["held_out_part"] = reference, FLOOR_PART[reference]
            entry["classes"] = f"in the shares of {'data.class_weights' if weighted else 'the training data'}"
        energies = overall_energies(fits, weights, weighted=weighted)
        assert energies.draws is not None
        with planner.ledger.stage("equilibrium"):
            equilibrium = self._equilibrium(plan, energies, table, found, longer)
        if self._settings.continues:
            equilibrium.warn()
        sentences = verdict(table.metrics, table.protocol, table.differences, equilibrium)
        scores = Scores(
            table.metrics, table.protocol, fit, equilibrium, sentences, planner.ledger.as_dict(plan), classes,
            None if tells is None else tells.as_dict(),
        )  # fmt: skip
        return scores, {"data": energies.data, "base": energies.base, "GEBM": energies.draws[0]}

    def _fit(self, plan: Plan, label: int, one: OfClass) -> ClassFit:
        """Compute KALE, the log-partition and any likelihood of one class."""
        test, given = self._labelled.reference(label), self._model.given(label)
        fit, energies = model_fit(
            given,
            self._labelled.train(label),
            self._rows.reference[:1] if test is None else test,
            replace(self._sampling, seed=stream(self._sampling.seed, "class", label).initial_seed() % 2**63),
            self._where,
            draws=ModelDraws(one.sets.sets, None if one.sampler.family == "refiner" else worth(one.sampler, one.sets)),
            method=self._settings.log_partition,
            may_anneal=isinstance(given.base, HasDensity),
            space=self._settings.nll_space,
            log_det=log_det_of(self._dataset),
            num_draws=draws_of_class(self._num_classes, plan.base_draws),
            on_progress=self._on_progress,
        )
        return ClassFit(fit, energies, 0 if test is None else len(test))

    def _classified(self, plan: Plan, fits: Mapping[int, ClassFit]) -> Classification | None:
        """Classify the reference rows; the log-partition of a class without draws is estimated first."""
        sampling, dtype = self._sampling, self._model.dtype
        estimate = ClassLogPartition(
            sampling.inverse_temperature, self._settings.log_partition, sampling.seed, sampling.block_size,
            plan.base_draws,
        )  # fmt: skip
        partitions = [
            (
                fits[label].fit.log_partition
                if label in fits
                else estimate.estimate(self._model, label, self._where, dtype, self._on_progress)
            ).value
            for label in range(self._num_classes)
        ]
        rows = class_rows(
            self._model, self._rows.reference, torch.tensor(partitions, dtype=torch.float64),
            sampling.inverse_temperature, self._where, dtype,
        )  # fmt: skip
        return classified(rows, self._labelled.labels())

    def _equilibrium(
        self,
        plan: Plan,
        energies: Energies,
        table: ScoreTable,
        found: Mapping[int, OfClass],
        longer: Mapping[int, list[Tensor]],
    ) -> Equilibrium:
        """Compare energies, and score the longer chains."""
        assert energies.draws is not None
        parts = (list(energies.draws), rows_in_groups(energies.data), rows_in_groups(energies.base))
        model, data, base = (summary_of(groups) for groups in parts)
        families, name = _families(found), followed(self._metrics)
        lengths = {one.sets.chains[0].length if one.sets.chains else None for one in found.values()}
        about: dict[str, Any] = {
            "length": lengths.pop() if len(lengths) == 1 else None,
            "unit": unit_of(families),
            "reason": why_not(name, families, plan, self._settings.continues, done=bool(longer)),
        }
        if name is not None:
            about |= followed_values(
                name, self._metrics[name], self._scorer, table.values[name]["gebm"], longer, place_of(self._where),
                self._on_progress,
            )  # fmt: skip
        return Equilibrium(model, data, base, gap_of(model, data, base), **about)

    def _by_class(
        self,
        plan: Plan,
        columns: Mapping[str, Sequence[Tensor]],
        fits: Mapping[int, ClassFit],
        tells: Classification | None,
        own: ClassModelScores,
    ) -> dict[str, Any]:
        """Score the draws of each class against its rows; return plain JSON by class."""
        labels, place, found = self._labels(plan), columns["gebm"][0].device, {}
        accuracy = {} if tells is None else tells.of_classes or {}
        for label, (fit, rows) in ((label, (one.fit, one.rows)) for label, one in fits.items()):
            reference, rest = self._labelled.reference(label), self._labelled.floor(label)
            one = {name: [x[labels == label] for x in columns[name]] for name in ("base", "gebm")}
            least = min(rows, 0 if rest is None else len(rest), *(len(x) for x in one["gebm"]))
            metrics = {name: one for name, one in self._of_draws.items() if one.least_rows <= least and least > 1}
            values: dict[str, Any] = {}
            if metrics and reference is not None and rest is not None:
                one = {"data": [rest.to(place)], **one}
                of_class = replace(self._scorer, reference=reference.to(place), train=None)
                table = score_table(metrics, one, of_class, ignore).metrics
                values = {column: {k: v.as_dict() for k, v in cells.items()} for column, cells in table.items()}
            values = own.joined(label, values)
            found[str(label)] = {
                **({} if self._model.class_names is None else {"name": self._model.class_names[label]}),
                "share": float(self._model.class_weights[label]),
                "rows": rows,
                "draws": int((labels == label).sum()),
                "metrics": values,
                "kale_test": fit.kale_test if rows else None,
                "log_partition": fit.log_partition.as_dict(),
                "nll": fit.nll.as_dict() if rows and fit.nll is not None else None,
                "accuracy": accuracy.get(str(label)),
            }
        return plain(found)


def _together(sets: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Put sets of single classes together: set k of every class, as far as all classes have one."""
    return [torch.cat(list(parts)) for parts in zip(*sets, strict=False)]


def _families(found: Mapping[int, OfClass]) -> list[str]:
    return [one.sampler.family for one in found.values()]


def _mixed(num: int) -> Tensor:
    """Return an order of draws in which the classes are mixed, for pictures."""
    return torch.randperm(num, generator=stream(0, "classes in pictures"))
