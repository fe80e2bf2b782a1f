"""Random-walk Metropolis in latent space: the plainest exact kernel, and a baseline for all others."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.interfaces import Info, Potential, Sampler, Tunable


class RwmState(NamedTuple):
    """Chains at ``position`` (C, Z) with the cached potential ``value`` (C,)."""

    position: Tensor
    value: Tensor


class Rwm(Sampler):
    """Random-walk Metropolis, with the prior included in the acceptance ratio.

        z' = z + h s xi,   xi ~ N(0, I),        log alpha = U(z) - U(z'),

    where s² = ``inverse_mass`` is a diagonal preconditioner (1 until warm-up sets it).

    A proposal whose potential is not finite is a divergence: it is rejected and counted. There is no integrator whose
    error could diverge, so a large finite difference is only a rejection.

    Args:
        step_size: h, a length in units of the prior's standard deviation; tuned by warm-up to an acceptance of 0.25.

    Raises:
        UsageError: the step size is not a positive finite number.

    References:
        Weak convergence and optimal scaling of random walk Metropolis algorithms. G. O. Roberts, A. Gelman, W. R. Gilks,
        Annals of Applied Probability 1997. https://doi.org/10.1214/aoap/1034625254 (the best acceptance: 0.234 in many
        dimensions, up to 0.44 in one)
    """

    def __init__(self, step_size: Annotated[float, Range(0, None, low_open=True)] = 0.5) -> None:
        check_arguments(self, step_size=step_size)
        self.step_size = step_size
        self.inverse_mass: Tensor | None = None

    @property
    def tunable(self) -> Tunable:
        """The step size, tuned to an acceptance of 0.25, with h below 10.

        The bound exceeds the best step under a flat tilt in one dimension.
        """
        return Tunable("step_size", target=0.25, low=1e-6, high=10.0)

    def init(self, z: Tensor, potential: Potential, generator: torch.Generator) -> RwmState:
        """Start chains at ``z``, (C, Z)."""
        return RwmState(z, potential.value(z))

    def step(self, state: RwmState, potential: Potential, generator: torch.Generator) -> tuple[RwmState, Info]:
        """Make and test one proposal for every chain."""
        z, value = state
        noise = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
        if self.inverse_mass is not None:
            noise.mul_(self.inverse_mass.sqrt())
        proposal = noise.mul_(self.step_size).add_(z)
        new_value = potential.value(proposal)

        diverged = ~torch.isfinite(new_value)
        acceptance = (value - new_value).exp().clamp(max=1).masked_fill(diverged, 0)
        uniform = torch.rand(value.shape, generator=generator, dtype=z.dtype, device=z.device)
        accepted = uniform < acceptance
        new_state = RwmState(
            torch.where(accepted.unsqueeze(1), proposal, z),
            torch.where(accepted, new_value, value),
        )
        return new_state, Info(acceptance, accepted, diverged, grad_evals=0, forward_evals=1)
