"""Independent Metropolis-Hastings from the prior: draws of the base, accepted or rejected by their energy."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from gebm_kit.core.interfaces import Info, Potential, Sampler
from gebm_kit.core.tilt import tilt


class ImhState(NamedTuple):
    """Chains at ``position`` (C, Z) with the cached tilt ``value`` (C,)."""

    position: Tensor
    value: Tensor


class Imh(Sampler):
    """Independent Metropolis-Hastings whose proposals are prior draws, that is draws ``x = G(z')`` of the base.

        z' ~ N(0, I),        log alpha = tilt(z) - tilt(z'),   tilt = beta E(G(z)).

    It jumps between modes at any distance. Its acceptance falls about exponentially with the divergence of the model
    from the base. It is good when the base is nearly right or beta is small, and hardly moves otherwise. It has nothing
    to tune.

    A proposal whose tilt is not finite is a divergence: it is rejected and counted.

    References:
        Metropolis-Hastings Generative Adversarial Networks. R. Turner, J. Hung, E. Frank, Y. Saatci, J. Yosinski,
        ICML 2019. https://arxiv.org/abs/1811.11357
        Rates of convergence of the Hastings and Metropolis algorithms. K. L. Mengersen, R. L. Tweedie, Annals of Statistics
        1996. https://doi.org/10.1214/aos/1033066201 (the chain is geometrically ergodic if and only if exp(-tilt) is
        bounded)
    """

    caches_tilt: ClassVar[bool] = True

    def init(self, z: Tensor, potential: Potential, generator: torch.Generator) -> ImhState:
        """Start chains at ``z``, (C, Z)."""
        return ImhState(z, tilt(potential, z))

    def step(self, state: ImhState, potential: Potential, generator: torch.Generator) -> tuple[ImhState, Info]:
        """Make and test one proposal for every chain."""
        z, value = state
        proposal = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
        new_value = tilt(potential, proposal)

        diverged = ~torch.isfinite(new_value)
        acceptance = (value - new_value).exp().clamp(max=1).masked_fill(diverged, 0)
        uniform = torch.rand(value.shape, generator=generator, dtype=z.dtype, device=z.device)
        accepted = uniform < acceptance
        new_state = ImhState(
            torch.where(accepted.unsqueeze(1), proposal, z),
            torch.where(accepted, new_value, value),
        )
        return new_state, Info(acceptance, accepted, diverged, grad_evals=0, forward_evals=1)
