"""Kinetic (underdamped) Langevin in latent space by BAOAB: one gradient a step, no correction, and a small known bias."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, NamedTuple

import torch
from torch import Tensor

from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.interfaces import DIVERGENCE_THRESHOLD, Info, Potential, Sampler, Tunable

LARGEST_WORK = 10.0
"""Shadow work above which a step is refused. A Metropolis test would accept such a step once in 22,000 times. So much work
means that the integrator explodes in a place too narrow for its step. Without a test the chain would not come back soon."""


class KlmcState(NamedTuple):
    """Chains at ``position`` (C, Z) with the cached potential ``value`` (C,) and its gradient ``grad`` (C, Z).

    ``momentum`` (C, Z) persists from step to step. It is s p, so it is N(0, I) under the target for every preconditioner.
    """

    position: Tensor
    value: Tensor
    grad: Tensor
    momentum: Tensor


class Klmc(Sampler):
    """Kinetic Langevin Monte Carlo: the diffusion below with g = grad U, discretised by BAOAB.

        dz = p dt,   dp = -(g + gamma p) dt + sqrt(2 gamma) dW;

        p -= (h/2) s g;   z += (h/2) s p;   p = e^{-gamma h} p + sqrt(1 - e^{-2 gamma h}) xi;   z += (h/2) s p;
        p -= (h/2) s g,

    with the diagonal preconditioner s² = ``inverse_mass`` (1 until warm-up sets it). The stationary law is not the
    target. The error in z is of order h², and it vanishes where U is quadratic: on the unit oscillator z has variance
    exactly 1 for any h < 2, and p has variance 1 - h²/4.

    A kernel without correction has no acceptance to tune by. Warm-up therefore tunes h until a Metropolis test *would*
    accept 95 % of the steps (``Info.tuning``). That test accepts with probability min(1, exp(-W)), where the shadow work
    W is the change of the total energy U + |p|²/2 minus the energy that the noise added. A step with W above 10 is
    refused: the chain stays where it was and its momentum is reversed. A step whose W is above 1000 or not finite also
    counts as a divergence.

    Args:
        step_size: h, a length in units of the prior's standard deviation.
        friction: gamma, the rate at which momentum is forgotten, in inverse units of the time in which h is measured;
            2 is critical damping for a unit oscillator.

    Raises:
        UsageError: an argument is not a positive finite number.

    References:
        Rational construction of stochastic numerical methods for molecular sampling. B. Leimkuhler, C. Matthews, Applied
        Mathematics Research eXpress 2013. https://arxiv.org/abs/1203.5428 (BAOAB)
        Using nonequilibrium fluctuation theorems to understand and correct errors in equilibrium and nonequilibrium
        simulations of discrete Langevin dynamics. D. A. Sivak, J. D. Chodera, G. E. Crooks, Physical Review X 2013.
        https://arxiv.org/abs/1107.2967 (the shadow work)
    """

    exact: ClassVar[bool] = False

    def __init__(
        self,
        step_size: Annotated[float, Range(0, None, low_open=True)] = 0.2,
        friction: Annotated[float, Range(0, None, low_open=True)] = 1.0,
    ) -> None:
        check_arguments(self, step_size=step_size, friction=friction)
        self.step_size = step_size
        self.friction = friction
        self.inverse_mass: Tensor | None = None

    @property
    def tunable(self) -> Tunable:
        """The step size, tuned to a would-be acceptance of 0.95, with h below 1.

        Under a flat tilt the chain is a unit oscillator, which is stable for h < 2; the bound is half of that.
        """
        return Tunable("step_size", target=0.95, low=1e-6, high=1.0)

    def init(self, z: Tensor, potential: Potential, generator: torch.Generator) -> KlmcState:
        """Start chains at ``z``, (C, Z), with fresh momenta."""
        momentum = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
        return KlmcState(z, *potential.value_and_grad(z), momentum)

    def step(self, state: KlmcState, potential: Potential, generator: torch.Generator) -> tuple[KlmcState, Info]:
        """Make one BAOAB step of every chain."""
        z, value, grad, momentum = state
        h, s = self.step_size, None if self.inverse_mass is None else self.inverse_mass.sqrt()
        decay = math.exp(-self.friction * h)
        noise = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)

        kicked = torch.add(momentum, grad if s is None else grad * s, alpha=-h / 2)
        stirred = noise.mul_(math.sqrt(-math.expm1(-2 * self.friction * h))).add_(kicked, alpha=decay)
        drift = kicked + stirred
        proposal = torch.add(z, drift if s is None else drift.mul_(s), alpha=h / 2)
        new_value, new_grad = potential.value_and_grad(proposal)
        new_momentum = torch.add(stirred, new_grad if s is None else new_grad * s, alpha=-h / 2)

        squares = kicked.square_().addcmul_(momentum, momentum, value=-1)
        squares.addcmul_(new_momentum, new_momentum).addcmul_(stirred, stirred, value=-1)
        work = squares.sum(1).mul_(0.5).add_(new_value).sub_(value)
        work.nan_to_num_(nan=math.inf, posinf=math.inf, neginf=math.inf)

        diverged, refused = work > DIVERGENCE_THRESHOLD, work > LARGEST_WORK
        stays = refused.unsqueeze(1)
        new_state = KlmcState(
            torch.where(stays, z, proposal),
            torch.where(refused, value, new_value),
            torch.where(stays, grad, new_grad),
            torch.where(stays, -momentum, new_momentum),
        )
        moved = ~refused
        info = Info(moved.to(value.dtype), moved, diverged, grad_evals=1, tuning=work.neg_().exp_().clamp_(max=1))
        return new_state, info
