"""Tests of the Metropolis-adjusted microcanonical sampler: its acceptance ratio, its trajectories and its tuning."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from gebm_kit.core.errors import UsageError
from gebm_kit.core.microcanonical import random_direction
from gebm_kit.engine.sampling.warmup import warm_up
from gebm_kit.samplers.mams import Mams
from gebm_kit.testing.targets import linear_gaussian, prior_only


@pytest.mark.parametrize("mass", [None, [0.3, 1.7, 1.0, 0.05]])
def test_it_is_that_of_the_mathematics(mass: list[float] | None) -> None:
    """Without jitter one step agrees with leapfrog written line by line, with kicks in hyperbolic functions."""
    target = linear_gaussian()
    sampler = Mams(step_size=0.1, trajectory_length=0.4, jitter=0.0)
    s = torch.ones(4, dtype=torch.float64)
    if mass is not None:
        s = torch.tensor(mass, dtype=torch.float64).sqrt()
        sampler = sampler.tuned(inverse_mass=s.square())
    with target.potential() as potential:
        z = target.exact(200, torch.Generator().manual_seed(1))
        state, info = sampler.step(sampler.init(z, potential, torch.Generator()), potential, _seeded())
        generator = _seeded()
        u, uniform = random_direction(z, generator), torch.rand(2, 200, generator=generator, dtype=torch.float64)
        end, work = z, -potential.value(z)
        for _ in range(4):
            for kick in (True, False, True):
                if kick:
                    g = s * potential.value_and_grad(end).grad
                    n, delta = g / g.norm(dim=1, keepdim=True), 2 / 3 * 0.05 * g.norm(dim=1, keepdim=True)
                    c = (u * n).sum(1, keepdim=True)
                    stretch = delta.cosh() - c * delta.sinh()
                    u = (u - (delta.sinh() - c * (delta.cosh() - 1)) * n) / stretch
                    work = work + 3 * stretch.log().squeeze(1)
                else:
                    end = end + 0.1 * 2 * s * u
        work = work + potential.value(end)
    acceptance = (-work).exp().clamp(max=1)
    accepted = uniform[1] < acceptance
    assert 0.2 < float(acceptance.mean()) < 0.999
    assert info.grad_evals == 4
    torch.testing.assert_close(info.acceptance, acceptance, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(state.position, torch.where(accepted[:, None], end, z), rtol=1e-10, atol=1e-10)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@pytest.mark.parametrize(
    ("step", "length", "most", "jitter", "expected"),
    [(0.2, 1.6, 32, 0.0, 8), (0.2, 1.6, 32, 0.5, 11), (0.2, 1.6, 6, 0.0, 6), (2.0, 0.1, 32, 0.0, 1)],
)
def test_number_of_steps(step: float, length: float, most: int, jitter: float, expected: int) -> None:
    sampler = Mams(step, length, most, jitter)
    target, generator = prior_only(3), torch.Generator().manual_seed(0)
    with target.potential() as potential:
        state = sampler.init(target.exact(10, generator), potential, generator)
        before = potential.grad_evals
        _, info = sampler.step(state, potential, generator)
        assert potential.grad_evals - before == 10 * info.grad_evals == 10 * expected


def test_jitter_differs_from_chain_to_chain() -> None:
    """Chains from one point in one direction travel distances that fill [1 - jitter, 1]."""
    target, generator = prior_only(2), torch.Generator().manual_seed(0)
    sampler = Mams(step_size=0.02, trajectory_length=0.01, jitter=0.5)
    with target.potential() as potential:
        before = sampler.init(torch.zeros(2000, 2, dtype=torch.float64), potential, generator)
        after, info = sampler.step(before, potential, generator)
    moved = (after.position - before.position).norm(dim=1)[info.accepted] / (0.02 * math.sqrt(2))
    assert 0.5 <= float(moved.min()) < 0.51
    assert 0.99 < float(moved.max()) <= 1
    assert float(moved.mean()) == pytest.approx(0.75, abs=0.02)


def test_warm_up_reaches_its_targets() -> None:
    target, generator = linear_gaussian(), torch.Generator().manual_seed(0)
    with target.potential() as potential:
        state = Mams().init(torch.randn(500, 4, generator=generator, dtype=torch.float64), potential, generator)
        warm = warm_up(Mams(), state, potential, generator, 150)
        sampler, state, acceptance = warm.sampler, warm.state, []
        assert isinstance(sampler, Mams)
        for _ in range(20):
            state, info = sampler.step(state, potential, generator)
            acceptance.append(float(info.acceptance.mean()))
    assert sum(acceptance) / 20 == pytest.approx(0.8, abs=0.07)
    assert sampler.inverse_mass is not None
    scaled = target.exact(100_000, generator) / sampler.inverse_mass.sqrt()
    widest = float(torch.linalg.eigvalsh(scaled.T.cov()).max().sqrt())
    assert sampler.trajectory_length == pytest.approx(1.5 * widest, rel=0.15)


@pytest.mark.parametrize(
    "arguments",
    [
        *({"trajectory_length": value} for value in (0.0, math.inf)),
        *({"max_leapfrog": value} for value in (0, 2.5)),
        *({"jitter": value} for value in (1.0, -0.1)),
    ],
)
def test_bad_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(arguments))):
        Mams(**arguments)


def test_one_dimension_is_refused() -> None:
    target = prior_only(1)
    with target.potential() as potential, pytest.raises(UsageError, match="Mams needs a latent space of at least 2"):
        Mams().init(torch.zeros(3, 1, dtype=torch.float64), potential, torch.Generator())
