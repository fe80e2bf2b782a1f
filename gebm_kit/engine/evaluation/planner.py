"""The plan of an evaluation: what its stages are estimated to cost, and what is done within the budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from gebm_kit.core.interfaces import Dataset, Metric, Sampler, SamplerDirective
from gebm_kit.core.model import GEBM
from gebm_kit.core.progress import OnProgress, note
from gebm_kit.engine.datasets.held_out import floor_sets
from gebm_kit.engine.evaluation.budget import (
    LEAST_DRAWS,
    Costs,
    Ledger,
    Plan,
    after_sampling,
    described,
    left_over,
    no_more_than,
    plan_from,
    plan_text,
    warn_of_cuts,
    within,
)
from gebm_kit.engine.evaluation.data_rows import DataRows, place_of, train_split
from gebm_kit.engine.evaluation.score_table import Known, Scorer
from gebm_kit.engine.evaluation.settings import EvaluationSettings
from gebm_kit.engine.evaluation.timing import time_scores, time_units, with_sampling
from gebm_kit.engine.process.distributed import Ranks
from gebm_kit.engine.sampling.auto import Bounds, built, choose
from gebm_kit.engine.sampling.forecasts import Forecast
from gebm_kit.engine.sampling.pilot import Pilot
from gebm_kit.engine.sampling.settings import SampleSettings


class Planner:
    """The estimates behind an evaluation's plan; the first rank times, and all ranks get its plan.

    Attributes:
        ledger: the budget and the seconds by stage.
        floor: sets of held-out data that the metrics score.
        known: scores of these sets that timing has computed already.
    """

    def __init__(
        self,
        model: GEBM,
        dataset: Dataset,
        metrics: Mapping[str, Metric],
        sampler: Sampler,
        settings: EvaluationSettings,
        rows: DataRows,
        scorer: Scorer,
        floor: list[Tensor],
        where: torch.device,
        on_progress: OnProgress,
        ranks: Ranks,
        as_run: Callable[[SampleSettings], SampleSettings] = lambda settings: settings,
        more_rows: int = 0,
    ) -> None:
        """Keep what is planned.

        Args:
            as_run: returns the settings that a set is drawn with, where these are not the sampler's own.
            more_rows: rows of data whose energies are computed besides those behind KALE.
        """
        self.ledger, self.floor = Ledger(settings.budget), floor
        self.known: Known = {}
        self._model, self._dataset, self._metrics, self._sampler = model, dataset, metrics, sampler
        self._settings, self._rows, self._scorer, self._where = settings, rows, scorer, where
        self._on_progress, self._ranks = on_progress, ranks
        self._costs, self._as_run, self._more_rows = Costs(), as_run, more_rows

    def planned(self, asked: Plan, sampling: SampleSettings) -> Plan:
        """Estimate what all stages but the chains cost; return what is done within the budget, on every rank."""
        if not self._settings.timed:
            return asked
        return self._cut(asked, lambda: self._without_chains(asked, sampling))

    def planned_with_chains(self, asked: Plan, plan: Plan, sampling: SampleSettings, pilot: Pilot | None) -> Plan:
        """Estimate the chains too, and return what is done within the budget: no more than ``plan`` says."""
        if not self._settings.timed:
            return plan

        def estimate() -> Plan:
            self._costs = self._with_chains(asked, sampling, pilot)
            found = no_more_than(self._within(asked), plan, asked)
            self.ledger.estimated = self._costs.estimated(asked, asked.num_samples)
            if words := described(self.ledger):
                note(words)
            return found

        return self._cut(plan, estimate)

    def _cut(self, before: Plan, estimate: Callable[[], Plan]) -> Plan:
        """Return the first rank's estimate, and take the held-out sets that go with it."""
        with self._ranks.together():
            plan = estimate() if self._ranks.rank == 0 else before
            plan = plan_from(self._ranks.from_first(plan_text(plan)))
        if plan.num_samples != before.num_samples:  # what was timed is for other sets
            floor = floor_sets(self._rows.held_out, plan.num_samples, plan.num_sets)
            self.floor, self.known = [part.to(place_of(self._where)) for part in floor], {}
        return plan

    def _within(self, asked: Plan) -> Plan:
        least = max((metric.least_rows for metric in self._metrics.values()), default=2)
        return within(asked, self._costs, self.ledger.budget, max(LEAST_DRAWS, least))

    def _without_chains(self, asked: Plan, sampling: SampleSettings) -> Plan:
        """Time base, energy and metrics."""
        costs = time_units(
            self._model, sampling, asked.num_samples, self._where,
            rows=len(self._rows.reference) * (2 if train_split(self._dataset) is not None else 1) + self._more_rows,
            anneals=self._settings.log_partition == "smc",
        )  # fmt: skip
        with self.ledger.stage("metrics"):
            score, first, self.known = time_scores(self._metrics, self._scorer, self.floor, self._on_progress)
        self._costs = costs.scored(score, first, len(self.floor))
        return self._within(asked)

    def _with_chains(self, asked: Plan, sampling: SampleSettings, pilot: Pilot | None) -> Costs:
        """Time the sampler, or the one that a directive chooses."""
        sampler, directive = self._sampler, self._sampler

        @cache
        def chosen(draws: int) -> Forecast:
            assert isinstance(directive, SamplerDirective)
            run = replace(sampling, num_samples=draws)
            steady = self.ledger.budget is not None
            return choose(self._model, directive, run, device=self._where, pilot=pilot, steady=steady).ranked[0]

        if isinstance(directive, SamplerDirective):
            sampler = built(self._model, chosen(asked.num_samples))
        return with_sampling(
            self._costs,
            self._model,
            sampler,
            (lambda draws: self._as_run(chosen(draws).settings))
            if sampler is not directive
            else lambda draws: self._as_run(sampling),
            asked.num_samples,
            self._where,
            processes=self._ranks.size,
        )

    def bounds(self, plan: Plan, part: float = 1.0, rest: float = 1.0) -> Bounds:
        """Return the seconds that sampling may take; the first rank's count.

        Args:
            part: share of all draws that are meant.
            rest: share of the draws that are still to be made, these included.
        """
        if not self._settings.timed or self._ranks.rank > 0:
            return Bounds()
        full = self._settings.num_samples
        estimated = self._costs.estimated(plan, full)["sampling"]
        left = left_over(plan, self.ledger, self._costs, full)
        return Bounds(None if left is None else left * part / rest, estimated * part)

    def planned_again(self, plan: Plan, share: float) -> Plan:
        """Decide again how far chains are continued, now that the time of the first length is known.

        Args:
            share: share of that time which one more of its length takes for the chains that are continued.
        """
        if not self._settings.timed:
            return plan
        if self._ranks.rank == 0:
            plan = after_sampling(plan, self.ledger, self._costs, self._settings.num_samples, share)
            warn_of_cuts(plan, self.ledger)
        return plan_from(self._ranks.from_first(plan_text(plan)))
