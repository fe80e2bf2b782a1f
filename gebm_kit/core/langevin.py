"""The Langevin proposal and its Metropolis test, which ``ula``, ``mala`` and the local moves of ``isir`` share.

With g = grad U, xi ~ N(0, I), a step size h and a diagonal preconditioner s², the proposal z' and its acceptance ratio
are

    z' = z - h s² g + sqrt(2 h) s xi,
    log alpha = U(z) - U(z') + ½ |xi|² - |(z - z' + h s² g') / s|² / (4 h).

With d = s (g + g') the last term is ``|h d - sqrt(2 h) xi|² / (4 h)``. Its ½ |xi|² cancels, which leaves

    log alpha = U(z) - U(z') - d · (h/4 d - sqrt(h/2) xi).

-log alpha is called the energy error here, as in `gebm_kit.core.hamiltonian`. Both functions exist in two forms.
`propose` and `energy_error` take the whole potential U. `propose_split` and `energy_error_split` take the tilt, for
kernels that cache the tilt, and subtract the prior's parts before they sum. The two forms are equal up to rounding;
they are kept apart so that a seed keeps giving the same draws.

Shapes: C chains, Z latent size.

References:
    Exponential convergence of Langevin distributions and their discrete approximations. G. O. Roberts, R. L. Tweedie,
    Bernoulli 1996. https://doi.org/10.2307/3318418
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gebm_kit.core.sampling import ValueAndGrad


def propose(z: Tensor, grad: Tensor, noise: Tensor, step_size: float, scale: Tensor | None) -> Tensor:
    """Return ``z' = z - h s² g + sqrt(2 h) s xi``, (C, Z).

    Args:
        z, grad, noise: z, g = grad U(z) and xi, (C, Z) each.
        step_size: h, a squared length.
        scale: s, (Z,); None stands for 1.
    """
    if scale is None:
        return torch.add(z, grad, alpha=-step_size).add_(noise, alpha=math.sqrt(2 * step_size))
    move = noise.mul(math.sqrt(2 * step_size)).addcmul_(grad, scale, value=-step_size)
    return torch.addcmul(z, move, scale)


def energy_error(
    start: ValueAndGrad, end: ValueAndGrad, noise: Tensor, step_size: float, scale: Tensor | None
) -> Tensor:
    """Return ``-log alpha = U(z') - U(z) + d · (h/4 d - sqrt(h/2) xi)``, (C,); inf where it is not finite.

    Args:
        start, end: U and g at z and at z'.
        noise: the xi of `propose`, (C, Z); **overwritten**.
        step_size: h.
        scale: s, (Z,); None stands for 1.
    """
    both = start.grad + end.grad if scale is None else (start.grad + end.grad).mul_(scale)
    drift = noise.mul_(-math.sqrt(step_size / 2)).add_(both, alpha=step_size / 4)
    error = torch.linalg.vecdot(both, drift).add_(end.value).sub_(start.value)
    return error.nan_to_num_(nan=math.inf, posinf=math.inf, neginf=math.inf)


class SplitPoint(NamedTuple):
    """Chains at ``position`` z, (C, Z), with their ``tilt``, (C,), and ``slope`` s g = s grad U, (C, Z)."""

    position: Tensor
    tilt: Tensor
    slope: Tensor


def propose_split(start: SplitPoint, noise: Tensor, step_size: float, scale: Tensor | float) -> Tensor:
    """Return ``z' = z + s (sqrt(2 h) xi - h s g)``, (C, Z): the proposal of `propose`.

    Args:
        start: the chains.
        noise: xi, (C, Z).
        step_size: h, a squared length.
        scale: s, (Z,) or 1.
    """
    return start.position + scale * (math.sqrt(2 * step_size) * noise - step_size * start.slope)


def energy_error_split(start: SplitPoint, end: SplitPoint, noise: Tensor, step_size: float) -> Tensor:
    """Return ``-log alpha`` for ``U(z) = ½|z|² + tilt(z)``, (C,); inf where it is not finite.

    The prior's parts ½|z|² are subtracted before they are summed, which keeps float32 accurate in many dimensions.

    Args:
        start, end: the chains before and after `propose_split`.
        noise: its xi, (C, Z).
        step_size: h.
    """
    both = start.slope + end.slope
    drift = (step_size / 4) * both - math.sqrt(step_size / 2) * noise
    prior = 0.5 * (end.position.square() - start.position.square()).sum(1)
    error = torch.linalg.vecdot(both, drift) + prior + (end.tilt - start.tilt)
    return error.nan_to_num_(nan=math.inf, posinf=math.inf, neginf=math.inf)
