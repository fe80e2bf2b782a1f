"""The sampler auto: what the pilot predicts, what is chosen, when draws are accepted, and what happens when they are not."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import gebm_kit as gk
from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Energy, SamplerDirective
from gebm_kit.core.model import GEBM
from gebm_kit.core.progress import GebmKitWarning
from gebm_kit.engine.evaluation.draw_sets import gebm_sets
from gebm_kit.engine.sampling import auto as auto_engine
from gebm_kit.engine.sampling.attempt_tests import judged
from gebm_kit.engine.sampling.auto import Attempt, Bounds, Choice, choose, settle
from gebm_kit.engine.sampling.diagnostics import Diagnostics
from gebm_kit.engine.sampling.forecasts import DOUBT, FEWEST_STEPS, Forecast, forecasts, shortened
from gebm_kit.engine.sampling.interfaces import Counts
from gebm_kit.engine.sampling.pilot import Pilot, candidates_stay, independence_stays, take_pilot
from gebm_kit.engine.sampling.settings import SampleSettings
from gebm_kit.engine.sampling.shards import load_draws
from gebm_kit.samplers.auto import Auto
from gebm_kit.samplers.hmc import Hmc
from gebm_kit.samplers.imh import Imh
from gebm_kit.testing.statistics import confirmed, disagreement
from gebm_kit.testing.targets import IdentityBase, linear_gaussian, tilted_sphere, tilted_uniform

ASKED = SampleSettings(num_samples=400, num_chains=100, warmup=60, steps=40, seed=3)
CPU = torch.device("cpu")


class Slope(Energy):
    """``a · x`` with a = (a, 0, ...): the model is the prior moved by a."""

    def __init__(self, a: float) -> None:
        super().__init__()
        self.a = a

    def forward(self, x: Tensor) -> Tensor:
        return self.a * x[:, 0]


class Bowl(Energy):
    """A narrow bowl far from most base draws."""

    def forward(self, x: Tensor) -> Tensor:
        return 50 * (x - 1.5).square().sum(1)


class Flat(Energy):
    def forward(self, x: Tensor) -> Tensor:
        return 0.0 * x.sum(1)


class Steps(Energy):
    """An energy without a gradient, whose mass base draws rarely reach."""

    def forward(self, x: Tensor) -> Tensor:
        return (20 * (x - 1.5)).round().square().sum(1) / 20


class TwoWells(Energy):
    """Two narrow wells so far apart that no trajectory crosses."""

    def forward(self, x: Tensor) -> Tensor:
        low, high = ((x - c).square().sum(1) * 150 for c in (-2.0, 2.0))
        return -torch.logaddexp(-low, -high)


class Everywhere(Energy):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(x[:, 0], self.value)


class HalfSpace(Energy):
    def __init__(self, beyond: float) -> None:
        super().__init__()
        self.beyond = beyond

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x[:, 0] > 0, 0.5 * x.square().sum(1), self.beyond)


def model(energy: Energy, latent_dim: int = 4) -> GEBM:
    return GEBM(IdentityBase(latent_dim), energy)


def pilot_of(log_weights: Tensor, **changes: Any) -> Pilot:
    known = {"potential": -log_weights, "has_gradient": True, "device": "cpu", "latent_dim": 4, "spent": Counts()}
    return Pilot(log_weights.double(), **{**known, **changes})


def lognormal(sigma: float, num: int = 2000) -> Pilot:
    return pilot_of(sigma * torch.randn(num, generator=torch.Generator().manual_seed(0), dtype=torch.float64))


def chosen(energy: Energy, settings: SampleSettings = ASKED, **options: Any) -> str:
    return choose(model(energy), Auto(), settings, **options).ranked[0].name


# --- what the weights say --------------------------------------------------------------------------------------------


def test_the_predicted_acceptance_is_that_of_the_chain_on_the_pilots_weights() -> None:
    pilot = lognormal(1.0, 300)
    w = pilot.log_weights.exp()
    leaves = torch.minimum(w.unsqueeze(0) / w.unsqueeze(1), torch.tensor(1.0)).mean(1)
    p = w / w.sum()
    assert independence_stays(pilot).acceptance == pytest.approx(float((p * leaves).sum()))
    time = float((p * (2 - leaves) / leaves).sum())
    assert independence_stays(pilot).autocorrelation_time == pytest.approx(time)


def test_the_predicted_time_is_that_of_simulated_chains() -> None:
    """Chains on the pilot's own weights, and a function of the state that has nothing to do with its weight."""
    pilot, generator = lognormal(1.0), torch.Generator().manual_seed(1)
    value = torch.randn(pilot.size, generator=generator, dtype=torch.float64)
    p = pilot.log_weights.softmax(0)
    at = torch.multinomial(p, 4000, replacement=True, generator=generator)
    total = torch.zeros(4000, dtype=torch.float64)
    for _ in range(400):
        other = torch.randint(pilot.size, (4000,), generator=generator)
        log_ratio = pilot.log_weights[other] - pilot.log_weights[at]
        at = torch.where(torch.rand(4000, generator=generator).log() < log_ratio, other, at)
        total += value[at]
    spread = float(total.var()) / 400
    variance = float((p * value.square()).sum() - (p * value).sum().square())
    assert independence_stays(pilot).autocorrelation_time == pytest.approx(spread / variance, rel=0.15)


