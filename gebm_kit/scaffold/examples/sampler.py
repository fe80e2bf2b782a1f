"""Langevin proposals with a Metropolis test."""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.interfaces import DIVERGENCE_THRESHOLD, Info, Potential, Sampler, Tunable


class ChainState(NamedTuple):
    """Chains at ``position``, (C, Z), with U there, (C,), and its gradient, (C, Z)."""

    position: Tensor
    value: Tensor
    grad: Tensor


class Example(Sampler):
    """Langevin proposals with a Metropolis test.

    With g = grad U and xi ~ N(0, I), a chain at z proposes z', and moves there with probability min(1, alpha):

        z' = z - h g(z) + sqrt(2 h) xi,
        log alpha = U(z) - U(z') + ½ |xi|² - |z - z' + h g(z')|² / (4 h).

    Args:
        step_size: h, a squared length in units of the prior's variance; warm-up tunes it to an acceptance of 0.574.
    """

    def __init__(self, step_size: Annotated[float, Range(0, None, low_open=True)] = 0.1) -> None:
        check_arguments(self, step_size=step_size)
        self.step_size = step_size

    @property
    def tunable(self) -> Tunable:
        """What warm-up may tune, and the acceptance that it aims at."""
        return Tunable("step_size", target=0.574, low=1e-8, high=1.0)

    def init(self, z: Tensor, potential: Potential, generator: torch.Generator) -> ChainState:
        """Start chains at ``z``, (C, Z)."""
        return ChainState(z, *potential.value_and_grad(z))

    def step(self, state: ChainState, potential: Potential, generator: torch.Generator) -> tuple[ChainState, Info]:
        """Make and test one proposal for every chain, without waiting for the device."""
        z, h = state.position, self.step_size
        noise = torch.empty_like(z).normal_(generator=generator)
        proposal = z - h * state.grad + math.sqrt(2 * h) * noise
        end = potential.value_and_grad(proposal)

        backward = (z - proposal + h * end.grad).square().sum(1) / (4 * h)
        log_alpha = state.value - end.value + 0.5 * noise.square().sum(1) - backward
        error = (-log_alpha).nan_to_num(nan=torch.inf, neginf=torch.inf)  # a proposal that is not finite is rejected
        acceptance = (-error).exp().clamp(max=1)
        accepted = torch.empty_like(acceptance).uniform_(generator=generator) < acceptance

        moves = accepted.unsqueeze(1)
        new_state = ChainState(
            torch.where(moves, proposal, z),
            torch.where(accepted, end.value, state.value),
            torch.where(moves, end.grad, state.grad),
        )
        return new_state, Info(acceptance, accepted, error > DIVERGENCE_THRESHOLD, grad_evals=1)
