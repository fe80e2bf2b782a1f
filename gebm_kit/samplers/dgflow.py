"""Discriminator gradient flow in latent space: a few noisy steps down the gradient of an f-divergence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.estimators import log_mean_exp
from gebm_kit.core.interfaces import Info, Potential, Sampler
from gebm_kit.core.tilt import prior_pool, steepest, tilt_and_grad

DEFAULT_STEP_SIZE = 0.1
"""eta in the paper's experiments."""

NUM_PAIRS = 100
"""Pairs of prior draws from which the slope of the tilt is estimated, as many as the default of `Dot`. More pairs find
a larger slope, and so shorter steps, at two evaluations each."""


class DgflowState(NamedTuple):
    """Points at ``position`` (C, Z) with the cached tilt ``value`` (C,) and its gradient ``grad`` (C, Z).

    Attributes:
        step_size: eta, ().
        log_mass: A of the density ratio, (); 0 where the divergence does not need it.
        steps: number of steps made, () int64.
    """

    position: Tensor
    value: Tensor
    grad: Tensor
    step_size: Tensor
    log_mass: Tensor
    steps: Tensor


class Dgflow(Sampler):
    """Discriminator gradient flow: Euler-Maruyama steps of the gradient flow of an f-divergence, regularised by entropy.

        z <- z - eta grad f'(r(z)) + sqrt(2 gamma eta) xi,   r = exp(tilt + A), the density ratio of base and model.

    r stays the ratio at the start, although in the exact flow it would change as the points move. With g = grad tilt
    the drift grad f'(r) is

        kl: g  (f = r log r),   js: g / (1 + r),   logd: g r / (1 + r)  (f = (r + 1) log(r + 1)).

    This is a refiner: **draws follow no stated law**. They are base draws after ``num_steps`` steps toward lower
    energy. The drift does not contain the prior, so more steps do not lead to the model either. With kl they lead to
    the law ∝ exp(-tilt(z) / gamma), up to the bias of the steps, where that law can be normalised. (With the prior in
    the drift and gamma = 1 the update would be that of `ula`.) On a tilt a z² / 2 the stationary law is normal with
    variance gamma / (a (1 - a eta / 2)).

    A step to a point without a finite tilt is rejected and counted as a divergence. Every other step is accepted.

    Args:
        num_steps: gradients for each draw.
        step_size: eta, a squared length in units of the prior's variance. None: 0.1, divided by the slope of the tilt
            (``max |tilt(a) - tilt(b)| / |a - b|`` over pairs of prior draws) where the slope exceeds 1, so that a large
            beta makes steps shorter instead of wilder.
        noise: gamma, the weight of the entropy.
        divergence: f.
        pool_size: prior draws from which A is estimated; kl needs none.

    Raises:
        UsageError: an argument is outside its range.

    References:
        Refining deep generative models via discriminator gradient flow. A. F. Ansari, M. L. Ang, H. Soh, ICLR 2021.
        https://arxiv.org/abs/2012.00780 (25 steps with eta = 0.1 and gamma = 0.01)
    """

    family: ClassVar[Literal["kernel", "population", "refiner"]] = "refiner"
    exact: ClassVar[bool] = False
    caches_tilt: ClassVar[bool] = True

    def __init__(
        self,
        num_steps: Annotated[int, Range(1, None)] = 25,
        step_size: Annotated[float | None, Range(0, None, low_open=True)] = None,
        noise: Annotated[float, Range(0, None)] = 0.01,
        divergence: Literal["kl", "js", "logd"] = "kl",
        pool_size: Annotated[int, Range(1, None)] = 1000,
    ) -> None:
        check_arguments(self, num_steps=num_steps, noise=noise, divergence=divergence, pool_size=pool_size)
        if step_size is not None:
            check_arguments(self, step_size=step_size)
        self.num_steps = num_steps
        self.step_size = step_size
        self.noise = noise
        self.divergence = divergence
        self.pool_size = pool_size

    def init(self, z: Tensor, potential: Potential, generator: torch.Generator) -> DgflowState:
        """Start points at the prior draws ``z``, (C, Z); eta and A are estimated from other draws."""
        value, grad = tilt_and_grad(potential, z)
        if self.step_size is None:
            step_size = DEFAULT_STEP_SIZE / steepest(potential, z, NUM_PAIRS, generator).clamp(min=1)
        else:
            step_size = torch.full_like(value[0], self.step_size)
        log_mass = torch.zeros_like(value[0])
        if self.divergence != "kl":
            _, pool = prior_pool(potential, z, self.pool_size, generator)
            log_mass = log_mean_exp(torch.where(torch.isfinite(pool), -pool, -math.inf))
        return DgflowState(z, value, grad, step_size, log_mass, torch.zeros((), dtype=torch.int64, device=z.device))

    def step(self, state: DgflowState, potential: Potential, generator: torch.Generator) -> tuple[DgflowState, Info]:
        """Make one step of every point."""
        z, value, grad, eta, log_mass, steps = state
        noise = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
        drift = self._strength(value + log_mass).unsqueeze(1) * grad
        proposal = z - eta * drift + (2 * self.noise * eta).sqrt() * noise
        new_value, new_grad = tilt_and_grad(potential, proposal)
        finite = torch.isfinite(new_value) & torch.isfinite(new_grad).all(1)
        moves = finite.unsqueeze(1)
        new_state = DgflowState(
            torch.where(moves, proposal, z),
            torch.where(finite, new_value, value),
            torch.where(moves, new_grad, grad),
            eta,
            log_mass,
            steps + 1,
        )
        return new_state, Info(finite.to(value.dtype), finite, ~finite, grad_evals=1)

    def finished(self, state: DgflowState) -> Tensor:
        """Tell whether ``num_steps`` steps have been made; a boolean tensor of shape ()."""
        return state.steps >= self.num_steps

    def summary(self, state: DgflowState) -> Mapping[str, Tensor]:
        """Return ``length``, the mean of |z|² / Z, which is 1 under the prior, and ``eta``."""
        return {"length": state.position.square().mean(), "eta": state.step_size}

    def _strength(self, log_ratio: Tensor) -> Tensor:
        """Return d f'(r) / d log r from ``log r``; (C,) -> (C,)."""
        if self.divergence == "kl":
            return torch.ones_like(log_ratio)
        return torch.sigmoid(-log_ratio if self.divergence == "js" else log_ratio)
