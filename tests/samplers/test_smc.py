"""Tests of sequential Monte Carlo beyond the properties that all samplers share."""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import gebm_kit as gk
from gebm_kit.core.errors import UsageError
from gebm_kit.core.estimators import effective_sample_size
from gebm_kit.core.interfaces import Energy
from gebm_kit.core.model import LatentPotential
from gebm_kit.core.progress import GebmKitWarning
from gebm_kit.core.resampling import systematic
from gebm_kit.samplers.smc import Smc, SmcState
from gebm_kit.testing import Target, estimates
from gebm_kit.testing.statistics import ALPHA, confirmed, disagreement, t_p_value
from gebm_kit.testing.targets import IdentityBase, WalledEnergy, banana, linear_gaussian, prior_only, two_modes


def population(sampler: Smc, target: Target, num_chains: int, seed: int) -> SmcState:
    """Return a finished population."""
    generator = torch.Generator().manual_seed(seed)
    with target.potential() as potential:
        z = torch.randn(num_chains, target.point.shape[0], generator=generator, dtype=torch.float64)
        state = sampler.init(z, potential, generator)
        while not bool(sampler.finished(state)):
            state, _ = sampler.step(state, potential, generator)
    return state


# --- the log-partition ---------------------------------------------------------------------------------------------------


def z_hat_is_biased(sampler: Smc, seed: int, num: int = 500) -> dict[str, float]:
    """Return the failed t-test of the mean of exp(A_hat - A) over populations of only 16; it detects an error of 8 %."""
    target = linear_gaussian(2, stiffness=10.0)
    estimates = [
        float(sampler.log_partition(population(sampler, target, 16, num * seed + index))) for index in range(num)
    ]
    p = t_p_value((torch.tensor(estimates, dtype=torch.float64) - target.log_partition).exp(), 1.0)
    return {"partition": p} if p < ALPHA else {}


FIXED: dict[str, Any] = {"num_rungs": 3, "num_moves": 1, "num_leapfrog": 2, "final_rounds": 0}


@pytest.mark.parametrize("ladder", ["equal", "geometric"])
def test_z_is_unbiased_on_a_fixed_ladder(ladder) -> None:
    assert not confirmed(functools.partial(z_hat_is_biased, Smc(ladder=ladder, **FIXED)))


class WeightsAfterMoves(Smc):
    """SMC that weights particles by where they are after the moves instead of where they were when the level rose."""

    def step(self, state: Any, potential: Any, generator: torch.Generator) -> Any:
        new, info = super().step(state, potential, generator)
        log_weights = -(new.level - state.level) * new.value
        return new._replace(log_mass=state.log_mass + log_weights.logsumexp(0) - math.log(len(log_weights))), info


def test_weights_taken_after_the_moves_are_caught() -> None:
    assert confirmed(functools.partial(z_hat_is_biased, WeightsAfterMoves(ladder="equal", **FIXED), num=100))


