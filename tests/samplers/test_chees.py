"""Tests of ChEES-HMC beyond the properties that all samplers share."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gebm_kit.core.errors import UsageError
from gebm_kit.core.hamiltonian import Phase, evaluate, integrate
from gebm_kit.core.interfaces import Sampler
from gebm_kit.engine.sampling.warmup import warm_up
from gebm_kit.samplers.chees import Chees
from gebm_kit.samplers.hmc import Hmc
from gebm_kit.testing.targets import Target, linear_gaussian, prior_only, two_modes


def _warm(sampler: Sampler, target: Target, chains: int, steps: int, seed: int = 0) -> tuple[Sampler, Tensor, int]:
    """Return the frozen sampler, positions of 150 steps with it from the prior, (150, C, Z), and its gradients a step."""
    generator, rows = torch.Generator().manual_seed(seed), []
    with target.potential() as potential:
        z = torch.randn(chains, target.model.latent_dim, generator=generator, dtype=torch.float64)
        warm = warm_up(sampler, sampler.init(z, potential, generator), potential, generator, steps)
        state = warm.state
        for _ in range(150):
            state, info = warm.sampler.step(state, potential, generator)
            rows.append(state.position)
    assert info.statistics is None
    return warm.sampler, torch.stack(rows), info.grad_evals


@pytest.mark.parametrize("mass", [None, [0.3, 0.8]])
def test_steps_tell_the_slope_of_the_criterion(mass: list[float] | None) -> None:
    """The slopes agree with central differences of ¼ (|y(t)|² - |y(0)|²)² in log t, along one fine trajectory."""
    generator, sampler = torch.Generator().manual_seed(0), Chees()
    centre, scale = torch.tensor([0.3, -0.2], dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    if mass is not None:
        scale = torch.tensor(mass, dtype=torch.float64).sqrt()
        sampler = sampler.tuned(inverse_mass=scale.square())
    z, v = torch.randn(2, 5, 2, generator=generator, dtype=torch.float64)
    time, eps, num = 0.9, 1e-4, 600
    with two_modes().potential() as potential:

        def end(length: float) -> Phase:
            tau = (length / num * scale).expand(5, 2)
            return integrate(Phase(z, v, *evaluate(potential, z)), tau, num, potential)

        def criterion(length: float) -> Tensor:
            before, after = ((x - centre) / scale for x in (z, end(length).position))
            return (after.square().sum(1) - before.square().sum(1)).square() / 4

        slope = (criterion(time * math.exp(eps)) - criterion(time * math.exp(-eps))) / (2 * eps)
        weight = torch.tensor([1.0, 0.5, 0.25, 1.0, 0.0], dtype=torch.float64)
        told = sampler.slopes(z, end(time), torch.full((5,), time, dtype=torch.float64), weight, centre)
    torch.testing.assert_close(told, torch.stack([weight * slope, weight], dim=1), rtol=1e-4, atol=1e-6)


def test_a_round_target_gets_the_length_that_maximises_its_criterion() -> None:
    """On N(0, I) ChEES(t) = Z sin² t: the mean over t = T u, u uniform on [0.6, 1], is largest at T = 1.91."""
    lengths, u = torch.linspace(0.5, 3, 2501), torch.linspace(0.6, 1, 401)
    best = float(lengths[torch.sin(lengths.unsqueeze(1) * u).square().mean(1).argmax()])
    sampler, _, _ = _warm(Chees(), prior_only(20), chains=200, steps=120)
    assert isinstance(sampler, Chees)
    assert sampler.angle == pytest.approx(best, rel=0.15)


def test_it_goes_further_than_hmc_for_a_gradient() -> None:
    """ChEES gives more effective draws a gradient than hmc on a rotated Gaussian of condition number 80.

    The spread of the chains' own means gives the effective draws.
    """
    target, found = linear_gaussian(20, stiffness=400.0), {}
    exact = target.exact(20_000, torch.Generator().manual_seed(9))
    for sampler in (Chees(), Hmc()):
        _, rows, grads = _warm(sampler, target, chains=200, steps=150)
        share = exact.var(0) / rows.mean(0).var(0)  # effective draws of each chain and coordinate
        found[type(sampler)] = float(share.min()) / (150 * grads)
    assert found[Chees] > found[Hmc]  # measured: 1.7 to 1.9 times


def test_the_plan_keeps_to_its_bounds() -> None:
    num, h = Chees(step_size=0.3, trajectory_length=1.0).plan()
    assert (num, num * h) == (4, pytest.approx(1.0))
    num, h = Chees(step_size=0.3, trajectory_length=50.0).plan()
    assert (num, num * h) == (11, pytest.approx(math.pi))
    assert Chees(step_size=0.001, trajectory_length=1.0, max_leapfrog=7).plan() == (7, 0.001)
    assert Chees(step_size=9.0, trajectory_length=0.5).plan() == (1, 0.5)
    narrow = Chees(step_size=0.3, trajectory_length=50.0).tuned(inverse_mass=torch.tensor([0.25, 0.01]))
    num, h = narrow.plan()
    assert num * h == pytest.approx(2 * math.pi)  # half a turn of the wider coordinate
    warming = Chees(step_size=0.01, trajectory_length=1.0).tuned(typical_step=0.25)
    assert warming.plan() == (4, 0.01)


def test_a_new_preconditioner_keeps_the_angle() -> None:
    sampler = Chees(trajectory_length=1.2)
    narrow = sampler.tuned(inverse_mass=torch.tensor([0.25, 0.01]))
    assert narrow.trajectory_length == pytest.approx(2.4)
    assert narrow.tuned(inverse_mass=torch.tensor([1.0, 9.0])).trajectory_length == pytest.approx(1.2)
    assert sampler.trajectory_length == 1.2


def test_what_warm_up_needs_is_gone_after_it() -> None:
    sampler, _, grads = _warm(Chees(), two_modes(), chains=20, steps=40)
    assert isinstance(sampler, Chees)
    assert sampler.centre is None
    assert sampler.typical_step is None
    assert grads == sampler.plan()[0]


def test_a_mean_slope_that_is_no_number_moves_nothing() -> None:
    adaptation = Chees().adaptation()
    for sums in ([math.nan, 1.0], [math.inf, 1.0], [0.0, 0.0]):
        values = torch.tensor([*sums, 0.0, 0.0], dtype=torch.float64)
        assert adaptation.update(Chees(), values, 5, 0.1).trajectory_length == pytest.approx(1.0)
    up = adaptation.update(Chees(), torch.tensor([3.0, 1.0, 0.0, 0.0], dtype=torch.float64), 5, 0.2)
    assert up.trajectory_length > 1.0


@pytest.mark.parametrize(("slope", "length"), [(3.0, 1.0), (-3.0, math.exp(-0.05))])
def test_trajectories_that_were_cut_short_do_not_lengthen_the_next(slope: float, length: float) -> None:
    sampler = Chees(step_size=0.01, trajectory_length=1.0, max_leapfrog=10)
    sums = torch.tensor([slope, 1.0, 0.0, 0.0], dtype=torch.float64)
    assert sampler.adaptation().update(sampler, sums, 5, 0.1).trajectory_length == pytest.approx(length)


@pytest.mark.parametrize(
    "arguments", [{"trajectory_length": 0.0}, {"max_leapfrog": 0}, {"jitter": 1.0}, {"trajectory_length": math.nan}]
)
def test_bad_arguments(arguments: dict) -> None:
    with pytest.raises(UsageError, match=next(iter(arguments))):
        Chees(**arguments)
