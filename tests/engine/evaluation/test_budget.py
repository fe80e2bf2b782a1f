"""Budgets: what is cut, in which order, and that it is said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from gebm_kit.core.errors import UsageError
from gebm_kit.core.model import GEBM
from gebm_kit.core.progress import GebmKitWarning
from gebm_kit.core.seeds import stream
from gebm_kit.engine.datasets.held_out import HeldOut
from gebm_kit.engine.evaluation import timing
from gebm_kit.engine.evaluation.budget import (
    LEAST_BUDGET,
    Costs,
    Ledger,
    Plan,
    after_sampling,
    check_budget,
    default_budget,
    described,
    plan_from,
    plan_text,
    within,
)
from gebm_kit.engine.evaluation.evaluation import Evaluation, score
from gebm_kit.engine.evaluation.metrics import build_metrics
from gebm_kit.engine.evaluation.settings import EvaluationSettings
from gebm_kit.engine.sampling.settings import SampleSettings
from gebm_kit.samplers.hmc import Hmc
from gebm_kit.samplers.sir import Sir
from gebm_kit.testing.targets import IdentityBase, LinearEnergy

ASKED = Plan(2000, 10)
COSTS = Costs(
    base_set=1.0, gebm_set=lambda draws: draws / 200, energies=1.0, log_partition=5.0, score=1.0, first_score=0.5,
    fixed_sets=2,
)  # fmt: skip


class TestCuts:
    def test_an_ample_budget_cuts_nothing(self) -> None:
        total = sum(COSTS.estimated(ASKED, 2000).values())
        assert total == pytest.approx(10 + 100 + 15 + 22 + 150 + 5)
        assert within(ASKED, COSTS, total + 1) == ASKED
        assert within(ASKED, COSTS, None) == ASKED

    def test_cuts_come_in_their_order(self) -> None:
        plans = [within(ASKED, COSTS, budget) for budget in (290, 200, 120, 60, 28, 1)]
        shapes = [(plan.longest, plan.num_sets, plan.num_samples) for plan in plans]
        assert shapes == [(2, 10, 2000), (2, 10, 2000), (2, 4, 2000), (2, 3, 1000), (2, 3, 500), (1, 3, 500)]
        assert plans[0].cut == ("chains are continued to 2x instead of 4x their length",)
        assert plans[-1].cut == (
            "chains are not continued", "3 draw sets instead of 10", "500 draws in a set instead of 2,000"
        )  # fmt: skip

    def test_base_draws_for_log_z_are_cut_first_where_they_are_dear(self) -> None:
        dear = replace(COSTS, base_draw=0.01)  # 400 s for 40,000, less those of the sets
        plans = [within(ASKED, dear, budget) for budget in (503, 500, 303, 300)]
        assert [(plan.base_draws, plan.longest) for plan in plans] == [
            (20_000, 4),
            (10_000, 4),
            (10_000, 4),
            (10_000, 2),
        ]
        assert plans[1].cut == ("log Z from 10,000 base draws instead of 20,000",)
        alone = Costs(base_draw=0.01)
        assert [within(Plan(500, 2), alone, budget).base_draws for budget in (391, 50, 1)] == [20_000, 2_500, 625]
        assert plan_from(plan_text(plans[-1])) == plans[-1]

    def test_metrics_keep_the_draws_that_they_need(self) -> None:
        assert within(ASKED, COSTS, 1, least_draws=900).num_samples == 1000

    def test_draws_are_not_cut_where_long_chains_take_all_the_time(self) -> None:
        found = within(ASKED, Costs(gebm_set=lambda draws: 100.0), 1)
        assert (found.longest, found.num_sets, found.num_samples) == (1, 3, 2000)

    def test_fewer_sets_than_the_least_are_left_alone(self) -> None:
        assert within(Plan(2000, 2), COSTS, 1).num_sets == 2

    def test_the_time_of_the_first_length_decides_again(self) -> None:
        ledger = Ledger(100.0)
        ledger.spent["sampling"] = 20.0
        costs = replace(COSTS, energies=0.0, score=0.0)
        assert after_sampling(ASKED, ledger, costs, 2000, 1.0) == ASKED
        ledger.spent["sampling"] = 40.0
        found = after_sampling(ASKED, ledger, costs, 2000, 1.0)
        assert found.longest == 2
        assert found.cut == ("chains are continued to 2x instead of 4x their length",)
        ledger.spent["sampling"] = 99.0
        assert after_sampling(ASKED, ledger, costs, 2000, 1.0).cut == ("chains are not continued",)
        assert after_sampling(ASKED, ledger, costs, 2000, 0.25) == ASKED  # only a quarter of the chains run on

    def test_a_plan_reaches_other_ranks(self) -> None:
        plan = within(ASKED, COSTS, 28)
        assert plan_from(plan_text(plan)) == plan

    def test_a_long_evaluation_is_announced(self) -> None:
        ledger = Ledger(60.0)
        ledger.estimated = COSTS.estimated(ASKED, 2000)
        text = "evaluation: all of it would take about 302 s (base 10 s, sampling 100 s"
        assert described(ledger).startswith(text)
        assert described(ledger).endswith("; the budget is 60 s")
        ledger.estimated = {"base": 1.0}
        assert described(ledger) == ""


class TestDefault:
    def test_a_third_of_the_training_time(self) -> None:
        assert default_budget(600.0) == pytest.approx(200.0)
        assert default_budget(3.0) == LEAST_BUDGET
        assert default_budget(None) is None

    @pytest.mark.parametrize("budget", [0, -1.0, float("nan"), float("inf"), True, "3"])
    def test_values_out_of_range(self, budget: Any) -> None:
        with pytest.raises(UsageError, match="budget must be a number of seconds above 0"):
            check_budget(budget)


def scored(budget: float | None, sampler: Any = None, **given: Any) -> Evaluation:
    rows = torch.randn(3000, 2, generator=stream(0, "data"))
    model = GEBM(IdentityBase(2), LinearEnergy(torch.tensor([0.3, 0.0])))
    sampling = SampleSettings(num_chains=50, warmup=10, steps=10, thin=1)
    settings = EvaluationSettings(1000, 5, budget=budget, **given)
    return score(model, HeldOut(rows), build_metrics(["sliced-wasserstein"]), sampler or Hmc(), sampling, settings)


@pytest.fixture(scope="module")
def whole() -> Evaluation:
    return scored(None)


@pytest.mark.filterwarnings("ignore:the chains have not mixed")
class TestEvaluations:
    def test_a_budget_that_is_ample_changes_no_figure(self, whole: Evaluation) -> None:
        found = scored(1e6)
        assert found.metrics == whole.metrics
        assert found.equilibrium == whole.equilibrium
        assert found.fit == whole.fit
        assert found.protocol == whole.protocol
        assert found.budget["seconds"] == 1e6
        assert found.budget["cut"] == []

    def test_estimates_change_no_figure(self, whole: Evaluation) -> None:
        found = scored(None, timed=False)
        assert found.metrics == whole.metrics
        assert found.budget["estimated"] is None

    def test_every_stage_is_estimated_and_counted(self, whole: Evaluation) -> None:
        stages = {"base", "sampling", "log_partition", "metrics", "equilibrium", "total"}
        assert set(whole.budget["estimated"]) == stages
        assert set(whole.budget["spent"]) == stages
        assert all(seconds >= 0 for seconds in whole.budget["estimated"].values())

    @pytest.mark.parametrize("sampler", [Hmc(), Sir(2)])
    def test_what_is_cut_is_said(self, sampler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        slow = Costs(base_set=100.0, gebm_set=lambda draws: draws / 10)
        monkeypatch.setattr("gebm_kit.engine.evaluation.planner.time_units", lambda *given, **more: slow)
        monkeypatch.setattr("gebm_kit.engine.evaluation.planner.with_sampling", lambda costs, *given, **more: costs)
        with pytest.warns(GebmKitWarning, match=r"within a budget of 20 s: .*500 draws in a set.*eval\.budget"):
            found = scored(20.0, sampler)
        assert found.protocol["sliced-wasserstein"]["samples"] == 500
        assert found.metrics["gebm"]["sliced-wasserstein"].n == 3
        assert found.metrics["data"]["sliced-wasserstein"].n == 3
        assert found.equilibrium.ratio is None
        assert found.equilibrium.reason == "the budget allows no more"
        assert found.budget["cut"] == [
            "chains are not continued", "3 draw sets instead of 5", "500 draws in a set instead of 1,000"
        ]  # fmt: skip

    def test_a_model_that_can_not_be_timed_is_evaluated_all_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*given: Any) -> Any:
            raise RuntimeError("no clock")

        monkeypatch.setattr(timing, "_time_model", broken)
        monkeypatch.setattr(timing, "_time_step", broken)
        found = scored(1e6)
        assert found.budget["estimated"]["sampling"] == 0.0
        assert found.budget["cut"] == []


def test_log_z_is_never_annealed_as_a_surprise(monkeypatch: pytest.MonkeyPatch) -> None:
    """A heavy tail of weights on a base without a density: the estimate is marked, with what would anneal."""
    monkeypatch.setattr(
        "gebm_kit.engine.likelihood.estimate_log_partition.anneal", lambda *given, **more: pytest.fail("annealed")
    )
    rows = torch.randn(400, 2, generator=stream(0, "data"))
    model = GEBM(IdentityBase(2), LinearEnergy(torch.tensor([6.0, 0.0])))
    sampling = SampleSettings(num_chains=50, warmup=10, steps=10, thin=1)
    settings = EvaluationSettings(50, 3, continues=False)
    with pytest.warns(GebmKitWarning, match=r"not to be trusted.*eval\.log_partition=smc"):
        found = score(model, HeldOut(rows), build_metrics(["sliced-wasserstein"]), Sir(4), sampling, settings)
    tree = found.fit.as_dict()["log_partition"]
    assert tree["method"] == "importance-sampling"
    assert tree["reliable"] is False
    assert "eval.log_partition=smc" in tree["reason"]


class OncePrepared:
    """A scorer whose first scoring also takes 100 ticks of a clock for what all sets share; every scoring takes one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ticks, self.scored = 0.0, 0
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.ticks)

    def values(self, name: str, metric: Any, rows: torch.Tensor, index: int) -> dict[str, float]:
        self.ticks += 1.0 if self.scored else 101.0
        self.scored += 1
        return {name: float(rows.sum())}


@pytest.mark.parametrize("sets", [0, 1, 2, 5])
def test_what_all_sets_share_is_no_cost_of_a_set(sets: int, monkeypatch: pytest.MonkeyPatch) -> None:
    floor = [torch.full((2, 1), float(index)) for index in range(sets)]
    scorer = OncePrepared(monkeypatch)
    metrics = build_metrics(["mmd"])
    seconds, first, known = timing.time_scores(metrics, scorer, floor, lambda report: None)  # type: ignore[arg-type]
    assert (seconds, first) == ((1.0, 1.0) if sets else (0.0, 0.0))
    assert known == {("mmd", "data", index): {"mmd": 2.0 * index} for index in range(min(sets, 2))}
