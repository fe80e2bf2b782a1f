"""The Metropolis-adjusted Langevin algorithm in latent space: exact, with one gradient a step."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.interfaces import DIVERGENCE_THRESHOLD, Info, Potential, Sampler, Tunable, ValueAndGrad
from gebm_kit.core.langevin import energy_error, propose


class MalaState(NamedTuple):
    """Chains at ``position`` (C, Z) with the cached potential ``value`` (C,) and its gradient ``grad`` (C, Z)."""

    position: Tensor
    value: Tensor
    grad: Tensor


class Mala(Sampler):
    """The Metropolis-adjusted Langevin algorithm (MALA).

    With g = grad U, xi ~ N(0, I) and the diagonal preconditioner s² = ``inverse_mass`` (1 until warm-up sets it), the
    proposal and its acceptance probability alpha are

        z' = z - h s² g + sqrt(2 h) s xi,
        log alpha = U(z) - U(z') + ½ |xi|² - |(z - z' + h s² g') / s|² / (4 h).

    With d = s (g + g') the squares of xi cancel, and the code (`gebm_kit.core.langevin`) computes

        log alpha = U(z) - U(z') - d · (h/4 d - sqrt(h/2) xi).

    A non-finite proposal, or one with -log alpha > 1000, is a divergence: it is rejected and counted.

    Args:
        step_size: h, a squared length in units of the prior's variance; tuned by warm-up to an acceptance of 0.574.

    Raises:
        UsageError: the step size is not a positive finite number.

    References:
        Optimal scaling of discrete approximations to Langevin diffusions. G. O. Roberts, J. S. Rosenthal, JRSS B 1998.
        https://doi.org/10.1111/1467-9868.00123 (the acceptance of 0.574)
    """

    def __init__(self, step_size: Annotated[float, Range(0, None, low_open=True)] = 0.1) -> None:
        check_arguments(self, step_size=step_size)
        self.step_size = step_size
        self.inverse_mass: Tensor | None = None

    @property
    def tunable(self) -> Tunable:
        """The step size, tuned to an acceptance of 0.574, with h below 1.

        Under a flat tilt the drift of a step with h = 1 leads from anywhere to the prior's mode.
        """
        return Tunable("step_size", target=0.574, low=1e-8, high=1.0)

    def init(self, z: Tensor, potential: Potential, generator: torch.Generator) -> MalaState:
        """Start chains at ``z``, (C, Z)."""
        return MalaState(z, *potential.value_and_grad(z))

    def step(self, state: MalaState, potential: Potential, generator: torch.Generator) -> tuple[MalaState, Info]:
        """Make and test one proposal for every chain."""
        z, value, grad = state
        h, s = self.step_size, None if self.inverse_mass is None else self.inverse_mass.sqrt()
        noise = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
        proposal = propose(z, grad, noise, h, s)
        end = potential.value_and_grad(proposal)

        error = energy_error(ValueAndGrad(value, grad), end, noise, h, s)

        diverged = error > DIVERGENCE_THRESHOLD
        acceptance = error.neg_().exp_().clamp_(max=1)
        uniform = torch.rand(value.shape, generator=generator, dtype=z.dtype, device=z.device)
        accepted = uniform < acceptance  # never for a divergence, whose acceptance is exp(-1000) = 0
        moves = accepted.unsqueeze(1)
        new_state = MalaState(
            torch.where(moves, proposal, z),
            torch.where(accepted, end.value, value),
            torch.where(moves, end.grad, grad),
        )
        return new_state, Info(acceptance, accepted, diverged, grad_evals=1)
