"""Elliptical slice sampling in latent space: no gradient, and no rejection unless a bounded loop runs out of rounds."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, NamedTuple

import torch
from torch import Tensor

from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.interfaces import Info, Potential, Sampler, Tunable
from gebm_kit.core.tilt import tilt


class EllipticalState(NamedTuple):
    """Chains at ``position`` (C, Z) with the cached tilt ``value`` (C,)."""

    position: Tensor
    value: Tensor


class Elliptical(Sampler):
    """Elliptical slice sampling by a masked loop of K = ``max_evaluations`` rounds.

        nu ~ N(0, I),   level = tilt(z) - log u,   theta_hi = w u',   theta_lo = theta_hi - w;
        K times:   theta ~ U(theta_lo, theta_hi),   z' = z cos(theta) + nu sin(theta);
                   if tilt(z') < level: move to z' and stop;   else theta_lo or theta_hi <- theta, the one on its side of 0.

    u, u' are uniform on (0, 1), and tilt = beta E(G(z)). With w = 2 pi the first bracket is the whole ellipse, as
    published. A shorter bracket, placed at random around 0, is Neal's bracket without stepping out. It saves the rounds
    of shrinking that a strong tilt needs before a point lies on the slice.

    A chain that has found no point after K rounds stays where it is. The kernel is still exact. A path that moves after
    k <= K rounds has the same density seen from either end, so each of the K parts of the kernel is reversible, and so
    is staying. Every chain is evaluated K times, because finding out which chains are done would wait for the device.

    A point whose tilt is not finite is off the slice. A step that meets one before it moves counts as divergent.

    Args:
        bracket: w, the length of the first bracket, an angle in radians. Warm-up tunes it until 90 % of the chains move.
        max_evaluations: K, the number of evaluations of the model a step.

    Raises:
        UsageError: an argument is outside its range.

    References:
        Elliptical slice sampling. I. Murray, R. P. Adams, D. J. C. MacKay, AISTATS 2010. https://arxiv.org/abs/1001.0175
        Slice sampling. R. M. Neal, Annals of Statistics 2003. https://arxiv.org/abs/physics/0009028 (Section 4: brackets of
        fixed width, and shrinking them)
    """

    caches_tilt: ClassVar[bool] = True

    def __init__(
        self,
        bracket: Annotated[float, Range(0, 2 * math.pi, low_open=True)] = 2 * math.pi,
        max_evaluations: Annotated[int, Range(1, None)] = 4,
    ) -> None:
        check_arguments(self, bracket=bracket, max_evaluations=max_evaluations)
        self.bracket = bracket
        self.max_evaluations = max_evaluations

    @property
    def tunable(self) -> Tunable:
        """The bracket, tuned until 90 % of the chains move, with w at most 2 pi. A weak tilt leads to that bound."""
        return Tunable("bracket", target=0.9, low=1e-6, high=2 * math.pi)

    def init(self, z: Tensor, potential: Potential, generator: torch.Generator) -> EllipticalState:
        """Start chains at ``z``, (C, Z)."""
        return EllipticalState(z, tilt(potential, z))

    def step(
        self, state: EllipticalState, potential: Potential, generator: torch.Generator
    ) -> tuple[EllipticalState, Info]:
        """Draw one ellipse and search it for K rounds, for every chain."""
        z, value = state
        other = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
        shape = (2 + self.max_evaluations, z.shape[0])
        uniform = torch.rand(shape, generator=generator, dtype=z.dtype, device=z.device)
        level = value - uniform[0].log()
        high = self.bracket * uniform[1]
        low = high - self.bracket

        position, new_value = z, value
        searching = torch.ones_like(value, dtype=torch.bool)
        diverged = torch.zeros_like(searching)
        for share in uniform[2:]:
            angle = torch.lerp(low, high, share)
            point = torch.addcmul(z * angle.cos().unsqueeze(1), other, angle.sin().unsqueeze(1))
            found_value = tilt(potential, point)
            finite = torch.isfinite(found_value)
            found = searching & finite & (found_value < level)
            position = torch.where(found.unsqueeze(1), point, position)
            new_value = torch.where(found, found_value, new_value)
            diverged |= searching & ~finite
            searching &= ~found
            low, high = torch.where(angle < 0, angle, low), torch.where(angle < 0, high, angle)

        moved = ~searching
        info = Info(
            moved.to(value.dtype), moved & ~diverged, diverged, grad_evals=0, forward_evals=self.max_evaluations
        )
        return EllipticalState(position, new_value), info
