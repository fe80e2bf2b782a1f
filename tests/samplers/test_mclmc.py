"""Tests of unadjusted microcanonical Langevin: its bias, the aim of its warm-up, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gebm_kit.core import microcanonical
from gebm_kit.core.errors import UsageError
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.engine.sampling.warmup import warm_up
from gebm_kit.samplers.mclmc import Mclmc
from gebm_kit.testing.statistics import confirmed
from gebm_kit.testing.targets import IdentityBase, WalledEnergy, linear_gaussian, prior_only

CHAINS, DIM = 20_000, 5


def _variance_error(sampler: Mclmc, seed: int) -> float:
    """Return the error of the stationary variance on a standard normal; about 0.001 of it is noise."""
    target, generator, found = prior_only(DIM), torch.Generator().manual_seed(seed), []
    with target.potential() as potential:
        state = sampler.init(target.exact(CHAINS, generator), potential, generator)
        for step in range(40):
            state, _ = sampler.step(state, potential, generator)
            if step >= 10:
                found.append(float(state.position.square().mean()))
    return sum(found) / len(found) - 1


def _order(seed: int) -> dict[str, float]:
    coarse, fine = (_variance_error(Mclmc(h), seed) for h in (1.6, 0.8))
    # halving the step quarters an error of second order; at these steps there is a part of fourth order too
    return {} if coarse < -0.04 and 3 < coarse / fine < 12 else {"coarse": coarse, "fine": fine}


def test_its_bias_is_of_second_order() -> None:
    assert not confirmed(_order)


def test_the_bias_test_fails_a_wrong_kick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kicks with 1/d instead of 1/(d - 1) sample exp(-U (d - 1)/d) for every step."""
    right = microcanonical.kick

    def weak(direction: Tensor, force: Tensor, time: Tensor) -> microcanonical.Kick:
        return right(direction, force * (DIM - 1) / DIM, time)

    monkeypatch.setattr(microcanonical, "kick", weak)
    assert confirmed(_order)


def test_tuned_it_has_the_moments_of_a_gaussian() -> None:
    """The tuned sampler's moments are within 5 %, and the energy error has the required variance."""
    target, generator = linear_gaussian(), torch.Generator().manual_seed(0)
    with target.potential() as potential:
        state = Mclmc().init(torch.randn(1000, 4, generator=generator, dtype=torch.float64), potential, generator)
        warm = warm_up(Mclmc(), state, potential, generator, 150)
        sampler, state = warm.sampler, warm.state
        assert isinstance(sampler, Mclmc)
        draws, surprises = [], []
        for _ in range(100):
            state, info = sampler.step(state, potential, generator)
            draws.append(state.position)
            surprises.append(20 * (1 - info.tuning).mean())
    z, exact = torch.cat(draws), target.exact(200_000, generator)
    torch.testing.assert_close(z.var(0), exact.var(0), rtol=0.05, atol=0)
    assert float(((z.mean(0) - exact.mean(0)) / exact.std(0)).abs().max()) < 0.05
    assert float(torch.stack(surprises).mean()) == pytest.approx(1, abs=0.4)
    assert 0.5 < sampler.decoherence_length < 20


def test_the_energy_error_is_of_third_order_in_a_step() -> None:
    """The square of the energy error, which tunes the step, therefore grows with the sixth power."""
    target, squares = linear_gaussian(), []
    for step_size in (0.04, 0.02):
        generator, sampler = torch.Generator().manual_seed(0), Mclmc(step_size)
        with target.potential() as potential:
            state = sampler.init(target.exact(4000, generator), potential, generator)
            _, info = sampler.step(state, potential, generator)
        assert info.tuning is not None
        assert float(info.tuning.min()) > 0  # no error was cut
        squares.append(float(1 - info.tuning.mean()))
    assert 48 < squares[0] / squares[1] < 80


def test_a_divergence_stays_and_turns_elsewhere() -> None:
    potential = LatentPotential(GEBM(IdentityBase(2), WalledEnergy(math.nan)))
    generator, sampler = torch.Generator().manual_seed(0), Mclmc(step_size=0.5)
    before = sampler.init(torch.full((200, 2), 0.9, dtype=torch.float64), potential, generator)
    after, info = sampler.step(before, potential, generator)
    lost = info.diverged
    assert 0.1 < float(lost.double().mean()) < 0.9
    assert torch.equal(lost, ~info.accepted)
    for name in ("position", "value", "grad"):
        assert torch.equal(getattr(after, name)[lost], getattr(before, name)[lost])
    assert bool((after.direction - before.direction).norm(dim=1).gt(1e-6).all())
    assert info.tuning is not None
    assert bool((info.tuning[lost] == 0).all())


@pytest.mark.parametrize("name", ["decoherence_length", "energy_variance"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, None])
def test_bad_arguments(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{name} must be a number > 0"):
        Mclmc(**{name: value})


def test_one_dimension_is_refused() -> None:
    target = prior_only(1)
    with target.potential() as potential, pytest.raises(UsageError, match="Mclmc needs a latent space of at least 2"):
        Mclmc().init(torch.zeros(3, 1, dtype=torch.float64), potential, torch.Generator())