def test_more_candidates_leave_sooner_and_heavier_weights_later() -> None:
    times = [candidates_stay(lognormal(1.0), num).autocorrelation_time for num in (2, 8, 32)]
    assert times == sorted(times, reverse=True)
    spread = [independence_stays(lognormal(sigma)).autocorrelation_time for sigma in (0.1, 0.5, 1.0, 1.5)]
    assert spread == sorted(spread)


def test_equal_weights_make_every_draw_independent() -> None:
    stays = independence_stays(pilot_of(torch.zeros(1000)))
    assert (stays.acceptance, stays.autocorrelation_time) == (pytest.approx(1), pytest.approx(1))
    assert stays.forgets(0.01, 100) == 0


# --- the choice ------------------------------------------------------------------------------------------------------


def test_a_model_near_its_base_is_drawn_by_jumps() -> None:
    assert chosen(Slope(0.5)) == "imh"
    assert chosen(Flat()) == "imh"
    assert chosen(Bowl(), replace(ASKED, inverse_temperature=0)) == "imh"


def test_a_model_far_from_its_base_is_drawn_along_the_gradient() -> None:
    found = choose(model(Bowl()), Auto(), ASKED)
    assert found.ranked[0].name in ("hmc", "chees")
    assert not {"imh", "isir", "sir"} & {forecast.name for forecast in found.ranked}
    assert "too few for global moves" in found.reason


def test_a_single_draw_is_cheapest_by_importance_resampling() -> None:
    assert chosen(Slope(0.5), replace(ASKED, num_samples=1)) == "sir"


