"""Hamiltonian trajectories in latent space: kick-rotate when the prior is split off, else leapfrog.

Kick-rotate integrates the prior of a `TiltedPotential` U(z) = ½|z|² + tilt(z) exactly. With g = grad tilt one step is

    p -= (h/2) g;   z' = z cos(s h) + s p sin(s h),  p' = p cos(s h) - (z/s) sin(s h);   p -= (h/2) g,

where p ~ N(0, s^-2) and s² is a diagonal preconditioner. On any other potential the step is leapfrog's with g = grad U:
kick, z += h s² p, kick. The code carries the velocity v = s p ~ N(0, I). In terms of v both schemes need no
preconditioner, only a step ``tau = s h`` of its own for each coordinate.

References:
    MCMC using Hamiltonian dynamics. R. M. Neal, 2011. https://arxiv.org/abs/1206.1901
    Split Hamiltonian Monte Carlo. B. Shahbaba et al., 2014. https://arxiv.org/abs/1106.5941 (the exact rotation)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gebm_kit.core.sampling import DIVERGENCE_THRESHOLD, Potential, ValueAndGrad
from gebm_kit.core.tilt import is_tilted


class Phase(NamedTuple):
    """Position and velocity, (C, Z) each, with a value (C,) and its gradient (C, Z) at the position.

    The value is the tilt when the potential is split into prior and tilt, else the whole potential.
    """

    position: Tensor
    velocity: Tensor
    value: Tensor
    grad: Tensor


def evaluate(potential: Potential, z: Tensor) -> ValueAndGrad:
    """Return the tilt and its gradient when the potential is split, else the whole potential and its gradient."""
    if is_tilted(type(potential)):
        return potential.tilt_and_grad(z)  # type: ignore[attr-defined]  # the cached check narrows no type
    return potential.value_and_grad(z)


def integrate(start: Phase, tau: Tensor, num_steps: int, potential: Potential) -> Phase:
    """Make ``num_steps`` >= 1 steps of kick-rotate or leapfrog, one gradient each; ``start`` is not changed.

    The two half kicks between consecutive steps are merged into one whole kick. Where a gradient is NaN, no force acts. The
    trajectory stays reversible, and what lies behind such a place is judged by the potential there.

    Args:
        tau: step of each chain, (C, 1), or of each coordinate of each chain, (C, Z).
    """
    tilted = is_tilted(type(potential))
    cos, sin = (tau.cos(), tau.sin()) if tilted else (tau, tau)
    z, value, grad = start.position, start.value, start.grad
    velocity = torch.addcmul(start.velocity, grad, tau, value=-0.5)
    for step in range(num_steps):
        if tilted:
            z, before = torch.mul(z, cos).addcmul_(velocity, sin), z
            velocity.mul_(cos).addcmul_(before, sin, value=-1)
        else:
            z = torch.addcmul(z, velocity, tau)
        value, grad = evaluate(potential, z)
        grad = grad.nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf)
        velocity.addcmul_(grad, tau, value=-0.5 if step == num_steps - 1 else -1.0)
    return Phase(z, velocity, value, grad)


class EnergyChange(NamedTuple):
    """What `energy_change` returns, (C,) each.

    Attributes:
        error: change of ``U(z) + ½|v|²``; inf where it is not finite.
        known: its part without ``Phase.value``: the kinetic energy and, when the potential is split, the prior.
    """

    error: Tensor
    known: Tensor

    def left_support(self) -> Tensor:
        """Return which trajectories ended outside the support, (C,) bool; see `Info.impossible`.

        A step that is too long shows in the forces, so in ``known`` as well. At a wall the value alone is impossible.
        """
        return (self.error > DIVERGENCE_THRESHOLD) & (self.known.abs() <= DIVERGENCE_THRESHOLD)


def energy_error(start: Phase, end: Phase, potential: Potential) -> Tensor:
    """Return the change of ``U(z) + ½|v|²`` along a trajectory, (C,); inf where the change is not finite."""
    return energy_change(start, end, potential).error


def energy_change(start: Phase, end: Phase, potential: Potential) -> EnergyChange:
    """Return the change of ``U(z) + ½|v|²`` along a trajectory, and its part that needs no value of the potential.

    The kinetic and prior parts are subtracted before they are summed, which keeps float32 accurate in many dimensions.
    """
    squares = end.velocity.square().addcmul_(start.velocity, start.velocity, value=-1)
    if is_tilted(type(potential)):
        squares.addcmul_(end.position, end.position).addcmul_(start.position, start.position, value=-1)
    known = squares.sum(1).mul_(0.5)
    error = known.add(end.value).sub_(start.value)
    return EnergyChange(error.nan_to_num_(nan=math.inf, posinf=math.inf, neginf=math.inf), known)
