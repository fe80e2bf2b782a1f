"""Isokinetic dynamics: kicks in closed form, integrators with their Jacobian and order, refreshment, the tuned length."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gebm_kit.core.interfaces import Info, ValueAndGrad
from gebm_kit.core.microcanonical import (
    LEAPFROG,
    MINIMAL_NORM,
    Particle,
    Scheme,
    SpreadAdaptation,
    integrate,
    kick,
    random_direction,
    refresh,
)
from gebm_kit.samplers.mams import Mams, MamsState

SCHEMES = {"leapfrog": LEAPFROG, "minimal-norm": MINIMAL_NORM}
SCALES = {"plain": None, "preconditioned": torch.tensor([0.5, 1.3, 0.8], dtype=torch.float64)}


class Quartic:
    """``U = sum_i a_i z_i² / 2 + (sum_i z_i)⁴ / 20``, with a gradient that can itself be differentiated."""

    curvature = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)

    def value(self, z: Tensor) -> Tensor:
        return 0.5 * (self.curvature * z.square()).sum(1) + z.sum(1).pow(4) / 20

    def value_and_grad(self, z: Tensor) -> ValueAndGrad:
        return ValueAndGrad(self.value(z), self.curvature * z + z.sum(1, keepdim=True).pow(3) / 5)


def _start(num: int) -> Particle:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(num, 3, generator=generator, dtype=torch.float64)
    return Particle(z, random_direction(z, generator), *Quartic().value_and_grad(z))


def _run(start: Particle, scheme: str, scale: str, step: float, length: int) -> tuple[Particle, Tensor]:
    time = torch.full((len(start.position), 1), step, dtype=torch.float64)
    return integrate(start, time, SCALES[scale], Quartic(), SCHEMES[scheme], length)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_reversible(scheme: str, scale: str) -> None:
    start = _start(100)
    there, gone = _run(start, scheme, scale, 0.2, 7)
    back, returned = _run(there._replace(direction=-there.direction), scheme, scale, 0.2, 7)
    assert float((there.position - start.position).abs().max()) > 0.5
    torch.testing.assert_close(back.position, start.position, rtol=0, atol=1e-10)
    torch.testing.assert_close(-back.direction, start.direction, rtol=0, atol=1e-10)
    torch.testing.assert_close(returned, -gone, rtol=0, atol=1e-10)


def _tangents(direction: Tensor) -> Tensor:
    """An orthonormal basis of the tangent space of the sphere at ``direction``, (3,) -> (3, 2)."""
    return torch.linalg.svd(direction.unsqueeze(0)).Vh[1:].T


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_log_jacobian_is_minus_the_kinetic_change(scheme: str, scale: str) -> None:
    """On R³ times the sphere, by automatic differentiation in tangent coordinates at both ends."""
    starts = _start(5)
    ends, kinetic = _run(starts, scheme, scale, 0.3, 3)
    assert float(kinetic.abs().min()) > 0.01
    for row in range(5):
        z, u = starts.position[row], starts.direction[row]
        at_start, at_end = _tangents(u), _tangents(ends.direction[row])

        def flow(x: Tensor, z=z, u=u, at_start=at_start, at_end=at_end) -> Tensor:
            direction = u + at_start @ x[3:]
            position, direction = (z + x[:3])[None], (direction / direction.norm())[None]
            there, _ = _run(Particle(position, direction, *Quartic().value_and_grad(position)), scheme, scale, 0.3, 3)
            return torch.cat([there.position[0], at_end.T @ there.direction[0]])

        jacobian = torch.func.jacfwd(flow)(torch.zeros(5, dtype=torch.float64))
        assert float(torch.linalg.slogdet(jacobian).logabsdet) == pytest.approx(-float(kinetic[row]), abs=1e-9)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_energy_error_is_of_second_order(scheme: str, scale: str) -> None:
    start = _start(400)

    def error(step: float, length: int) -> float:
        end, kinetic = _run(start, scheme, scale, step, length)
        return float((kinetic + end.value - start.value).abs().mean())

    assert 3.6 < error(0.0125, 40) / error(0.00625, 80) < 4.4


@pytest.mark.parametrize("scheme", SCHEMES)
def test_merged_kicks_are_those_of_single_steps(scheme: str) -> None:
    at_once, kinetic = _run(_start(50), scheme, "preconditioned", 0.2, 5)
    particle, total = _start(50), torch.zeros(50, dtype=torch.float64)
    for _ in range(5):
        particle, change = _run(particle, scheme, "preconditioned", 0.2, 1)
        total += change
    torch.testing.assert_close(particle, at_once, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(total, kinetic, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_costs_a_gradient_a_drift(scheme: str) -> None:
    class Counted(Quartic):
        calls = 0

        def value_and_grad(self, z: Tensor) -> ValueAndGrad:
            self.calls += 1
            return super().value_and_grad(z)

    potential = Counted()
    integrate(_start(2), torch.full((2, 1), 0.1, dtype=torch.float64), None, potential, SCHEMES[scheme], 4)
    assert potential.calls == 4 * len(SCHEMES[scheme].drifts)


def test_schemes_are_symmetric_and_complete() -> None:
    for scheme in SCHEMES.values():
        assert scheme == Scheme(scheme.kicks[::-1], scheme.drifts[::-1])
        assert sum(scheme.kicks) == pytest.approx(1) == sum(scheme.drifts)


# --- kicks and refreshment ----------------------------------------------------------------------------------------------


def _kicked(direction: Tensor, force: Tensor, time: float) -> tuple[Tensor, Tensor]:
    """The formula as it is written, in hyperbolic functions."""
    dim, norm = direction.shape[1], force.norm(dim=1, keepdim=True)
    n, delta = force / norm, math.sqrt(dim) * time * norm / (dim - 1)
    c = (direction * n).sum(1, keepdim=True)
    stretch = delta.cosh() - c * delta.sinh()
    turned = (direction - (delta.sinh() - c * (delta.cosh() - 1)) * n) / stretch
    return turned, (dim - 1) * stretch.log().squeeze(1)


def test_a_kick_solves_its_equation() -> None:
    """Against the hyperbolic formula, and that against the differential equation by central differences."""
    generator = torch.Generator().manual_seed(0)
    force = 2 * torch.randn(50, 4, generator=generator, dtype=torch.float64)
    u, times = random_direction(force, generator), [0.3, 0.3 + 1e-5, 0.3 - 1e-5]
    (now, kinetic), (later, more), (earlier, less) = (_kicked(u, force, time) for time in times)
    found = kick(u, force, torch.full((50, 1), 0.3, dtype=torch.float64))
    torch.testing.assert_close(found.direction, now, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.kinetic_change, kinetic, rtol=1e-12, atol=1e-12)
    across = force - (force * now).sum(1, keepdim=True) * now
    torch.testing.assert_close((later - earlier) / 2e-5, -2 / 3 * across, rtol=1e-6, atol=1e-8)
    # the logarithm of the length that the equation without its normalisation would give u, d - 1 times
    torch.testing.assert_close((more - less) / 2e-5, -2 * (force * now).sum(1), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("strength", [1e-30, 1e-4, 1.0, 30.0, 1e3, 1e15])
def test_kicks_of_any_strength_in_float32(strength: float) -> None:
    generator = torch.Generator().manual_seed(0)
    normal = random_direction(torch.empty(300, 3), generator)
    noise = torch.randn(300, 3, generator=generator)
    # along the force and against it, exactly, to rounding and nearly; and anywhere
    closeness = torch.tensor([0.0, 1e-7, 1e-3, 1.0, 1e3]).repeat_interleave(60).unsqueeze(1)
    side = torch.tensor([1.0, -1.0]).repeat(150).unsqueeze(1)
    u = torch.nn.functional.normalize(side * normal + closeness * noise)
    time = torch.full((300, 1), 0.7)
    single, double = (kick(u.to(t), strength * normal.to(t), time.to(t)) for t in (torch.float32, torch.float64))
    found = single.direction
    finite = torch.isfinite(found).all(1) & torch.isfinite(single.kinetic_change)
    # along the force is a rest, an unstable one: a large kick from it ends where rounding says, or nowhere
    assert bool(finite[(closeness > 0).squeeze(1) | (side < 0).squeeze(1)].all())
    torch.testing.assert_close(found[finite].norm(dim=1), torch.ones(int(finite.sum())), rtol=1e-6, atol=0)
    known = (closeness > 1e-6).squeeze(1)
    for low, high in zip(single, double, strict=True):
        torch.testing.assert_close(low[known].double(), high[known], rtol=2e-3, atol=2e-3)


def test_no_force_changes_nothing() -> None:
    u = random_direction(torch.empty(20, 3), torch.Generator().manual_seed(0))
    found = kick(u, torch.zeros_like(u), torch.ones(20, 1))
    torch.testing.assert_close(found.direction, u)
    assert float(found.kinetic_change.abs().max()) < 1e-6


def test_refreshment_forgets_at_its_rate() -> None:
    generator = torch.Generator().manual_seed(0)
    u = random_direction(torch.empty(4000, 50, dtype=torch.float64), generator)
    for time, memory in [(0.2, 2.0), (1.0, 1.0), (1e6, 1e-3)]:
        stirred = refresh(u, time, memory, generator)
        torch.testing.assert_close(stirred.norm(dim=1), torch.ones(4000, dtype=torch.float64))
        assert float((stirred * u).sum(1).mean()) == pytest.approx(math.exp(-time / memory), abs=0.02)


# --- the length that warm-up sets ---------------------------------------------------------------------------------------


def _adapted(blocks: int, steps: int = 40, mass: Tensor | None = None) -> float:
    """Length from independent draws of N(5, S), S's eigenvalues 4, 1 and 1/4 in a rotated frame, in so many blocks."""
    generator = torch.Generator().manual_seed(1)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64)).Q
    sampler, adaptation = Mams().tuned(inverse_mass=mass), SpreadAdaptation("trajectory_length", 1.5)
    for step in range(steps):
        z = 5 + torch.randn(400, 3, generator=generator, dtype=torch.float64) * torch.tensor([2.0, 1.0, 0.5]) @ turn.T
        states = [MamsState(part, part[:, 0], part) for part in z.chunk(blocks)]
        info = Info(z[:, 0], z[:, 0] > 0, z[:, 0] > 0, 1)
        sums = [adaptation.statistics(sampler, state, state, info) for state in states]
        sampler = adaptation.update(sampler, torch.stack(sums).sum(0), 400, (step + 1) / steps)
    frozen = adaptation.freeze(sampler)
    assert isinstance(frozen, Mams)
    return frozen.trajectory_length


def test_the_length_follows_the_widest_direction() -> None:
    assert _adapted(1) == pytest.approx(1.5 * 2.0, rel=0.1)
    assert _adapted(1, mass=torch.full((3,), 4.0, dtype=torch.float64)) == pytest.approx(1.5, rel=0.1)


def test_the_length_does_not_depend_on_blocks() -> None:
    assert _adapted(4) == pytest.approx(_adapted(1), rel=1e-12)
