"""The parts of an evaluation besides its draws: what it may cost, longer chains, and everything that is scored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gebm_kit.core.interfaces import Dataset, HasDensity, Metric, Sampler, SamplerDirective
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.progress import OnProgress, counted
from gebm_kit.engine.evaluation.budget import Plan
from gebm_kit.engine.evaluation.calibration import Calibration, calibration_of, found_beta, shared_calibration
from gebm_kit.engine.evaluation.data_rows import DataRows, place_of, scorer_of, train_split
from gebm_kit.engine.evaluation.draw_sets import DrawSets, gebm_sets
from gebm_kit.engine.evaluation.equilibrium import Equilibrium, gap_of, rows_in_groups, summary_of
from gebm_kit.engine.evaluation.intervals import Estimate
from gebm_kit.engine.evaluation.longer_chains import followed, followed_values, longer_sets, unit_of, why_not
from gebm_kit.engine.evaluation.planner import Planner
from gebm_kit.engine.evaluation.score_table import ScoreTable, score_table
from gebm_kit.engine.evaluation.settings import FLOOR_PART, EvaluationSettings
from gebm_kit.engine.evaluation.verdict import verdict
from gebm_kit.engine.likelihood.log_partition import ROWS_AT_ONCE, LogPartition
from gebm_kit.engine.likelihood.model_fit import (
    NUM_DRAWS,
    BaseDraws,
    Energies,
    ModelDraws,
    ModelFit,
    model_fit,
    shared_energies,
)
from gebm_kit.engine.likelihood.nll import Likelihood, log_det_of
from gebm_kit.engine.process.distributed import Ranks
from gebm_kit.engine.sampling.diagnostics import Diagnostics
from gebm_kit.engine.sampling.pilot import Pilot, pilot_of_draws
from gebm_kit.engine.sampling.settings import SampleSettings


class Task:
    """One evaluation: what is scored, with which settings, and the seconds that it may take and has taken.

    Attributes:
        planner: what is done within the budget.
        ledger: the budget and the seconds by stage.
        pilot: base draws that a directive chooses by, once they are drawn.
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
        self._model, self._dataset, self._metrics, self._sampler = model, dataset, metrics, sampler
        self._sampling, self._settings, self._rows, self._where = sampling, settings, rows, where
        self._on_progress, self._ranks = on_progress, ranks
        self._scorer, floor = scorer_of(model, dataset, rows, settings, sampling.seed, where, on_progress)
        self.planner = Planner(
            model, dataset, metrics, sampler, settings, rows, self._scorer, floor, where, on_progress, ranks
        )
        self.ledger = self.planner.ledger
        self._base_energies: Tensor | None = None
        self.pilot: Pilot | None = None
        self._may_anneal = isinstance(model.base, HasDensity)

    def calibrated(self, base: DrawSets) -> tuple[Calibration | None, SampleSettings]:
        """Find the beta that fits the validation part best; return it and the settings, at that beta if they ask for it.

        Of a directive, the base draws are also the pilot.
        """
        settings, found = self._settings, None
        if settings.calibrate or settings.calibrated:
            found = shared_calibration(
                lambda: calibration_of(
                    self._model, self._dataset, self._energies_of(base), self._where, on_progress=self._on_progress
                ),
                self._ranks,
            )
        if settings.calibrated:
            self._sampling = replace(self._sampling, inverse_temperature=found_beta(found))
        if isinstance(self._sampler, SamplerDirective):
            energies = self._energies_of(base)
            codes = torch.cat(base.codes)[: len(energies)]
            self.pilot = pilot_of_draws(self._model, codes, energies, self._sampling, self._where)
        return found, self._sampling

    def _energies_of(self, base: DrawSets) -> Tensor:
        """Compute E on base draws, once: for the calibration, log Z and everything after it."""
        if self._base_energies is None:
            wanted = min(2 * NUM_DRAWS, sum(map(len, base.sets)))
            with LatentPotential(self._model, block_size=self._sampling.block_size or ROWS_AT_ONCE) as potential:
                self._base_energies = shared_energies(
                    potential, _base_draws(base), self._model.dtype, counted(self._on_progress, "log Z", wanted)
                )
        return self._base_energies

    def take_sampler(self, gebm: DrawSets) -> None:
        """Continue with what drew the sets: of a directive, the sampler that it settled on."""
        self._sampler = gebm.sampler or self._sampler
        self._sampling = gebm.settings or self._sampling

    def base_within(self, plan: Plan, base: DrawSets) -> DrawSets:
        """Return as many of the base draws as are scored."""
        if len(base.sets) == plan.num_sets and len(base.sets[0]) == plan.num_samples:
            return base
        if self._base_energies is not None:
            self._base_energies = _within(plan, base, self._base_energies)
        sets, codes = (
            [part[: plan.num_samples] for part in parts[: plan.num_sets]] for parts in (base.sets, base.codes)
        )
        return replace(base, sets=sets, codes=codes)

    def longer_sets(self, plan: Plan, gebm: DrawSets) -> dict[int, list[Tensor]]:
        """Return sets of draws after 2x and 4x the chain length, by length, as far as planned and possible."""
        if plan.longest == 1 or followed(self._metrics) is None or self._sampler.family == "refiner":
            return {}
        with self.ledger.stage("equilibrium"):
            return longer_sets(
                self._model, self._sampler, self._sampling, gebm, plan, self._where, self._on_progress, self._ranks,
                gebm_sets,
            )  # fmt: skip

    # --- scores -------------------------------------------------------------------------------------------------------
    def scored(
        self, plan: Plan, base: DrawSets, gebm: DrawSets, longer: Mapping[int, list[Tensor]]
    ) -> tuple[Scores, dict[str, Tensor]]:
        """Score all sets, on the first rank; return the scores, and energies for pictures."""
        with self.ledger.stage("log_partition"):
            fit, energies = self._fit(plan, base, gebm)
        with self.ledger.stage("metrics"):
            place = place_of(self._where)
            columns = {"data": self.planner.floor}
            columns |= {name: [x.to(place) for x in found.sets] for name, found in (("base", base), ("gebm", gebm))}
            table = score_table(self._metrics, columns, self._scorer, self._on_progress, self.planner.known)
        reference = self._settings.reference
        for entry in table.protocol.values():
            entry["reference_part"], entry["held_out_part"] = reference, FLOOR_PART[reference]
        with self.ledger.stage("equilibrium"):
            equilibrium = self._equilibrium(plan, energies, table, gebm, longer)
        if self._settings.continues:
            equilibrium.warn()
        sentences = verdict(table.metrics, table.protocol, table.differences, equilibrium)
        scores = Scores(table.metrics, table.protocol, fit, equilibrium, sentences, self.ledger.as_dict(plan))
        assert energies.draws is not None
        pictured = {"data": energies.data, "GEBM": energies.draws[0]}
        if (size := len(base.sets[0])) <= len(energies.base):
            pictured["base"] = energies.base[:size]
        return scores, pictured

    def _fit(self, plan: Plan, base: DrawSets, gebm: DrawSets) -> tuple[ModelFit, Energies]:
        """Compute KALE, the log-partition and the likelihood."""
        effective = None if self._sampler.family == "refiner" else worth(self._sampler, gebm)
        return model_fit(
            self._model,
            train_split(self._dataset),
            self._rows.reference,
            self._sampling,
            self._where,
            draws=ModelDraws(gebm.sets, effective),
            base=replace(_base_draws(base), energies=self._base_energies),
            method=self._settings.log_partition,
            may_anneal=self._may_anneal,
            space=self._settings.nll_space,
            log_det=log_det_of(self._dataset),
            num_draws=plan.base_draws,
            on_progress=self._on_progress,
        )

    def _equilibrium(
        self, plan: Plan, energies: Energies, table: ScoreTable, gebm: DrawSets, longer: Mapping[int, list[Tensor]]
    ) -> Equilibrium:
        """Compare energies, and score the longer chains."""
        assert energies.draws is not None
        parts = (list(energies.draws), rows_in_groups(energies.data), rows_in_groups(energies.base))
        model, data, base = (summary_of(groups) for groups in parts)
        families, name = [self._sampler.family], followed(self._metrics)
        about: dict[str, Any] = {
            "length": gebm.chains[0].length if gebm.chains else None,
            "unit": unit_of(families),
            "reason": why_not(name, families, plan, self._settings.continues, done=bool(longer)),
        }
        if name is not None:
            about |= followed_values(
                name, self._metrics[name], self._scorer, table.values[name]["gebm"], longer, place_of(self._where),
                self._on_progress,
            )  # fmt: skip
        return Equilibrium(model, data, base, gap_of(model, data, base), **about)


