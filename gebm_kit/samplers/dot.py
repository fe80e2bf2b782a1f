"""Discriminator optimal transport in latent space: a base draw moves downhill while the gain is worth the distance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.interfaces import Info, Potential, Sampler
from gebm_kit.core.tilt import steepest, tilt_and_grad

SMOOTHING = 1e-3
"""delta, the distance from z_0 within which |z - z_0| is smoothed, because it has no gradient at z_0. The paper adds a
vector of this size there."""

STEP_GROWTH, STEP_SHRINKAGE = 1.2, 0.5
"""Factors of a chain's step size after a step that lowered J and after one that did not. Halving finds a step that
works soon; the smaller growth keeps few steps from failing again."""


class DotState(NamedTuple):
    """Points at ``position`` (C, Z) with the cached tilt ``value`` (C,) and its gradient ``grad`` (C, Z).

    Attributes:
        origin: z_0, where each point started, (C, Z).
        step_size: the step size of each point, (C,).
        lipschitz: k, ().
        steps: number of steps made, () int64.
    """

    position: Tensor
    value: Tensor
    grad: Tensor
    origin: Tensor
    step_size: Tensor
    lipschitz: Tensor
    steps: Tensor


class Dot(Sampler):
    """Discriminator optimal transport in latent space: gradient descent from a prior draw z_0 on a cost J.

        J(z) = |z - z_0| + tilt(z) / k,   k = max |tilt(a) - tilt(b)| / |a - b| over pairs of prior draws (k_eff).

    If -tilt / k were Kantorovich's potential between base and data, the minimiser would be the image of z_0 under the
    optimal transport map. This is a refiner: **draws follow no stated law**. They are base draws moved toward lower
    energy, and only draws near which the tilt is steeper than k move. k is proportional to beta, so the outcome does
    not depend on beta unless ``lipschitz`` fixes k.

    A chain takes a step only if the step lowers its J. The step size is then increased a little, and otherwise halved.
    Hence J never rises, and |z - z_0| <= (tilt(z_0) - tilt(z)) / k always holds. The published algorithm keeps one step
    size. ``acceptance`` is the share of chains that moved downhill. A step to a point without a finite tilt is rejected
    and counted as a divergence. The distance is computed as sqrt(|z - z_0|² + delta²) - delta.

    Args:
        num_steps: gradients for each draw.
        step_size: first step, a length in units of the prior's standard deviation.
        lipschitz: k, in nats of beta E for each unit of z; None: estimated.
        num_pairs: pairs of prior draws from which k is estimated.
        keep_length: descend on the sphere |z| = |z_0|, near which a normal prior has its mass in many dimensions. (The
            paper removes the radial part of the gradient for the same reason.)

    Raises:
        UsageError: an argument is outside its range.

    References:
        Discriminator optimal transport. A. Tanaka, NeurIPS 2019. https://arxiv.org/abs/1910.06832
    """

    family: ClassVar[Literal["kernel", "population", "refiner"]] = "refiner"
    exact: ClassVar[bool] = False
    caches_tilt: ClassVar[bool] = True

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
        """Start points at the prior draws ``z``, (C, Z), their origins; k is estimated from other draws."""
        value, grad = tilt_and_grad(potential, z)
        if self.lipschitz is None:
            lipschitz = steepest(potential, z, self.num_pairs, generator)
        else:
            lipschitz = torch.full_like(value[0], self.lipschitz)
        steps = torch.zeros((), dtype=torch.int64, device=z.device)
        return DotState(z, value, grad, z, torch.full_like(value, self.step_size), lipschitz, steps)

    def step(self, state: DotState, potential: Potential, generator: torch.Generator) -> tuple[DotState, Info]:
        """Try one step downhill of every point."""
        z, value, grad, origin, step_size, lipschitz, steps = state
        weight = torch.where(lipschitz > 0, 1 / lipschitz, 0.0)  # 0: no point moves on a flat tilt
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
        lower = (
            distance_from_origin(proposal, origin) - distance_from_origin(z, origin) + weight * (new_value - value) < 0
        )
        downhill = finite & lower
        moves = downhill.unsqueeze(1)
        new_state = DotState(
            torch.where(moves, proposal, z),
            torch.where(downhill, new_value, value),
            torch.where(moves, new_grad, grad),
            origin,
            step_size * torch.where(downhill, STEP_GROWTH, STEP_SHRINKAGE),
            lipschitz,
            steps + 1,
        )
        return new_state, Info(downhill.to(value.dtype), downhill, ~finite, grad_evals=1)

    def finished(self, state: DotState) -> Tensor:
        """Return True, (), after ``num_steps`` steps."""
        return state.steps >= self.num_steps

    def summary(self, state: DotState) -> Mapping[str, Tensor]:
        """Return ``lipschitz``, the k that was used, and ``distance``, the mean of |z - z_0|."""
        return {"lipschitz": state.lipschitz, "distance": (state.position - state.origin).norm(dim=1).mean()}


def distance_from_origin(z: Tensor, origin: Tensor) -> Tensor:
    """Return ``sqrt(|z - z_0|² + delta²)``, (C,)."""
    return ((z - origin).square().sum(1) + SMOOTHING**2).sqrt()