def heavy_tailed(k: float, num: int = 8000) -> Pilot:
    """Weights of about 1 with a Pareto tail of shape k, which holds a 25th of them."""
    u = torch.rand(num, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return pilot_of(torch.where(u < 0.04, -k * (25 * u).log(), -0.1 * u))


def test_a_doubtful_pilot_is_tried_where_that_costs_little() -> None:
    """Between k = 0.7 and 1, and never by `sir`, which no test of chains checks."""
    names = [[f.name for f in forecasts(heavy_tailed(k), model(Slope(0)), ASKED, Auto())] for k in (0.4, 0.74, 1.5)]
    assert "sir" in names[0]
    assert names[1][0] in ("imh", "isir")
    assert "sir" not in names[1]
    assert not {"imh", "isir", "sir"} & set(names[2])
    pilot = heavy_tailed(0.74)
    ranked = tuple(forecasts(pilot, model(Slope(0)), ASKED, Auto()))
    assert "which leaves doubt: it is tried because it costs so much less" in Choice(pilot, ranked).reason
    dear = [f for f in ranked if f.name in ("imh", "isir")]
    cheap = [f for f in ranked if f.name in ("hmc", "chees")]
    assert all(DOUBT * f.cost_a_draw <= cheap[0].cost_a_draw for f in dear[:1])


def test_within_a_time_no_sampler_is_chosen_whose_steps_may_grow() -> None:
    names = [f.name for f in choose(model(Bowl()), Auto(), ASKED, steady=True).ranked]
    assert names[0] == "hmc"
    assert "chees" not in names
    assert choose(model(Bowl()), Auto(candidates=("chees",)), ASKED, steady=True).ranked[0].name == "hmc"


def test_after_a_doubtful_trial_the_gradient_is_followed() -> None:
    made: list[str] = []

    def attempt(sampler: Any, settings: SampleSettings) -> Attempt[None]:
        made.append(type(sampler).__name__.lower())
        return Attempt(None, diagnosed(1.5 if len(made) == 1 else 1.01))

    found = settle(model(Slope(0.5)), Auto(), ASKED, attempt, pilot=heavy_tailed(0.74))
    assert made[0] in ("imh", "isir")
    assert made[1] in ("hmc", "chees")
    assert found.diagnostics.unsettled is None


def test_chains_are_as_many_as_give_the_draws() -> None:
    """A chain's warm-up costs more than further steps, so few chains do where they give enough draws."""
    many = replace(ASKED, num_samples=2000, num_chains=1000)
    found = choose(model(Bowl()), Auto(candidates=("hmc",)), many).ranked[0]
    assert found.settings.num_chains < 1000
    assert found.settings.num_chains >= 64
    assert found.effective >= 2000
    few = choose(model(Bowl()), Auto(candidates=("hmc",)), replace(many, num_chains=8)).ranked[0]
    assert few.settings.num_chains == 8


def test_few_chains_take_several_candidates_at_once() -> None:
    assert chosen(Slope(0.5), replace(ASKED, num_chains=1, num_samples=200)) == "isir"


def test_an_energy_without_gradient_is_not_followed() -> None:
    assert chosen(Steps()) == "elliptical"


def test_chains_from_given_points_are_chains() -> None:
    assert chosen(Slope(0.5), replace(ASKED, num_samples=1), chains_only=True) in ("imh", "isir")


def test_only_candidates_are_chosen() -> None:
    for name in ("hmc", "smc", "isir"):
        found = choose(model(Slope(0.5)), Auto(candidates=(name,)), ASKED)
        assert {forecast.name for forecast in found.ranked} == {name}


def test_the_forecasts_are_sorted_and_a_heavier_tail_costs_more() -> None:
    light, heavy = (forecasts(lognormal(s), model(Slope(0)), ASKED, Auto()) for s in (0.3, 1.0))
    assert [f.cost_a_draw for f in light] == sorted(f.cost_a_draw for f in light)
    assert heavy[0].cost_a_draw > light[0].cost_a_draw


@pytest.mark.parametrize("target", [tilted_uniform(), tilted_sphere()], ids=lambda t: t.name)
def test_other_priors_are_served(target: Any) -> None:
    draws = gk.sample(target.model, "auto", num_samples=600, num_chains=200, seed=1)
    assert draws.diagnostics.converged
    assert draws.sampler_reason


# --- the draws -------------------------------------------------------------------------------------------------------


def test_auto_is_the_default_and_says_why() -> None:
    draws = gk.sample(model(Slope(0.5)), num_samples=400, num_chains=100, seed=3)
    d = draws.diagnostics
    assert d.sampler == "imh"
    assert draws.sampler_reason == d.as_dict()["sampler_reason"]
    assert draws.sampler_reason.startswith("imh was chosen because an effective draw should cost ")
    assert "Pareto k" in draws.sampler_reason
    assert draws.sampler_reason.endswith(f"passed the tests, with R-hat {d.rhat_max:.3f}.")
    assert d.unsettled is None


def test_the_same_seed_gives_the_same_draws_and_reason() -> None:
    first, second = (gk.sample(model(Slope(0.5)), Auto(), num_samples=400, num_chains=100, seed=3) for _ in range(2))
    assert torch.equal(first.x, second.x)
    assert first.sampler_reason == second.sampler_reason


def test_a_named_sampler_has_no_reason() -> None:
    draws = gk.sample(model(Slope(0.5)), "hmc", num_samples=20, num_chains=20, warmup=20, steps=20)
    assert draws.sampler_reason is None
    assert draws.diagnostics.as_dict()["sampler_reason"] is None


def test_nothing_is_drawn_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The draws are those of the named sampler with the same settings, and the evaluations are theirs and the pilot's."""
    found = choose(model(Slope(0.5)), Auto(), ASKED)
    draws = gk.sample(model(Slope(0.5)), Auto(), **options(ASKED))
    named = gk.sample(model(Slope(0.5)), Imh(), **options(found.ranked[0].settings))
    assert torch.equal(draws.x, named.x)
    spent = found.pilot.spent
    assert draws.diagnostics.forward_evals == named.diagnostics.forward_evals + spent.forward_evals
    assert draws.diagnostics.grad_evals == named.diagnostics.grad_evals + spent.grad_evals


def options(settings: SampleSettings) -> dict[str, Any]:
    names = ("num_samples", "num_chains", "warmup", "steps", "thin", "inverse_temperature", "seed")
    return {name: getattr(settings, name) for name in names}


def gaussian_failures(seed: int) -> dict[str, Any]:
    target = linear_gaussian(latent_dim=2, stiffness=2.0)
    draws = gk.sample(
        target.model,
        "auto",
        num_samples=3000,
        num_chains=3000,
        seed=seed,
        inverse_temperature=target.inverse_temperature,
    )
    return disagreement(draws.z, target, alpha=1e-5)


def test_draws_of_a_gaussian_are_exact() -> None:
    assert not confirmed(gaussian_failures)


def test_a_wrong_kernel_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    step = Imh.step

    def greedy(self: Imh, state: Any, potential: Any, generator: torch.Generator) -> Any:
        new, info = step(self, state, potential, generator)
        lower = new.value < state.value
        keep = torch.where(lower.unsqueeze(1), new.position, state.position)
        return state._replace(position=keep, value=torch.where(lower, new.value, state.value)), info

    monkeypatch.setattr(Imh, "step", greedy)
    monkeypatch.setattr(auto_engine, "judged", lambda *arguments: auto_engine.Judgement("", 0.0))
    with pytest.warns(GebmKitWarning):
        assert confirmed(gaussian_failures)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_energy_that_is_finite_nowhere_is_an_error(value: float) -> None:
    with pytest.raises(UsageError, match="not finite at any of 1024 points drawn from the base"):
        gk.sample(model(Everywhere(value)), "auto", num_samples=20)


@pytest.mark.parametrize("beyond", [math.inf, math.nan, -math.inf])
@pytest.mark.filterwarnings("ignore::gebm_kit.core.progress.GebmKitWarning")
def test_walls_are_respected(beyond: float) -> None:
    draws = gk.sample(model(HalfSpace(beyond)), "auto", num_samples=400, num_chains=100)
    assert (draws.x[:, 0] > 0).all()
    assert draws.diagnostics.unsettled is None


@pytest.mark.parametrize(("num_samples", "num_chains"), [(1, 1), (1, 500), (3, 2), (60, 1)])
def test_few_draws_and_few_chains(num_samples: int, num_chains: int) -> None:
    draws = gk.sample(model(Slope(0.5)), "auto", num_samples=num_samples, num_chains=num_chains, warmup=0, steps=1)
    assert len(draws.x) == num_samples
    assert draws.diagnostics.unsettled is None


# --- escalation ------------------------------------------------------------------------------------------------------


def diagnosed(rhat: float, cost: int = 1000) -> Diagnostics:
    return Diagnostics(
        sampler="x", num_samples=400, num_chains=100, warmup_steps=60, steps=40, acceptance=0.5, divergences=0,
        rhat_max=rhat, ess_min=1000.0, ess_per_grad=1.0, grad_evals=0, forward_evals=cost, seconds=0.0,
        inverse_temperature=1.0, seed=3,
    )  # fmt: skip


def attempts(rhats: list[float], directive: SamplerDirective | None = None, **changes: Any) -> Any:
    """Return the search's end, and what was attempted, for attempts with these R-hats."""
    made: list[tuple[str, int, int]] = []

    def attempt(sampler: Any, settings: SampleSettings) -> Attempt[int]:
        made.append((type(sampler).__name__.lower(), settings.warmup, settings.steps))
        rhat = rhats[min(len(made), len(rhats)) - 1]
        return Attempt(len(made), diagnosed(rhat, 1000 * settings.steps // made[0][2]))

    found = settle(model(Bowl()), directive or Auto(candidates=("hmc",)), ASKED, attempt, **changes)
    return found, made


def test_a_first_attempt_that_holds_is_the_only_one() -> None:
    found, made = attempts([1.01])
    assert len(made) == 1
    assert found.result == 1


def test_steps_are_doubled_as_often_as_rhat_asks_for() -> None:
    found, made = attempts([1.08, 1.04])
    assert [steps // made[0][2] for _, _, steps in made] == [1, 4]
    assert [warmup // made[0][1] for _, warmup, _ in made] == [1, 4]
    assert found.result == 2
    assert "R-hat is 1.080 where at most 1.05 is wanted" in found.diagnostics.sampler_reason
    assert "passed the tests, with R-hat 1.040" in found.diagnostics.sampler_reason


def test_what_does_not_help_is_left_for_a_tempered_sampler() -> None:
    _, made = attempts([2.0, 2.0, 1.01])
    assert [name for name, _, _ in made] == ["hmc", "hmc", "smc"]
    found, made = attempts([2.0, 2.0, 2.0, 1.01], Auto(candidates=("hmc",), budget=1000))
    assert [name for name, _, _ in made] == ["hmc", "hmc", "smc", "pt"]
    assert found.diagnostics.unsettled is None


def test_seconds_end_the_search_and_are_named() -> None:
    for seconds, count in ((0.0, 1), (3600.0, 2), (None, 2)):
        found, made = attempts([2.0, 1.01], bounds=Bounds(seconds))
        assert len(made) == count
        assert (found.diagnostics.unsettled is None) == (count == 2)
    found, _ = attempts([2.0], bounds=Bounds(0.0))
    assert "the 0 s for it allow no more: raise `eval.budget`" in found.diagnostics.unsettled


def test_a_first_attempt_is_shortened_to_the_time_that_there_is() -> None:
    (_, warmup, steps), (_, shorter_warmup, shorter) = (
        attempts([1.01], bounds=bounds)[1][0] for bounds in (Bounds(100.0, 50.0), Bounds(10.0, 40.0))
    )
    assert shorter_warmup == warmup // 4
    assert shorter == pytest.approx(steps / 4, abs=1)
    found, made = attempts([2.0], bounds=Bounds(-3.0, 40.0))
    assert made[0][1:] == (0, FEWEST_STEPS)
    assert "raise `eval.budget`" in found.diagnostics.unsettled


def test_chains_that_are_shortened_keep_their_states() -> None:
    run = replace(ASKED, num_samples=1000, num_chains=100, warmup=40, steps=50, thin=5)
    found = shortened(Forecast("hmc", {}, run, 900.0, 100.0), 0.5)
    assert (found.settings.warmup, found.settings.total_steps, found.settings.thin) == (20, 25, 2)
    assert found.settings.kept == run.kept
    assert found.cost == pytest.approx(450)


def test_the_budget_ends_the_search_and_is_named() -> None:
    found, made = attempts([2.0], Auto(candidates=("hmc",), budget=0))
    assert len(made) == 1
    assert "did not converge" in found.diagnostics.sampler_reason
    assert "its budget is 0" in found.diagnostics.unsettled
    assert not found.diagnostics.converged
    assert found.diagnostics.unsettled in found.diagnostics.problems


def test_separate_wells_are_left_to_a_tempered_sampler() -> None:
    """hmc stays in the well where it started; the shares of the wells in the draws are right all the same."""
    draws = gk.sample(model(TwoWells(), 2), Auto(candidates=("hmc",)), num_samples=1000, num_chains=100, seed=1)
    assert draws.diagnostics.sampler in ("smc", "pt")
    share = float((draws.x[:, 0] > 0).double().mean())
    assert share == pytest.approx(0.5, abs=0.2)


def test_a_drift_of_the_energy_is_a_failure() -> None:
    trace = torch.randn(100, 50, 2, generator=torch.Generator().manual_seed(0))
    record = {"trace": trace}
    trusted = pilot_of(torch.zeros(1000), potential=torch.randn(1000, dtype=torch.float64))
    assert judged(diagnosed(1.01), [record], trusted, 1.05).held
    drifting = trace.clone()
    drifting[50:, :, -1] += 0.5
    assert "first half" in judged(diagnosed(1.01), [{"trace": drifting}], trusted, 1.05).problem
    away = trace.clone()
    away[..., -1] += 0.5
    assert "pilot's weighted draws" in judged(diagnosed(1.01), [{"trace": away}], trusted, 1.05).problem


def test_the_sets_of_an_evaluation_come_from_the_attempt_that_holds() -> None:
    found = gebm_sets(model(Slope(0.5)), Auto(), ASKED, 200, 3, CPU, lambda p: None)
    assert [len(x) for x in found.sets] == [200] * 3
    assert isinstance(found.sampler, Imh)
    assert found.diagnostics is not None
    assert found.diagnostics.sampler_reason


def test_a_directive_has_no_steps() -> None:
    with pytest.raises(UsageError, match="Auto chooses a sampler and is not one itself"):
        Auto().init(torch.zeros(2, 2), None, torch.Generator())


def test_a_pilot_is_the_same_for_the_same_seed() -> None:
    first, second = (take_pilot(model(Slope(0.5)), Auto(), ASKED, None) for _ in range(2))
    assert torch.equal(first.log_weights, second.log_weights)


# --- streamed draws --------------------------------------------------------------------------------------------------


def test_streamed_draws_record_what_was_chosen(tmp_path: Path) -> None:
    draws = gk.sample(model(Slope(0.5)), "auto", out=tmp_path / "draws", **options(ASKED))
    index = json.loads((tmp_path / "draws" / "index.json").read_text())
    assert index["request"]["sampler"]["name"] == index["request"]["auto"]["forecast"]["name"] == "imh"
    assert index["diagnostics"]["sampler_reason"] == draws.sampler_reason
    assert index["request"]["auto"]["reason"] == draws.sampler_reason
    again = gk.sample(model(Slope(0.5)), "auto", out=tmp_path / "draws", resume=True, **options(ASKED))
    assert again == draws


def test_an_interrupted_stream_goes_on_without_another_rehearsal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gebm_kit.engine.sampling import draw, draws_on_disk

    whole = gk.sample(model(Slope(0.5)), "auto", out=tmp_path / "whole", **options(ASKED)).load()
    add = draws_on_disk.Directory.add

    def stopping(self: Any, unit: Any, part: Any) -> None:
        add(self, unit, part)
        raise KeyboardInterrupt

    monkeypatch.setattr(draws_on_disk.Directory, "add", stopping)
    with pytest.raises(KeyboardInterrupt):
        gk.sample(model(Slope(0.5)), "auto", out=tmp_path / "draws", **options(ASKED))
    monkeypatch.setattr(draws_on_disk.Directory, "add", add)
    monkeypatch.setattr(draw, "settle", lambda *a, **k: pytest.fail("rehearsed again"))
    gk.sample(model(Slope(0.5)), "auto", out=tmp_path / "draws", resume=True, **options(ASKED))
    assert torch.equal(load_draws(tmp_path / "draws").x, whole.x)


def test_another_request_is_refused(tmp_path: Path) -> None:
    gk.sample(model(Slope(0.5)), "auto", out=tmp_path / "draws", **options(ASKED))
    with pytest.raises(UsageError, match="holds another sampling"):
        gk.sample(
            model(Slope(0.5)), "auto", out=tmp_path / "draws", resume=True, **options(replace(ASKED, num_samples=300))
        )
    with pytest.raises(UsageError, match="holds another sampling"):
        gk.sample(model(Slope(0.5)), Hmc(), out=tmp_path / "draws", resume=True, **options(ASKED))


def test_files_of_draws_keep_the_reason(tmp_path: Path) -> None:
    draws = gk.sample(model(Slope(0.5)), "auto", out=tmp_path / "draws.safetensors", **options(ASKED))
    assert load_draws(tmp_path / "draws.safetensors").sampler_reason == draws.sampler_reason