def _within(plan: Plan, base: DrawSets, energies: Tensor) -> Tensor | None:
    """Return the energies of the base draws that a plan keeps; None where not all are known."""
    size = len(base.sets[0])
    kept = torch.cat([index * size + torch.arange(plan.num_samples) for index in range(plan.num_sets)])
    return energies[kept] if int(kept[-1]) < len(energies) else None


def _base_draws(base: DrawSets) -> BaseDraws:
    """Return the base's sets as the likelihood takes them."""
    assert base.generator is not None
    return BaseDraws(base.sets, base.codes, base.generator)


def worth(sampler: Sampler, gebm: DrawSets) -> float:
    """Return the number of independent draws that all sets together are worth.

    The diagnostics cover all sets, or the first set alone where each set was a run of its own; see `gebm_sets`.
    """
    runs = len(gebm.sets) if sampler.needs_one_block() else 1
    return runs * diagnostics_of(gebm).ess_min


def diagnostics_of(gebm: DrawSets) -> Diagnostics:
    """Return the diagnostics of the GEBM's chains."""
    assert gebm.diagnostics is not None
    return gebm.diagnostics


@dataclass(frozen=True)
class Scores:
    """The fields of `Evaluation` with these names, which the first rank computes."""

    metrics: dict[str, dict[str, Estimate]]
    protocol: dict[str, dict[str, Any]]
    fit: ModelFit
    equilibrium: Equilibrium
    verdict: dict[str, str]
    budget: dict[str, Any]
    classes: dict[str, Any] | None = None
    classifier: dict[str, Any] | None = None

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
        equilibrium = Equilibrium.restored(found["equilibrium"])
        return cls(
            metrics,
            found["protocol"],
            ModelFit(**fit),
            equilibrium,
            found["verdict"],
            found["budget"],
            found["classes"],
            found["classifier"],
        )
