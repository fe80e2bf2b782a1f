"""Tests that refiners do what they claim: drs is exact if its bound holds, dot lowers its cost, dgflow follows its flow."""

from __future__ import annotations

import functools
import json
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import gebm_kit as gk
from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Sampler
from gebm_kit.core.progress import GebmKitWarning
from gebm_kit.core.tilt import prior_pool
from gebm_kit.samplers import dot as dot_module
from gebm_kit.samplers.dgflow import Dgflow
from gebm_kit.samplers.dot import Dot
from gebm_kit.samplers.drs import Drs
from gebm_kit.testing import Target
from gebm_kit.testing.statistics import ALPHA, confirmed, disagreement, z_p_value
from gebm_kit.testing.targets import (
    IdentityBase,
    LinearEnergy,
    QuadraticEnergy,
    prior_only,
    tilted_sphere,
    tilted_uniform,
)


def quadratic(curvature: float, latent_dim: int = 3) -> gk.GEBM:
    """Build a model with ``E(z) = curvature |z|² / 2``."""
    precision = curvature * torch.eye(latent_dim, dtype=torch.float64)
    return gk.GEBM(IdentityBase(latent_dim), QuadraticEnergy(precision, torch.zeros(latent_dim, dtype=torch.float64)))


def refined(
    sampler: Sampler, potential: Any, num_chains: int, seed: int = 0, latent_dim: int = 3
) -> tuple[Tensor, Any]:
    """Return the points' origins, (C, Z), and the finished state."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(num_chains, latent_dim, generator=generator, dtype=torch.float64)
    state = sampler.init(z, potential, generator)
    while not bool(sampler.finished(state)):
        state, _ = sampler.step(state, potential, generator)
    return z, state


@pytest.mark.parametrize("sampler", [Drs(max_proposals=3), Dot(num_steps=3), Dgflow(num_steps=3)])
def test_refiners_claim_nothing_that_they_are_not(sampler: Sampler) -> None:
    assert (sampler.family, sampler.exact, sampler.coupled) == ("refiner", False, False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GebmKitWarning)
        draws = gk.sample(quadratic(1.0), sampler, num_samples=50, num_chains=20)
    found = json.loads(json.dumps(draws.diagnostics.as_dict()))
    assert found["rhat_max"] is None
    assert found["family"] == "refiner"
    assert (found["ess_min"] is None) == (not isinstance(sampler, Drs))
    assert len(draws.z.unique(dim=0)) == 50


# --- drs -----------------------------------------------------------------------------------------------------------------

BOUNDS = {"tilted-uniform": (tilted_uniform(), -4.0), "tilted-sphere": (tilted_sphere(), -2.0)}


def drs_is_off(target: Target, sampler: Drs, seed: int) -> dict[str, float]:
    with target.potential() as potential:
        _, state = refined(sampler, potential, 4000, seed, target.point.shape[0])
    return disagreement(state.position, target)


@pytest.mark.parametrize("name", BOUNDS)
def test_rejection_is_exact_where_its_bound_holds(name: str) -> None:
    target, bound = BOUNDS[name]
    sampler = Drs(bound=bound)
    assert not confirmed(functools.partial(drs_is_off, target, sampler))
    with target.potential() as potential:
        _, state = refined(sampler, potential, 500, 0, target.point.shape[0])
    assert bool(state.accepted.all())
    assert int(state.violations) == 0
    assert 1 < int(state.proposals) < 1000


def test_a_bound_that_does_not_hold_is_caught_and_reported() -> None:
    """With half of the true bound the test that the true bound passes fails, and violations are counted and reported."""
    target, _ = BOUNDS["tilted-uniform"]
    assert confirmed(functools.partial(drs_is_off, target, Drs(bound=-2.0)))
    with pytest.warns(GebmKitWarning, match="energy below the bound"):
        found = gk.sample(target.model, Drs(bound=-2.0), num_samples=200).diagnostics
    assert found.details["violations"] > 0
    assert found.details["exhausted"] == 0
    assert not found.converged


def test_the_acceptance_is_what_the_log_partition_says() -> None:
    """The acceptance is exp(A + m); each proposal is an independent trial."""
    target, bound = BOUNDS["tilted-uniform"]
    expected = math.exp(target.log_partition + bound)

    def failures(seed: int) -> dict[str, float]:
        generator, sampler = torch.Generator().manual_seed(seed), Drs(bound=bound)
        with target.potential() as potential:
            z = torch.randn(100_000, 2, generator=generator, dtype=torch.float64)
            state = sampler.init(z, potential, generator)
            _, info = sampler.step(state, potential, generator)
        error = math.sqrt(expected * (1 - expected) / 1e5)
        p_values = {
            "accepted": z_p_value((float(state.accepted.double().mean()) - expected) / error),
            "acceptance": z_p_value(
                (float(info.acceptance.mean()) - expected) / float(info.acceptance.std()) * 1e5**0.5
            ),
        }
        return {name: p for name, p in p_values.items() if p < ALPHA}

    assert not confirmed(failures)


def test_the_estimated_bound_is_the_least_of_a_pool_less_a_margin() -> None:
    target = BOUNDS["tilted-uniform"][0]
    bounds = {}
    with target.potential() as potential:
        for margin in (0.0, 1.5):
            z = torch.zeros(7, 2, dtype=torch.float64)
            state = Drs(pool_size=50, margin=margin).init(z, potential, torch.Generator().manual_seed(0))
            _, pool = prior_pool(potential, z, 50, torch.Generator().manual_seed(0))
            assert float(state.bound) == pytest.approx(float(pool.min()) - margin)
            bounds[margin] = float(state.bound)
        assert potential.forward_evals == 2 * (7 + 50 + 50)
    assert bounds[0.0] == pytest.approx(bounds[1.5] + 1.5)
    assert -4 < bounds[0.0] < 0


def test_accepted_draws_stay() -> None:
    target, bound = BOUNDS["tilted-uniform"]
    generator, sampler = torch.Generator().manual_seed(0), Drs(bound=bound)
    with target.potential() as potential:
        state = sampler.init(torch.randn(400, 2, generator=generator).double(), potential, generator)
        for _ in range(10):
            before = state
            state, _ = sampler.step(state, potential, generator)
            assert bool(state.accepted[before.accepted].all())
            assert torch.equal(state.position[before.accepted], before.position[before.accepted])
            torch.testing.assert_close(state.value, potential.tilt(state.position))
    assert 0 < int(state.accepted.sum()) < 400


def test_chains_that_give_up_hold_their_best_by_weight_and_are_counted() -> None:
    """A bound far below all tilts accepts nothing. The draws are then resampled by weight from the proposals.

    With many proposals they are near the target; with one they are prior draws.
    """
    target, _ = BOUNDS["tilted-uniform"]
    assert not confirmed(functools.partial(drs_is_off, target, Drs(bound=-1e3, max_proposals=300)))
    assert confirmed(functools.partial(drs_is_off, target, Drs(bound=-1e3, max_proposals=1)))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = gk.sample(target.model, Drs(bound=-1e3, max_proposals=5), num_samples=100, num_chains=50).diagnostics
    assert any("100 of 100 draws passed no rejection test" in str(warning.message) for warning in said)
    assert found.details["exhausted"] == 100
    assert found.ess_min == 0


@pytest.mark.parametrize(
    "arguments", [{"max_proposals": 0}, {"pool_size": 0}, {"margin": -1.0}, {"bound": math.nan}, {"bound": "low"}]
)
def test_bad_drs_arguments(arguments: dict) -> None:
    with pytest.raises(UsageError, match=next(iter(arguments))):
        Drs(**arguments)


# --- dot -----------------------------------------------------------------------------------------------------------------


def transport_is_off(sampler: Sampler, curvature: float = 2.0, lipschitz: float = 1.5) -> float:
    """Return the largest distance from where the transport on ``curvature |z|² / 2`` ends.

    From outside that is the radius k / curvature.
    """
    with gk_potential(quadratic(curvature)) as potential:
        origin, state = refined(sampler, potential, 200)
    radius = origin.norm(dim=1, keepdim=True)
    expected = origin * (lipschitz / curvature / radius).clamp(max=1)
    return float((state.position - expected).norm(dim=1).max())


def gk_potential(model: gk.GEBM, inverse_temperature: float = 1.0) -> Any:
    from gebm_kit.core.model import LatentPotential

    return LatentPotential(model, inverse_temperature)


def test_points_go_where_the_transport_is_worth_it() -> None:
    """|z - z_0| + a |z|² / (2 k) is smallest at the radius k / a on the way to the origin; within that radius, at z_0."""
    assert transport_is_off(Dot(lipschitz=1.5)) < 0.02


class Undivided(Dot):
    """dot that descends on |z - z_0| + tilt(z), because it forgets to divide by k."""

    def init(self, z: Tensor, potential: Any, generator: torch.Generator) -> Any:
        state = super().init(z, potential, generator)
        return state._replace(lipschitz=torch.ones_like(state.lipschitz))


def test_a_tilt_that_is_not_divided_by_k_is_caught() -> None:
    assert transport_is_off(Undivided(lipschitz=1.5)) > 0.2


def test_the_objective_falls_at_every_step_and_bounds_the_distance() -> None:
    target, generator, sampler = tilted_sphere(), torch.Generator().manual_seed(0), Dot(lipschitz=0.5)
    moved = 0.0
    with target.potential() as potential:
        z = torch.randn(300, 3, generator=generator, dtype=torch.float64)
        state = start = sampler.init(z, potential, generator)

        def objective(s: Any) -> Tensor:
            return dot_module.distance_from_origin(s.position, z) - dot_module.SMOOTHING + s.value / s.lipschitz

        for _ in range(60):
            before = state
            state, info = sampler.step(state, potential, generator)
            fallen = objective(state) - objective(before)
            assert float(fallen.max()) < 1e-12
            assert bool((fallen[~info.accepted] == 0).all())
            distance = (state.position - z).norm(dim=1)
            assert bool((distance <= (start.value - state.value) / 0.5 + dot_module.SMOOTHING).all())
        moved = float(distance.mean())
    assert moved > 0.3
    assert float(sampler.summary(state)["distance"]) == pytest.approx(moved)


@pytest.mark.parametrize("share", [0.5, 2.0])
def test_on_a_slope_everybody_moves_or_nobody(share: float) -> None:
    """All points move when |grad tilt| / k is twice the slope of the distance, and none when it is half of it."""
    slope = torch.tensor([3.0, 0.0, 4.0], dtype=torch.float64)
    with gk_potential(gk.GEBM(IdentityBase(3), LinearEnergy(slope))) as potential:
        origin, state = refined(Dot(lipschitz=5 * share), potential, 50)
    along = (origin - state.position) @ slope / 5
    if share > 1:
        assert float((state.position - origin).norm(dim=1).max()) < 2 * dot_module.SMOOTHING
    else:
        assert float(along.min()) > 1
        torch.testing.assert_close(along, (origin - state.position).norm(dim=1))


def test_the_slope_of_the_tilt_is_estimated_from_pairs() -> None:
    """Where the slope is constant, the estimate is close to it and never above; on a flat tilt no point moves."""
    slope = torch.tensor([3.0, 0.0, 4.0], dtype=torch.float64)
    with gk_potential(gk.GEBM(IdentityBase(3), LinearEnergy(slope))) as potential:
        state = Dot(num_pairs=500).init(torch.zeros(9, 3).double(), potential, torch.Generator().manual_seed(0))
    assert 4.5 < float(state.lipschitz) <= 5 + 1e-9
    with prior_only(3).potential() as potential:
        origin, state = refined(Dot(num_steps=5), potential, 20)
    assert float(state.lipschitz) == 0
    assert torch.equal(state.position, origin)


def test_the_outcome_does_not_depend_on_beta() -> None:
    ends = []
    for beta in (1.0, 7.0):
        with gk_potential(quadratic(1.0), beta) as potential:
            origin, state = refined(Dot(), potential, 100)
        ends.append(state.position)
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-4)
    assert not torch.equal(ends[0], origin)


def test_lengths_are_kept_where_asked_for() -> None:
    with tilted_sphere().potential() as potential:
        origin, state = refined(Dot(lipschitz=0.3, keep_length=True), potential, 100)
    torch.testing.assert_close(state.position.norm(dim=1), origin.norm(dim=1))
    assert float((state.position - origin).norm(dim=1).mean()) > 0.3


@pytest.mark.parametrize("arguments", [{"num_steps": 0}, {"step_size": 0.0}, {"lipschitz": 0.0}, {"num_pairs": 0}])
def test_bad_dot_arguments(arguments: dict) -> None:
    with pytest.raises(UsageError, match=next(iter(arguments))):
        Dot(**arguments)


# --- dgflow --------------------------------------------------------------------------------------------------------------


ETA = 0.2


def stationary_law_is_off(sampler: Dgflow, seed: int, curvature: float = 1.5) -> dict[str, float]:
    """Return the failed tests that kl on ``a |z|² / 2`` ends in the normal law of variance gamma / (a (1 - a eta / 2))."""
    variance = sampler.noise / (curvature * (1 - curvature * ETA / 2))
    with gk_potential(quadratic(curvature)) as potential:
        _, state = refined(sampler, potential, 10_000, seed)
    values = state.position.flatten()
    root = math.sqrt(len(values))
    p_values = {
        "mean": z_p_value(float(values.mean()) / math.sqrt(variance) * root),
        "variance": z_p_value((float(values.square().mean()) / variance - 1) / math.sqrt(2) * root),
    }
    return {name: p for name, p in p_values.items() if p < ALPHA}


@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_kl_ends_in_its_known_law(noise: float) -> None:
    assert not confirmed(functools.partial(stationary_law_is_off, Dgflow(60, step_size=ETA, noise=noise)))


class HalfNoise(Dgflow):
    """dgflow that forgets the 2 in sqrt(2 gamma eta)."""

    def step(self, state: Any, potential: Any, generator: torch.Generator) -> Any:
        return Dgflow(self.num_steps, self.step_size, self.noise / 2).step(state, potential, generator)


def test_a_wrong_noise_is_caught() -> None:
    assert confirmed(functools.partial(stationary_law_is_off, HalfNoise(60, step_size=ETA, noise=1.0)))


def test_without_noise_kl_is_gradient_descent() -> None:
    with gk_potential(quadratic(2.0)) as potential:
        origin, state = refined(Dgflow(25, step_size=0.1, noise=0.0), potential, 10)
    torch.testing.assert_close(state.position, origin * 0.8**25)


@pytest.mark.parametrize("divergence", ["kl", "js", "logd"])
def test_the_drift_is_the_gradient_of_the_derivative_of_f(divergence) -> None:
    """The drift agrees with autograd's gradient of f'(r), with r = exp(tilt + A)."""
    derivative = {
        "kl": lambda r: r.log() + 1,
        "js": lambda r: (2 * r / (1 + r)).log(),
        "logd": lambda r: (r + 1).log() + 1,
    }[divergence]
    sampler = Dgflow(1, step_size=0.3, noise=0.0, divergence=divergence, pool_size=20_000)
    with gk_potential(quadratic(2.0)) as potential:
        origin, state = refined(sampler, potential, 50)
    log_partition = -1.5 * math.log(3.0)  # E[exp(-|z|²)] in three dimensions
    if divergence != "kl":
        assert float(state.log_mass) == pytest.approx(log_partition, abs=0.1)
    points = origin.clone().requires_grad_()
    ratio = (points.square().sum(1) + state.log_mass).exp()
    (grad,) = torch.autograd.grad(derivative(ratio).sum(), points)
    torch.testing.assert_close(state.position, origin - 0.3 * grad)


def test_a_larger_beta_makes_shorter_steps() -> None:
    """From a slope of 1 on the default step times the slope is constant, so the drift does not grow with beta."""
    slope, found = torch.tensor([3.0, 0.0, 4.0], dtype=torch.float64), {}
    for beta in (0.1, 1.0, 100.0):
        with gk_potential(gk.GEBM(IdentityBase(3), LinearEnergy(slope)), beta) as potential:
            origin, state = refined(Dgflow(noise=0.0), potential, 20)
        found[beta] = float(state.step_size)
        assert float((state.position - origin).norm(dim=1).max()) == pytest.approx(25 * found[beta] * 5 * beta)
    assert found[0.1] == 0.1  # a slope of 1/2
    assert found[1.0] == pytest.approx(0.1 / 5, rel=0.1)
    assert found[100.0] == pytest.approx(found[1.0] / 100)


def test_a_few_default_steps_lower_the_energy() -> None:
    target = tilted_sphere()
    with target.potential() as potential:
        origin, state = refined(Dgflow(), potential, 500)
        before = potential.tilt(origin)
    assert int(state.steps) == 25
    assert float((before - state.value).mean()) > 0.5


@pytest.mark.parametrize(
    "arguments",
    [{"num_steps": 0}, {"step_size": 0.0}, {"noise": -0.1}, {"divergence": "hellinger"}, {"pool_size": 0}],
)
def test_bad_dgflow_arguments(arguments: dict) -> None:
    with pytest.raises(UsageError, match=next(iter(arguments))):
        Dgflow(**arguments)