def test_forgotten_resampling_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without resampling the weights are lost, and neither the draws nor Z are right."""
    monkeypatch.setattr("gebm_kit.samplers.smc.systematic", lambda log_weights, *rest: torch.arange(len(log_weights)))
    sampler = Smc(ladder="equal", num_rungs=10, num_moves=1, num_leapfrog=1, final_rounds=0)
    failures = confirmed(functools.partial(estimates, sampler, linear_gaussian()))
    assert "partition" in failures
    assert len(failures) > 1


@pytest.mark.filterwarnings("ignore:equipartition")  # a wall has a boundary term
def test_points_without_an_energy_have_weight_zero() -> None:
    """E[exp(-|x|²/2); x_1 <= 1] = Phi(sqrt 2) / 2."""
    model = gk.GEBM(IdentityBase(2), WalledEnergy(math.nan))
    with pytest.warns(GebmKitWarning, match="not finite"):
        draws = gk.sample(model, Smc(), num_samples=3000, num_chains=300)
    assert float(draws.z[:, 0].max()) <= 1
    found = draws.diagnostics
    assert abs(found.log_partition - math.log((1 + math.erf(1)) / 4)) < 5 * found.log_partition_se
    assert 0 < found.log_partition_se < 0.05


# --- ladder and moves ----------------------------------------------------------------------------------------------------


def levels(sampler: Smc, target: Target, num_chains: int = 400) -> tuple[list[float], list[float]]:
    """Return the levels of the ladder and the effective share at each rung."""
    generator, found, shares = torch.Generator().manual_seed(0), [], []
    with target.potential() as potential:
        z = torch.randn(num_chains, target.point.shape[0], generator=generator, dtype=torch.float64)
        state = sampler.init(z, potential, generator)
        while float(state.level) < 1:
            before = state
            state, _ = sampler.step(state, potential, generator)
            rise = state.level - before.level
            shares.append(float(effective_sample_size(-rise * before.value)) / num_chains)
            assert float(state.ess) == pytest.approx(shares[-1])
            found.append(float(state.level))
    assert int(state.rungs) == len(found)
    return found, shares


def test_fixed_ladders_have_the_levels_they_say() -> None:
    equal, _ = levels(Smc(ladder="equal", num_rungs=4), banana())
    assert equal == pytest.approx([0.25, 0.5, 0.75, 1])
    geometric, _ = levels(Smc(ladder="geometric", num_rungs=4), banana())
    assert geometric == pytest.approx([0.001, 0.01, 0.1, 1])
    assert equal[-1] == geometric[-1] == 1


@pytest.mark.parametrize("share", [0.51, 0.9])
def test_each_rung_of_the_adaptive_ladder_leaves_the_share_it_says(share: float) -> None:
    found, shares = levels(Smc(ess_target=share), linear_gaussian())
    assert shares[:-1] == pytest.approx([share] * (len(shares) - 1), abs=1e-3)
    assert shares[-1] >= share - 1e-3
    assert len(found) >= 3
    assert found[-1] == 1


def test_a_flat_tilt_is_climbed_in_one_rung_without_resampling() -> None:
    sampler, target = Smc(final_rounds=2), prior_only(3)
    state = population(sampler, target, 500, 0)
    assert int(state.rungs) == 1
    assert float(sampler.log_partition(state)) == pytest.approx(0, abs=1e-12)
    assert float(sampler.summary(state)["effective_size"]) == pytest.approx(500)


def test_a_wild_tilt_is_climbed_in_small_steps() -> None:
    """The first rungs of a tilt that spans 10^9 nats are as narrow as necessary."""
    found, shares = levels(Smc(num_moves=1, num_leapfrog=1), linear_gaussian(1, stiffness=1e9), 100)
    assert found[0] < 1e-6
    assert min(shares) > 0.69


@pytest.mark.parametrize("ladder", ["adaptive", "equal"])
def test_the_moves_leave_every_level_as_it_is(ladder) -> None:
    """Exact draws of a target, and of the prior itself (beta = 0), stay exact."""
    sampler = Smc(ladder=ladder)

    def failures(seed: int, level: float) -> dict[str, float]:
        target, generator = linear_gaussian(), torch.Generator().manual_seed(seed)
        with target.potential() as potential:
            start = target.exact(4000, generator) if level else torch.randn(4000, 4, generator=generator).double()
            there = potential if level else potential.at(0.0)
            at_the_top = {"level": torch.tensor(1.0).double(), "rungs": torch.tensor(sampler.num_rungs)}
            state = sampler.init(start, there, generator)._replace(**at_the_top)
            for _ in range(20):
                state, _ = sampler.step(state, there, generator)
        return disagreement(state.position, target if level else prior_only(4))

    for level in (1.0, 0.0):
        assert not confirmed(functools.partial(failures, level=level))


def test_final_rounds_resample_nobody() -> None:
    sampler, target, generator = Smc(final_rounds=3), banana(), torch.Generator().manual_seed(0)
    with target.potential() as potential:
        state = sampler.init(torch.randn(64, 2, generator=generator).double(), potential, generator)
        while float(state.level) < 1:
            state, _ = sampler.step(state, potential, generator)
        arrived = state
        for done in range(3):
            assert bool(sampler.finished(state)) is False
            state, _ = sampler.step(state, potential, generator)
            assert int(state.rounds) == done + 1
    assert bool(sampler.finished(state))
    assert torch.equal(state.ancestor, arrived.ancestor)
    assert float(state.log_mass) == float(arrived.log_mass)
    summary = sampler.summary(state)
    counts = state.ancestor.bincount().double()
    assert int(summary["ancestors"]) == len(state.ancestor.unique()) < 64
    assert float(summary["effective_size"]) == pytest.approx(64**2 / float(counts.square().sum()))


def test_step_sizes_follow_the_acceptance() -> None:
    """A thin bent ridge, which no diagonal preconditioner straightens, gets smaller steps than a thick one."""
    sizes = {}
    for thickness in (0.3, 0.02):
        target, sampler, generator = banana(thickness=thickness), Smc(), torch.Generator().manual_seed(0)
        with target.potential() as potential:
            state = sampler.init(torch.randn(500, 2, generator=generator).double(), potential, generator)
            while not bool(sampler.finished(state)):
                state, info = sampler.step(state, potential, generator)
        sizes[thickness] = float(state.step_size)
        assert float(info.acceptance.mean()) > 0.5
    assert float(info.acceptance.mean()) < 0.9
    assert sizes[0.02] < 0.5 * sizes[0.3]


# --- estimates -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ladder", ["equal", "geometric"])
def test_estimates_are_right_on_fixed_ladders(ladder) -> None:
    sampler = Smc(ladder=ladder, num_rungs=10, num_moves=1, num_leapfrog=4)
    assert not confirmed(functools.partial(estimates, sampler, banana(), num_islands=20))


def test_a_narrow_target_is_reached_with_the_defaults() -> None:
    """The curvature is 4,000, as with a large beta."""
    assert not confirmed(
        functools.partial(estimates, Smc(), linear_gaussian(stiffness=4000.0), num_islands=12, num_chains=200)
    )


class UnequalModesEnergy(Energy):
    """The energy of ``q = w N(a, I) + (1 - w) N(-a, I)`` over a standard normal base; A = 0."""

    def __init__(self, centre: Tensor, weight: float) -> None:
        super().__init__()
        self.register_buffer("centre", centre)
        self.log_weights = math.log(weight), math.log1p(-weight)

    def forward(self, x: Tensor) -> Tensor:
        along = x @ self.centre
        heavy, light = self.log_weights
        return 0.5 * self.centre.square().sum() - torch.logaddexp(heavy + along, light - along)


def test_two_far_modes_are_occupied_as_they_should_be_where_mala_fails_and_says_so() -> None:
    """Four fifths of the mass lie 12 standard deviations from the rest.

    From the prior mala's chains go to the nearer mode and stay there. Its diagnostics say that they have not mixed.
    """
    weight, centre = 0.8, torch.tensor([6.0, 0.0])
    model = gk.GEBM(IdentityBase(2), UnequalModesEnergy(centre, weight))
    with pytest.warns(GebmKitWarning, match="not mixed|remember where they started"):
        stuck = gk.sample(model, "mala", num_samples=500, num_chains=500, warmup=100, steps=100)
    assert not stuck.diagnostics.converged
    assert abs(float((stuck.z[:, 0] > 0).double().mean()) - weight) > 0.15

    def failures(seed: int) -> dict[str, float]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GebmKitWarning)  # modes this far apart leave few ancestors
            draws = gk.sample(model, Smc(), num_samples=6000, num_chains=200, seed=seed)
        shares = (draws.z[:, 0] > 0).double().view(30, 200).mean(1)
        assert float(shares.std()) < 0.25
        p_values = {
            "occupancy": t_p_value(shares, weight),
            "within": t_p_value((draws.z[:, 0].abs() - 6).double().view(30, 200).mean(1), 0.0),
        }
        assert abs(draws.diagnostics.log_partition) < 6 * draws.diagnostics.log_partition_se
        return {name: p for name, p in p_values.items() if p < ALPHA}

    assert not confirmed(failures)


@pytest.mark.parametrize(
    "arguments",
    [
        {"ess_target": 0.5}, {"ess_target": 0.95}, {"num_moves": 0}, {"num_leapfrog": 0}, {"final_rounds": -1},
        {"num_rungs": 1}, {"ladder": "steep"},
    ],
)  # fmt: skip
def test_bad_arguments(arguments: dict) -> None:
    with pytest.raises(UsageError, match=next(iter(arguments))):
        Smc(**arguments)


def test_systematic_resampling_copies_each_row_as_often_as_its_share_says() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(1000, generator=generator).double()
    weights[:100] = 0
    for _ in range(5):
        counts = systematic(weights.log(), generator).bincount(minlength=1000)
        expected = 1000 * weights / weights.sum()
        assert bool(((counts - expected).abs() < 1 + 1e-9).all())
        assert int(counts[:100].sum()) == 0
    assert torch.equal(systematic(torch.zeros(1000), generator), torch.arange(1000))
    mean = (
        torch.stack([systematic(weights.log(), generator).bincount(minlength=1000) for _ in range(500)])
        .double()
        .mean(0)
    )
    assert float((mean - expected).abs().max()) < 0.15


def test_plain_potentials_are_read_as_prior_and_tilt() -> None:
    from gebm_kit.testing.targets import PlainPotential

    target, ends = two_modes(), []
    with target.potential() as split:
        for potential in (split, PlainPotential(split)):
            assert isinstance(split, LatentPotential)
            generator = torch.Generator().manual_seed(0)
            state = Smc().init(torch.randn(64, 2, generator=generator).double(), potential, generator)
            for _ in range(3):
                state, _ = Smc().step(state, potential, generator)
            ends.append(state.position)
    torch.testing.assert_close(*ends)
