"""Any potential as prior plus tilt, ``U(z) = |z|^2 / 2 + tilt(z)``.

For a potential that is not split, the tilt is U(z) minus the standard normal's part. Kernels whose proposals leave the
standard normal invariant (pCN, elliptical slices, prior draws) need only the tilt, so they serve every potential. A
`TiltedPotential` is cheaper and loses no digits to the subtraction.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from gebm_kit.core.sampling import Potential, TiltedPotential, ValueAndGrad


@functools.cache
def is_tilted(potential: type) -> bool:
    """Say whether a class of potentials splits off its standard-normal prior (cached: protocol checks are slow)."""
    return issubclass(potential, TiltedPotential)


def tilt(potential: Potential, z: Tensor) -> Tensor:
    """Return ``U(z) - |z|^2 / 2``; (C, Z) -> (C,)."""
    if is_tilted(type(potential)):
        return potential.tilt(z)  # type: ignore[attr-defined]  # the cached check narrows no type
    return potential.value(z) - 0.5 * z.square().sum(1)


def tilt_and_grad(potential: Potential, z: Tensor) -> ValueAndGrad:
    """Return the tilt (C,) and its gradient ``grad U(z) - z`` (C, Z)."""
    if is_tilted(type(potential)):
        return potential.tilt_and_grad(z)  # type: ignore[attr-defined]
    value, grad = potential.value_and_grad(z)
    return ValueAndGrad(value - 0.5 * z.square().sum(1), grad - z)


def prior_pool(potential: Potential, like: Tensor, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw ``num`` rows from the prior, (num, Z), and evaluate their tilt, (num,), C rows at a time; ``like`` is (C, Z)."""
    rows, latent_dim = like.shape
    z = torch.randn(num, latent_dim, generator=generator, dtype=like.dtype, device=like.device)
    return z, torch.cat([tilt(potential, part) for part in z.split(rows)])


def steepest(potential: Potential, like: Tensor, num_pairs: int, generator: torch.Generator) -> Tensor:
    """Return ``max |tilt(a) - tilt(b)| / |a - b|`` over pairs of prior draws, (), leaving out infinite and NaN slopes."""
    points, tilts = prior_pool(potential, like, 2 * num_pairs, generator)
    (first, second), (low, high) = points.chunk(2), tilts.chunk(2)
    slopes = (high - low).abs() / (second - first).norm(dim=1)
    return torch.where(torch.isfinite(slopes), slopes, 0.0).max()
