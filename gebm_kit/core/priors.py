"""Latent priors. Each is the image of a standard normal, so that a sampler may walk in normal coordinates.

A base is written in its own latent coordinates u (a uniform cube, a sphere); kernels walk in z ~ N(0, I) and
``u = prior.from_normal(z)``. For the standard normal both are the same.
"""

from __future__ import annotations

import math
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

PriorName = Literal["normal", "uniform", "sphere"]


@runtime_checkable
class Prior(Protocol):
    """Distribution ``eta`` of a base's latent code.

    ``name`` identifies it to samplers that serve certain priors only; ``dim`` is Z.
    """

    name: str
    dim: int

    def from_normal(self, z: Tensor) -> Tensor:
        """Map standard-normal rows (B, Z) to rows of this prior (B, Z), differentiably."""
        ...


class StandardNormal:
    """``eta = N(0, I)``, the default."""

    name = "normal"

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def from_normal(self, z: Tensor) -> Tensor:
        return z


class Uniform:
    """Uniform on the cube ``[-1, 1]^Z``, through ``u = 2 Phi(z) - 1``."""

    name = "uniform"

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def from_normal(self, z: Tensor) -> Tensor:
        return torch.erf(z / math.sqrt(2.0))


class Sphere:
    """Uniform on the sphere of radius ``sqrt(Z)``, through ``u = sqrt(Z) z / |z|``; the length of z has no effect."""

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
    """``num`` draws of the prior, (num, Z), on the generator's device."""
    z = torch.randn(num, prior.dim, generator=generator, device=generator.device, dtype=dtype)
    return prior.from_normal(z)
