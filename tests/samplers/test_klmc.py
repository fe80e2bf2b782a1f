"""Tests of kinetic Langevin: its bias, its equations, and what it does where the integrator explodes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Info, Potential
from gebm_kit.samplers.klmc import Klmc, KlmcState
from gebm_kit.testing.statistics import ALPHA, confirmed, z_p_value
from gebm_kit.testing.targets import linear_gaussian, prior_only


class TextbookKlmc(Klmc):
    """BAOAB line by line in momenta p ~ N(0, s^-2). When ``wrong``, the noise is that of half the time.

    That is sqrt(1 - exp(-gamma h)).
    """

    def __init__(self, step_size: float, friction: float = 1.0, wrong: bool = False) -> None:
        super().__init__(step_size, friction)
        self.wrong = wrong

    def step(self, state: Any, potential: Potential, generator: torch.Generator) -> tuple[Any, Info]:
        h, gamma = self.step_size, self.friction
        s = torch.ones((), dtype=state.position.dtype) if self.inverse_mass is None else self.inverse_mass.sqrt()
        z, value, grad, p = state
        noise = torch.randn(z.shape, generator=generator, dtype=z.dtype) / s
        p = p / s - h / 2 * grad
        z = z + h / 2 * s**2 * p
        p = math.exp(-gamma * h) * p + math.sqrt(1 - math.exp(-(1 if self.wrong else 2) * gamma * h)) * noise
        z = z + h / 2 * s**2 * p
        value, grad = potential.value_and_grad(z)
        p = p - h / 2 * grad
        moved = torch.ones_like(value, dtype=torch.bool)
        return KlmcState(z, value, grad, s * p), Info(moved.double(), moved, ~moved, grad_evals=1)


def _bias(sampler: Klmc, step_size: float, seed: int) -> dict[str, float]:
    """Return the failed tests of the stationary variances on unit oscillators, which are 1 for z and 1 - h²/4 for p."""
    target, generator = prior_only(3), torch.Generator().manual_seed(seed)
    expected = {"position": 1.0, "momentum": 1 - step_size**2 / 4}
    with target.potential() as potential:
        state = sampler.init(target.exact(20_000, generator), potential, generator)
        state = state._replace(momentum=math.sqrt(expected["momentum"]) * state.momentum)
        for _ in range(30):
            state, _ = sampler.step(state, potential, generator)
    found = {name: float(getattr(state, name).square().mean()) / variance for name, variance in expected.items()}
    p_values = {name: z_p_value((ratio - 1) * math.sqrt(3 * 20_000 / 2)) for name, ratio in found.items()}
    return {name: p for name, p in p_values.items() if p < ALPHA}


@pytest.mark.parametrize("step_size", [0.5, 1.5])
def test_it_shows_its_known_bias(step_size: float) -> None:
    assert not confirmed(lambda seed: _bias(Klmc(step_size), step_size, seed))


def test_the_bias_test_fails_a_wrong_noise() -> None:
    assert not confirmed(lambda seed: _bias(TextbookKlmc(0.5), 0.5, seed))
    assert confirmed(lambda seed: _bias(TextbookKlmc(0.5, wrong=True), 0.5, seed))


@pytest.mark.parametrize("mass", [None, [0.3, 1.7, 1.0, 0.05]])
def test_it_is_baoab(mass: list[float] | None) -> None:
    target, ends = linear_gaussian(), []
    for sampler in (Klmc(0.1, 0.7), TextbookKlmc(0.1, 0.7)):
        generator = torch.Generator().manual_seed(0)
        if mass is not None:
            sampler = sampler.tuned(inverse_mass=torch.tensor(mass, dtype=torch.float64))
        with target.potential() as potential:
            state = sampler.init(target.exact(50, generator), potential, generator)
            for _ in range(4):
                state, info = sampler.step(state, potential, generator)
                assert bool(info.accepted.all())
        ends.append(state)
    for ours, textbook in zip(*ends, strict=True):
        torch.testing.assert_close(ours, textbook, rtol=1e-10, atol=1e-10)


def test_shadow_work_vanishes_with_the_step() -> None:
    """The shadow work of a step is of third order in h."""
    target, means = linear_gaussian(), []
    for step_size in (0.04, 0.02):
        generator, sampler = torch.Generator().manual_seed(0), Klmc(step_size)
        with target.potential() as potential:
            state = sampler.init(target.exact(4000, generator), potential, generator)
            _, info = sampler.step(state, potential, generator)
        assert info.tuning is not None
        means.append(float(1 - info.tuning.mean()))
    assert 6 < means[0] / means[1] < 10


def test_an_exploding_step_is_refused_and_turns_the_momentum_round() -> None:
    target, generator = linear_gaussian(), torch.Generator().manual_seed(0)
    with target.potential() as potential:
        before = Klmc().init(target.exact(2000, generator), potential, generator)
        after, info = Klmc(step_size=1.0).step(before, potential, generator)
    refused: Tensor = ~info.accepted
    assert 0.1 < float(refused.double().mean()) < 0.99
    assert bool((info.diverged <= refused).all())
    for name in ("position", "value", "grad"):
        assert torch.equal(getattr(after, name)[refused], getattr(before, name)[refused])
    assert torch.equal(after.momentum[refused], -before.momentum[refused])


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_bad_friction(value: float) -> None:
    with pytest.raises(UsageError, match="friction must be a number > 0"):
        Klmc(friction=value)
