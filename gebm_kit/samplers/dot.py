"""Discriminator optimal transport in latent space: each base draw goes downhill as far as the transport is worth it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.interfaces import Info, Potential, Sampler
from gebm_kit.core.tilt import steepest, tilt_and_grad

SMOOTHING = 1e-3
"""delta: the distance is rounded off within it, where it has no gradient (the paper's added vector has this size)."""

GROWTH, SHRINKAGE = 1.2, 0.5
"""Factors of a chain's step after one that went downhill and one that did not."""


class DotState(NamedTuple):
    """Points at ``position`` (C, Z) with the cached tilt ``value`` (C,) and its gradient ``grad`` (C, Z).

    ``origin`` (C, Z) is where they come from, ``step_size`` (C,) each one's own, ``lipschitz`` () is k, ``steps`` () int64
    counts.
    """

    position: Tensor
    value: Tensor
    grad: Tensor
    origin: Tensor
    step_size: Tensor
    lipschitz: Tensor
    steps: Tensor


class Dot(Sampler):
    """Discriminator optimal transport in latent space: gradient descent, from a prior draw z_0, on

        J(z) = |z - z_0| + tilt(z) / k,   k = max |tilt(a) - tilt(b)| / |a - b| over pairs of prior draws (k_eff).

    If -tilt / k were Kantorovich's potential between base and data, the minimiser would be the image of z_0 under the
    optimal transport map. A refiner: **draws follow no stated law**; they are base draws, each moved toward lower energy,
    those alone near which the tilt is steeper than k. As k goes with beta, the outcome does not depend on beta unless
    ``lipschitz`` fixes k.

    Each chain takes a step only if that lowers its J (a step that doesn't is halved, one that does grows a little), so J
    falls from step to step and |z - z_0| <= (tilt(z_0) - tilt(z)) / k holds throughout; the published algorithm takes steps
    of one size. ``acceptance`` is the share that went downhill. A point without a finite tilt is not entered, and counted as
    a divergence. The distance is sqrt(|z - z_0|² + delta²) - delta.

    Args:
        num_steps: gradients for each draw.
        step_size: first step, a length in units of the prior's standard deviation.
        lipschitz: k, in nats of beta E for each unit of z; None: estimated.
        num_pairs: pairs of prior draws that k is estimated from.
        keep_length: descend on the sphere |z| = |z_0|, on which a normal prior has its mass in many dimensions (after the
            paper, which takes the radial part off the gradient).

    Raises:
        UsageError: an argument outside its range.

    References:
        Discriminator optimal transport. A. Tanaka, NeurIPS 2019. https://arxiv.org/abs/1910.06832
    """

    family: ClassVar[Literal["kernel", "population", "refiner"]] = "refiner"
    exact: ClassVar[bool] = False

    def __init__(
        self,
        num_steps: Annotated[int, Range(1, None)] = 100,
        step_size: Annotated[float, Range(0, None, low_open=True)] = 0.05,
        lipschitz: Annotated[float | None, Range(0, None, low_open=True)] = None,
        num_pairs: Annotated[int, Range(1, None)] = 100,
        keep_length: bool = False,
    ) -> None:
        check_arguments(self, num_steps=num_steps, step_size=step_size, num_pairs=num_pairs)
        if lipschitz is not None:
            check_arguments(self, lipschitz=lipschitz)
        self.num_steps = num_steps
        self.step_size = step_size
        self.lipschitz = lipschitz
        self.num_pairs = num_pairs
        self.keep_length = keep_length

    def init(self, z: Tensor, potential: Potential, generator: torch.Generator) -> DotState:
        """Points at their origins ``z``: (C, Z), prior draws; k from pairs drawn besides."""
        value, grad = tilt_and_grad(potential, z)
        if self.lipschitz is None:
            lipschitz = steepest(potential, z, self.num_pairs, generator)
        else:
            lipschitz = torch.full_like(value[0], self.lipschitz)
        steps = torch.zeros((), dtype=torch.int64, device=z.device)
        return DotState(z, value, grad, z, torch.full_like(value, self.step_size), lipschitz, steps)

    def step(self, state: DotState, potential: Potential, generator: torch.Generator) -> tuple[DotState, Info]:
        """One step downhill of every point, or none."""
        z, value, grad, origin, step_size, lipschitz, steps = state
        weight = torch.where(lipschitz > 0, 1 / lipschitz, 0.0)  # 0: a flat tilt moves nobody
        away = z - origin
        slope = away / (away.square().sum(1, keepdim=True) + SMOOTHING**2).sqrt() + weight * grad
        if self.keep_length:
            squares = z.square().sum(1, keepdim=True)
            slope = slope - z * (z * slope).sum(1, keepdim=True) / squares
        proposal = z - step_size.unsqueeze(1) * slope
        if self.keep_length:
            proposal = proposal * (squares / proposal.square().sum(1, keepdim=True)).sqrt()
        new_value, new_grad = tilt_and_grad(potential, proposal)
        finite = torch.isfinite(new_value) & torch.isfinite(new_grad).all(1)
        lower = _distance(proposal, origin) - _distance(z, origin) + weight * (new_value - value) < 0
        downhill = finite & lower
        moves = downhill.unsqueeze(1)
        new_state = DotState(
            torch.where(moves, proposal, z),
            torch.where(downhill, new_value, value),
            torch.where(moves, new_grad, grad),
            origin,
            step_size * torch.where(downhill, GROWTH, SHRINKAGE),
            lipschitz,
            steps + 1,
        )
        return new_state, Info(downhill.to(value.dtype), downhill, ~finite, grad_evals=1)

    def finished(self, state: DotState) -> Tensor:
        """After ``num_steps`` steps."""
        return state.steps >= self.num_steps

    def summary(self, state: DotState) -> Mapping[str, Tensor]:
        """``lipschitz``, the k used; ``distance``, the mean of |z - z_0|."""
        return {"lipschitz": state.lipschitz, "distance": (state.position - state.origin).norm(dim=1).mean()}


def _distance(z: Tensor, origin: Tensor) -> Tensor:
    """``sqrt(|z - z_0|² + delta²)``, (C,)."""
    return ((z - origin).square().sum(1) + SMOOTHING**2).sqrt()
