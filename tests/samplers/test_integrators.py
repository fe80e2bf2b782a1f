"""Tests of the two Hamiltonian integrators in float64: reversible, volume preserving, and of second order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gebm_kit.core.hamiltonian import Phase, evaluate, integrate
from gebm_kit.core.interfaces import Potential
from gebm_kit.core.tilt import is_tilted
from gebm_kit.testing.targets import PlainPotential, linear_gaussian, two_modes

SCHEMES = ["kick-rotate", "leapfrog"]
MASSES = {"plain": None, "preconditioned": torch.tensor([0.3, 1.7], dtype=torch.float64)}


def _potential(scheme: str) -> Potential:
    potential = two_modes(2).potential()
    return PlainPotential(potential) if scheme == "leapfrog" else potential


def _run(
    z: Tensor, v: Tensor, potential: Potential, step: float, length: int, mass: Tensor | None
) -> tuple[Tensor, Tensor]:
    tau = torch.full((len(z), 1), step, dtype=z.dtype) * (1.0 if mass is None else mass.sqrt())
    end = integrate(Phase(z, v, *evaluate(potential, z)), tau, length, potential)
    return end.position, end.velocity


def _start(num: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, num, 2, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("mass", MASSES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_reversible(scheme: str, mass: str) -> None:
    potential, (z, v) = _potential(scheme), _start(100)
    there, velocity = _run(z, v, potential, 0.3, 7, MASSES[mass])
    back, returned = _run(there, -velocity, potential, 0.3, 7, MASSES[mass])
    assert float((there - z).abs().max()) > 0.5
    torch.testing.assert_close(back, z, rtol=0, atol=1e-10)
    torch.testing.assert_close(-returned, v, rtol=0, atol=1e-10)


@pytest.mark.parametrize("mass", MASSES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_unit_jacobian(scheme: str, mass: str) -> None:
    """The Jacobian comes from central differences of (z, v) -> (z', v'), with all perturbed starts in one batch."""
    potential, (z, v), eps = _potential(scheme), _start(1), 1e-5
    start = torch.cat([z, v], dim=1)
    moves = eps * torch.eye(4, dtype=torch.float64)
    rows = torch.cat([start + moves, start - moves])
    ends = torch.cat(_run(rows[:, :2], rows[:, 2:], potential, 0.3, 7, MASSES[mass]), dim=1)
    jacobian = (ends[:4] - ends[4:]) / (2 * eps)
    assert float(torch.linalg.det(jacobian)) == pytest.approx(1.0, abs=1e-7)


@pytest.mark.parametrize("mass", MASSES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_energy_error_is_of_second_order(scheme: str, mass: str) -> None:
    potential, (z, v) = _potential(scheme), _start(400)
    inner = potential.inner if isinstance(potential, PlainPotential) else potential

    def error(step: float, length: int) -> float:
        there, velocity = _run(z, v, potential, step, length, MASSES[mass])
        before = inner.value(z) + v.square().sum(1) / 2
        return float((inner.value(there) + velocity.square().sum(1) / 2 - before).abs().mean())

    ratio = error(0.1, 10) / error(0.05, 20)
    assert 3.6 < ratio < 4.4


def test_rotation_is_that_of_the_mathematics() -> None:
    """One step in velocities v = s p agrees with the textbook formulas in momenta p."""
    target = linear_gaussian(2)
    s, h = torch.tensor([0.4, 1.5], dtype=torch.float64), 0.37
    z, p = _start(50)
    with target.potential() as potential:
        assert is_tilted(type(potential))
        grad = potential.tilt_and_grad(z).grad
        momentum = p - h / 2 * grad
        end = z * torch.cos(s * h) + s * momentum * torch.sin(s * h)
        momentum = momentum * torch.cos(s * h) - z / s * torch.sin(s * h)
        momentum = momentum - h / 2 * potential.tilt_and_grad(end).grad
        position, velocity = _run(z, s * p, potential, h, 1, s.square())
    torch.testing.assert_close(position, end, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(velocity, s * momentum, rtol=1e-12, atol=1e-12)


def test_leapfrog_is_that_of_the_mathematics() -> None:
    s, h = torch.tensor([0.4, 1.5], dtype=torch.float64), 0.37
    z, p = _start(50)
    with linear_gaussian(2).potential() as potential:
        momentum = p - h / 2 * potential.value_and_grad(z).grad
        end = z + h * s.square() * momentum
        momentum = momentum - h / 2 * potential.value_and_grad(end).grad
        position, velocity = _run(z, s * p, PlainPotential(potential), h, 1, s.square())
    torch.testing.assert_close(position, end, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(velocity, s * momentum, rtol=1e-12, atol=1e-12)


def test_rotation_is_exact_on_the_prior() -> None:
    """At inverse temperature 0 the energy is conserved up to rounding for every step."""
    from gebm_kit.testing.targets import prior_only

    z, v = _start(100)
    with prior_only(2).potential() as potential:
        there, velocity = _run(z, v, potential, 0.9, 6, None)
    before, after = (z.square() + v.square()).sum(1), (there.square() + velocity.square()).sum(1)
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)
