"""Latent priors. Each is the image of a standard normal, so that a sampler can move in normal coordinates.

A base takes its own latent coordinates u (a point of a cube or a sphere). Kernels move in z ~ N(0, I), and
``u = prior.from_normal(z)``. For the standard normal prior u = z.
"""

from __future__ import annotations

import math
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

PriorName = Literal["normal", "uniform", "sphere"]


@runtime_checkable
class Prior(Protocol):
    """The distribution ``eta`` of a base's latent code.

    Attributes:
        name: identifies the prior, for samplers that serve only some priors.
        dim: Z.
    """

    name: str
    dim: int

    def from_normal(self, z: Tensor) -> Tensor:
        """Map standard-normal rows (B, Z) to rows of this prior (B, Z), differentiably."""
        ...


class StandardNormal:
    """The standard normal ``eta = N(0, I)``, the default."""

    name = "normal"

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def from_normal(self, z: Tensor) -> Tensor:
        return z


class Uniform:
    """The uniform distribution on the cube ``[-1, 1]^Z``, as ``u = 2 Phi(z) - 1``."""

    name = "uniform"

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def from_normal(self, z: Tensor) -> Tensor:
        return torch.erf(z / math.sqrt(2.0))


class Sphere:
    """The uniform distribution on the sphere of radius ``sqrt(Z)``, as ``u = sqrt(Z) z / |z|``; |z| has no effect."""

    name = "sphere"

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def from_normal(self, z: Tensor) -> Tensor:
        return math.sqrt(self.dim) * z / z.norm(dim=1, keepdim=True).clamp_min(torch.finfo(z.dtype).tiny)


PRIORS: dict[str, type[StandardNormal] | type[Uniform] | type[Sphere]] = {
    "normal": StandardNormal,
    "uniform": Uniform,
    "sphere": Sphere,
}


def prior_sample(prior: Prior, num: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw ``num`` rows from the prior, (num, Z), on the generator's device."""
    z = torch.randn(num, prior.dim, generator=generator, device=generator.device, dtype=dtype)
    return prior.from_normal(z)
