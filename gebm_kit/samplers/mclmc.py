"""Microcanonical Langevin Monte Carlo in latent space: isokinetic dynamics, no correction, and a bias set by the step."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, NamedTuple

import torch
from torch import Tensor

from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.interfaces import DIVERGENCE_THRESHOLD, Adaptation, Info, Potential, Sampler, Tunable
from gebm_kit.core.microcanonical import (
    MINIMAL_NORM,
    Particle,
    SpreadAdaptation,
    integrate,
    random_direction,
    refresh,
    require_directions,
)

LARGEST_SURPRISE = 20.0
"""Multiple of their target at which squared energy errors are cut before they are averaged. Normal errors are hardly ever
larger. Where tails are heavy the cut keeps one chain from setting the step size of all. It is high enough to let the tail
count, because the bias comes from there: on a banana a cut at 5 tunes to a step a third longer, with twice the bias."""


class MclmcState(NamedTuple):
    """Chains at ``position`` (C, Z) with the cached potential ``value`` (C,) and its gradient ``grad`` (C, Z).

    ``direction`` (C, Z), of length 1, persists from step to step.
    """

    position: Tensor
    value: Tensor
    grad: Tensor
    direction: Tensor


class Mclmc(Sampler):
    """Microcanonical Langevin Monte Carlo: isokinetic dynamics with a partial refreshment of the direction every step.

        dz/dt = sqrt(d) s u,      du/dt = -sqrt(d)/(d - 1) (I - u u^T) s g,      |u| = 1,   g = grad U,
        then   u <- (u + nu xi) / |u + nu xi|,      nu² = (exp(2 h / L) - 1) / d,

    with the diagonal preconditioner s² = ``inverse_mass`` (1 until warm-up sets it). The dynamics are integrated by the
    minimal-norm splitting, with two gradients a step and kicks in closed form. At equal bias it needs fewer gradients
    than leapfrog on Gaussians, and no more on a trained model.

    Nothing is accepted or rejected, so the stationary law is not the target: moments have a relative error of order h².
    Warm-up sets h so that the energy error dU + dK of a step has the variance ``energy_variance`` times d
    (``Info.tuning``). The variances of a Gaussian are then about 2 % too small; on a sharply bent ridge they were 6 to
    15 % too small. The speed is constant, so a step that is too long does not explode. A step whose energy error is above
    1000 or not finite is a divergence: the chain stays where it was and takes a fresh direction. If only the potential
    rules the step out (the chain left the support), the chain turns back instead, which leaves the target unchanged.

    Args:
        step_size: h, a length in units of the prior's standard deviation; tuned by warm-up.
        decoherence_length: L, the length over which the direction is forgotten, in the same units; tuned by warm-up to
            twice the largest standard deviation in preconditioned coordinates.
        energy_variance: variance of the energy error of a step, for each dimension, at which warm-up aims. A smaller one
            gives less bias and slower chains.

    Raises:
        UsageError: an argument is not a positive finite number; the latent space has one dimension.

    References:
        Microcanonical Hamiltonian Monte Carlo. J. Robnik, G. B. De Luca, E. Silverstein, U. Seljak, JMLR 2023.
        https://arxiv.org/abs/2212.08549 (the dynamics, the integrator, an energy variance of 5e-4 for each dimension)
        Fluctuation without dissipation: microcanonical Langevin Monte Carlo. J. Robnik, U. Seljak, AABI 2024.
        https://arxiv.org/abs/2303.18221 (the refreshment)
    """

    exact: ClassVar[bool] = False

    def __init__(
        self,
        step_size: Annotated[float, Range(0, None, low_open=True)] = 0.2,
        decoherence_length: Annotated[float, Range(0, None, low_open=True)] = 1.0,
        energy_variance: Annotated[float, Range(0, None, low_open=True)] = 5e-4,
    ) -> None:
        check_arguments(
            self, step_size=step_size, decoherence_length=decoherence_length, energy_variance=energy_variance
        )
        self.step_size = step_size
        self.decoherence_length = decoherence_length
        self.energy_variance = energy_variance
        self.inverse_mass: Tensor | None = None

    @property
    def tunable(self) -> Tunable:
        """The step size, tuned until the energy error e, squared and cut, is at its target: E[min(e² / (d v), 20)] = 1."""
        return Tunable("step_size", target=1 - 1 / LARGEST_SURPRISE, low=1e-6, high=2.0)

    def adaptation(self) -> Adaptation:
        """Return the tuning of L to twice the spread.

        Half of that length costs up to half of the effective sample size; a longer one gains little.
        """
        return SpreadAdaptation("decoherence_length", factor=2.0)

    def init(self, z: Tensor, potential: Potential, generator: torch.Generator) -> MclmcState:
        """Start chains at ``z``, (C, Z), with fresh directions."""
        require_directions(self, z)
        return MclmcState(z, *potential.value_and_grad(z), random_direction(z, generator))

    def step(self, state: MclmcState, potential: Potential, generator: torch.Generator) -> tuple[MclmcState, Info]:
        """Make one step of the integrator and one refreshment, for every chain."""
        z, value, grad, direction = state
        h, s = self.step_size, None if self.inverse_mass is None else self.inverse_mass.sqrt()
        time = torch.full_like(value, h).unsqueeze(1)
        end, kinetic = integrate(Particle(z, direction, value, grad), time, s, potential, MINIMAL_NORM, num_steps=1)
        error = kinetic.add(end.value).sub_(value)
        error.nan_to_num_(nan=math.inf, posinf=math.inf, neginf=math.inf)

        diverged = error > DIVERGENCE_THRESHOLD
        stays = diverged.unsqueeze(1)
        # at a wall the chain turns back: a fresh direction there would leave too many chains beside the wall
        wall = (diverged & (kinetic.abs() <= DIVERGENCE_THRESHOLD)).unsqueeze(1)
        stirred = refresh(torch.where(wall, -direction, end.direction), h, self.decoherence_length, generator)
        new_state = MclmcState(
            torch.where(stays, z, end.position),
            torch.where(diverged, value, end.value),
            torch.where(stays, grad, end.grad),
            torch.where(stays & ~wall, random_direction(z, generator), stirred),
        )
        moved = ~diverged
        surprise = error.square_().div_(z.shape[1] * self.energy_variance)
        tuning = surprise.div_(-LARGEST_SURPRISE).add_(1).clamp_(min=0)
        return new_state, Info(moved.to(value.dtype), moved, diverged, grad_evals=2, tuning=tuning)
