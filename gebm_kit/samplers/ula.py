"""The unadjusted Langevin algorithm in latent space: one gradient a step, no correction, and a known bias."""

from __future__ import annotations

from typing import Annotated, ClassVar, NamedTuple

import torch
from torch import Tensor

from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.interfaces import DIVERGENCE_THRESHOLD, Info, Potential, Sampler, Tunable, ValueAndGrad
from gebm_kit.core.langevin import energy_error, propose


class UlaState(NamedTuple):
    """Chains at ``position`` (C, Z) with the cached potential ``value`` (C,) and its gradient ``grad`` (C, Z)."""

    position: Tensor
    value: Tensor
    grad: Tensor


class Ula(Sampler):
    """The unadjusted Langevin algorithm (ULA), the Euler discretisation of the overdamped Langevin diffusion.

        z' = z - h s² g(z) + sqrt(2 h) s xi,      g = grad U,  xi ~ N(0, I),

    with the diagonal preconditioner s² = ``inverse_mass`` (1 until warm-up sets it). The stationary law is not the
    target: on N(0, 1) it has variance 1 / (1 - h/2), and it exists only for h < 2.

    A kernel without correction has no acceptance to tune by. Warm-up therefore tunes h until a Metropolis correction
    *would* accept 95 % of the proposals (``Info.tuning``, by the formula of `mala`). That keeps the discretisation error
    of a step small. On a standard normal in 16 dimensions it gives h near 0.12, an excess variance of 6 %.

    A proposal that is not finite, or whose energy error -log alpha exceeds 1000, is a divergence: the chain stays where
    it was.

    Args:
        step_size: h, a squared length in units of the prior's variance.

    Raises:
        UsageError: the step size is not a positive finite number.

    References:
        Exponential convergence of Langevin distributions and their discrete approximations.
        G. O. Roberts, R. L. Tweedie, Bernoulli 1996. https://doi.org/10.2307/3318418
    """

    exact: ClassVar[bool] = False

    def __init__(self, step_size: Annotated[float, Range(0, None, low_open=True)] = 0.05) -> None:
        check_arguments(self, step_size=step_size)
        self.step_size = step_size
        self.inverse_mass: Tensor | None = None

    @property
    def tunable(self) -> Tunable:
        """The step size, tuned to a would-be acceptance of 0.95, with h below 0.5, where a flat tilt has a bias of 33 %."""
        return Tunable("step_size", target=0.95, low=1e-8, high=0.5)

    def init(self, z: Tensor, potential: Potential, generator: torch.Generator) -> UlaState:
        """Start chains at ``z``, (C, Z)."""
        return UlaState(z, *potential.value_and_grad(z))

    def step(self, state: UlaState, potential: Potential, generator: torch.Generator) -> tuple[UlaState, Info]:
        """Make one Euler step of every chain."""
        z, value, grad = state
        h, s = self.step_size, None if self.inverse_mass is None else self.inverse_mass.sqrt()
        noise = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
        proposal = propose(z, grad, noise, h, s)
        end = potential.value_and_grad(proposal)

        error = energy_error(ValueAndGrad(value, grad), end, noise, h, s)

        diverged = error > DIVERGENCE_THRESHOLD
        stays = diverged.unsqueeze(1)
        new_state = UlaState(
            torch.where(stays, z, proposal),
            torch.where(diverged, value, end.value),
            torch.where(stays, grad, end.grad),
        )
        moved = ~diverged
        info = Info(moved.to(value.dtype), moved, diverged, grad_evals=1, tuning=error.neg_().exp_().clamp_(max=1))
        return new_state, info
