"""Models built by hand whose latent posterior is known exactly, for tests of samplers.

Every target is a GEBM with exact draws of its posterior, and with projections of the latent code whose distribution
function is known. The posterior is written in normal coordinates, in which kernels move.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gebm_kit.core.interfaces import Base, Energy, ValueAndGrad
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.priors import PRIORS, Prior, PriorName

Cdf = Callable[[Any], Any]
"""A distribution function on numpy arrays."""


@dataclass(frozen=True)
class Projection:
    """A scalar ``function`` of a latent code, (N, Z) -> (N,), and its distribution function ``cdf`` under the target."""

    name: str
    function: Callable[[Tensor], Tensor]
    cdf: Cdf


@dataclass(frozen=True)
class Target:
    """A model, an inverse temperature beta, and what is known of the posterior ``nu(z) ∝ exp(-|z|²/2 - beta E(G(z)))``.

    Attributes:
        name: name of the target.
        model: base and energy.
        inverse_temperature: beta.
        exact: ``exact(num, generator)`` returns independent draws, (num, Z), in normal coordinates, float64.
        projections: scalars with known distributions.
        point: a starting point away from the centre, (Z,), which is not a typical draw.
        largest_curvature: largest eigenvalue of the Hessian of U if that is constant, else a bound near the modes.
        log_partition: A(beta), or NaN if it is not known.
    """

    name: str
    model: GEBM
    inverse_temperature: float
    exact: Callable[[int, torch.Generator], Tensor]
    projections: tuple[Projection, ...]
    point: Tensor
    largest_curvature: float
    log_partition: float = math.nan

    def potential(self, dtype: torch.dtype = torch.float64) -> LatentPotential:
        """Return the target's potential in ``dtype``; the model itself is converted."""
        return LatentPotential(self.model.to(dtype), self.inverse_temperature)


class PlainPotential:
    """A potential that hides its split into prior and tilt, so that samplers treat it as an arbitrary potential."""

    def __init__(self, inner: LatentPotential) -> None:
        self.inner = inner

    def value(self, z: Tensor) -> Tensor:
        return self.inner.value(z)

    def value_and_grad(self, z: Tensor) -> ValueAndGrad:
        return self.inner.value_and_grad(z)


class AffineBase(Base):
    """The affine map ``G(z) = W z + b``; W: (D, Z), b: (D,)."""

    weight: Tensor
    offset: Tensor

    def __init__(self, weight: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.latent_dim, self.data_shape = weight.shape[1], (weight.shape[0],)
        self.register_buffer("weight", weight)
        self.register_buffer("offset", offset)

    def forward(self, z: Tensor) -> Tensor:
        return torch.addmm(self.offset, z, self.weight.T)


class IdentityBase(Base):
    """The identity ``G(u) = u``, with any prior."""

    def __init__(self, dim: int, prior: PriorName = "normal") -> None:
        super().__init__()
        self.latent_dim, self.data_shape = dim, (dim,)
        self._prior = PRIORS[prior](dim)

    @property
    def prior(self) -> Prior:
        return self._prior

    def forward(self, z: Tensor) -> Tensor:
        return z


class QuadraticEnergy(Energy):
    """The quadratic energy ``E(x) = ½ xᵀ Lambda x + cᵀ x``."""

    precision: Tensor
    slope: Tensor

    def __init__(self, precision: Tensor, slope: Tensor) -> None:
        super().__init__()
        self.register_buffer("precision", precision)
        self.register_buffer("slope", slope)

    def forward(self, x: Tensor) -> Tensor:
        return (x * (0.5 * x @ self.precision + self.slope)).sum(1)


class TwoModesEnergy(Energy):
    """The energy ``|a|²/2 - log cosh(a·x)``. On a standard normal base it gives ½ N(a, I) + ½ N(-a, I), with A = 0."""

    centre: Tensor

    def __init__(self, centre: Tensor) -> None:
        super().__init__()
        self.register_buffer("centre", centre)

    def forward(self, x: Tensor) -> Tensor:
        along = (x @ self.centre).abs()
        log_cosh = along + torch.nn.functional.softplus(-2 * along) - math.log(2)
        return 0.5 * self.centre.square().sum() - log_cosh


class LinearEnergy(Energy):
    """The linear energy ``E(x) = c·x``."""

    slope: Tensor

    def __init__(self, slope: Tensor) -> None:
        super().__init__()
        self.register_buffer("slope", slope)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.slope


class BananaEnergy(Energy):
    """The energy ``E = -log p + log eta`` of a banana p, with eta the standard normal; A = 0.

    Under p, x_0 = width a and x_1 = bend (a² - 1) + thickness c, with a and c standard normal.
    """

    def __init__(self, width: float, bend: float, thickness: float) -> None:
        super().__init__()
        self.width, self.bend, self.thickness = width, bend, thickness

    def straight(self, x: Tensor) -> Tensor:
        """Return the standard normals (a, c) that give the rows x; (N, 2) -> (N, 2)."""
        a = x[:, 0] / self.width
        return torch.stack([a, (x[:, 1] - self.bend * (a.square() - 1)) / self.thickness], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (self.straight(x).square() - x.square()).sum(1) + math.log(self.width * self.thickness)


class FunnelEnergy(Energy):
    """The energy ``E = -log p + log eta`` of a funnel p, with eta the standard normal; A = 0.

    Under p, v = x_0 ~ N(0, 1) and x_i ~ N(0, exp(v - depth)) for i > 0, independent given v.
    """

    def __init__(self, depth: float) -> None:
        super().__init__()
        self.depth = depth

    def forward(self, x: Tensor) -> Tensor:
        v, others = x[:, 0], x[:, 1:]
        inverse = torch.exp(self.depth - v)
        return 0.5 * (inverse - 1) * others.square().sum(1) + 0.5 * others.shape[1] * (v - self.depth)


class WalledEnergy(Energy):
    """The energy ``curvature |x|²/2`` where the first coordinate is at most 1, and ``bad`` (NaN, inf or -inf) beyond.

    The gradient is not finite beyond either.
    """

    def __init__(self, bad: float, curvature: float = 1.0) -> None:
        super().__init__()
        self.bad, self.curvature = bad, curvature

    def forward(self, x: Tensor) -> Tensor:
        factor = torch.where(x[:, 0] > 1, self.bad, 0.5 * self.curvature)
        return factor * x.square().sum(1)


def linear_gaussian(
    latent_dim: int = 4, inverse_temperature: float = 0.8, *, stiffness: float = 40.0, seed: int = 0
) -> Target:
    """Build an affine base with a quadratic energy, whose posterior is N(m, S).

        S = (I + beta Wᵀ Lambda W)⁻¹,   m = -beta S Wᵀ (Lambda b + c),
        A = ½ log|S| + ½ mᵀ S⁻¹ m - beta (½ bᵀ Lambda b + cᵀ b).

    The data space has one dimension more than the latent space, so W is not square.

    Args:
        latent_dim: Z.
        inverse_temperature: beta.
        stiffness: largest eigenvalue of ``beta Wᵀ Lambda W``; the smallest is a hundredth of it.
        seed: seed of W, Lambda, b and c.
    """
    generator = torch.Generator().manual_seed(seed)
    dim, wide = latent_dim, latent_dim + 1
    weight = torch.linalg.qr(torch.randn(wide, wide, generator=generator, dtype=torch.float64)).Q[:, :dim]
    turn = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64)).Q
    values = torch.logspace(math.log10(stiffness) - 2, math.log10(stiffness), dim, dtype=torch.float64)
    core = turn @ torch.diag(values) @ turn.T / inverse_temperature
    weight_inverse = weight.T  # W has orthonormal columns
    outside = torch.eye(wide, dtype=torch.float64) - weight @ weight_inverse
    precision = weight @ core @ weight_inverse + 0.5 * outside
    offset = torch.randn(wide, generator=generator, dtype=torch.float64)
    slope = torch.randn(wide, generator=generator, dtype=torch.float64)
    beta = inverse_temperature

    posterior_precision = torch.eye(dim, dtype=torch.float64) + beta * weight.T @ precision @ weight
    covariance = torch.linalg.inv(posterior_precision)
    mean = -beta * covariance @ weight.T @ (precision @ offset + slope)
    log_partition = (
        0.5 * torch.logdet(covariance)
        + 0.5 * mean @ posterior_precision @ mean
        - beta * (0.5 * offset @ precision @ offset + slope @ offset)
    )
    factor = torch.linalg.cholesky(covariance)
    whiten = torch.linalg.inv(factor)

    def exact(num: int, generator: torch.Generator) -> Tensor:
        return mean + torch.randn(num, dim, generator=generator, dtype=torch.float64) @ factor.T

    def white(z: Tensor) -> Tensor:
        return (z.double() - mean) @ whiten.T

    projections = tuple(Projection(f"white[{i}]", _coordinate(white, i), _normal_cdf) for i in range(dim))
    radius = Projection("mahalanobis", lambda z: white(z).square().sum(1), _chi_square_cdf(dim))
    return Target(
        "linear-gaussian",
        GEBM(AffineBase(weight, offset), QuadraticEnergy(precision, slope)),
        beta,
        exact,
        (*projections, radius),
        point=mean + 3 * torch.ones(dim, dtype=torch.float64),
        largest_curvature=float(torch.linalg.eigvalsh(posterior_precision).max()),
        log_partition=float(log_partition),
    )


def two_modes(latent_dim: int = 2, distance: float = 3.6) -> Target:
    """Build ``½ N(a, I) + ½ N(-a, I)``, with a = distance/2 on the first axis. `Target.point` lies in one mode."""
    centre = torch.zeros(latent_dim, dtype=torch.float64)
    centre[0] = distance / 2

    def exact(num: int, generator: torch.Generator) -> Tensor:
        sign = 2.0 * torch.randint(2, (num, 1), generator=generator).double() - 1
        return sign * centre + torch.randn(num, latent_dim, generator=generator, dtype=torch.float64)

    def mixture_cdf(x: Any) -> Any:
        return 0.5 * (_normal_cdf(x - distance / 2) + _normal_cdf(x + distance / 2))

    others = tuple(Projection(f"z[{i}]", _coordinate(Tensor.double, i), _normal_cdf) for i in range(1, latent_dim))
    return Target(
        "two-modes",
        GEBM(IdentityBase(latent_dim), TwoModesEnergy(centre)),
        1.0,
        exact,
        (Projection("z[0]", lambda z: z.double()[:, 0], mixture_cdf), *others),
        point=centre + 0.3,
        largest_curvature=1.0,
        log_partition=0.0,
    )


def banana(width: float = 0.9, bend: float = 0.6, thickness: float = 0.3) -> Target:
    """Build a bent ridge: x_0 = width a, x_1 = bend (a² - 1) + thickness c, with a and c standard normal.

    With the defaults the prior has mass everywhere on the ridge except at its tips, so kernels that propose prior draws
    reach it.
    """
    energy = BananaEnergy(width, bend, thickness)

    def exact(num: int, generator: torch.Generator) -> Tensor:
        a, c = torch.randn(2, num, generator=generator, dtype=torch.float64)
        return torch.stack([width * a, bend * (a.square() - 1) + thickness * c], dim=1)

    return Target(
        "banana",
        GEBM(IdentityBase(2), energy),
        1.0,
        exact,
        (
            Projection("along", lambda z: energy.straight(z.double())[:, 0], _normal_cdf),
            Projection("across", lambda z: energy.straight(z.double())[:, 1], _normal_cdf),
            Projection("radius", lambda z: energy.straight(z.double()).square().sum(1), _chi_square_cdf(2)),
        ),
        point=torch.tensor([0.9, 1.2], dtype=torch.float64),
        largest_curvature=(1 + (2 * bend / width) ** 2) / thickness**2,
        log_partition=0.0,
    )


def funnel(latent_dim: int = 3, depth: float = 2.0) -> Target:
    """Build a funnel that fits into the prior: v ~ N(0, 1), the other coordinates N(0, exp(v - depth)) given v.

    Over the central 98 % of v, with the default depth, their standard deviation goes from 0.11 to 1.2. The projections are
    v and x exp((depth - v) / 2).
    """

    def exact(num: int, generator: torch.Generator) -> Tensor:
        z = torch.randn(num, latent_dim, generator=generator, dtype=torch.float64)
        scale = torch.exp(0.5 * (z[:, :1] - depth))
        return torch.cat([z[:, :1], scale * z[:, 1:]], dim=1)

    def straight(z: Tensor) -> Tensor:
        z = z.double()
        return z * torch.exp(0.5 * (depth - z[:, :1]))

    others = tuple(
        Projection(f"x[{i}] exp((depth - v) / 2)", _coordinate(straight, i), _normal_cdf) for i in range(1, latent_dim)
    )
    return Target(
        "funnel",
        GEBM(IdentityBase(latent_dim), FunnelEnergy(depth)),
        1.0,
        exact,
        (Projection("v", _coordinate(Tensor.double, 0), _normal_cdf), *others),
        point=torch.tensor([0.0, *[1.0] * (latent_dim - 1)], dtype=torch.float64),
        largest_curvature=math.exp(depth),
        log_partition=0.0,
    )


def tilted_uniform(latent_dim: int = 2, slope: float = 2.0) -> Target:
    """Build a uniform prior on [-1, 1]^Z with ``E(u) = slope * sum_i u_i``. Coordinates are independent, ∝ exp(-slope u)."""
    high, low = math.exp(slope), math.exp(-slope)

    def cdf(u: Any) -> Any:
        import numpy as np

        return (high - np.exp(-slope * u)) / (high - low)

    def exact(num: int, generator: torch.Generator) -> Tensor:
        share = torch.rand(num, latent_dim, generator=generator, dtype=torch.float64)
        u = -torch.log(high - share * (high - low)) / slope
        return math.sqrt(2.0) * torch.erfinv(u.clamp(-1 + 1e-15, 1 - 1e-15))

    base = IdentityBase(latent_dim, "uniform")
    projections = tuple(
        Projection(f"u[{i}]", _coordinate(lambda z: base.prior.from_normal(z.double()), i), cdf)
        for i in range(latent_dim)
    )
    return Target(
        "tilted-uniform",
        GEBM(base, LinearEnergy(torch.full((latent_dim,), slope, dtype=torch.float64))),
        1.0,
        exact,
        projections,
        point=torch.full((latent_dim,), 1.0, dtype=torch.float64),
        largest_curvature=1.0 + slope,
        log_partition=latent_dim * math.log(math.sinh(slope) / slope),
    )


def tilted_sphere(concentration: float = 2.0) -> Target:
    """Build a prior on the sphere of radius sqrt(3) in three dimensions with ``E(u) = concentration * u_1 / sqrt(3)``.

    The height w = u_1 / sqrt(3) has density ∝ exp(-concentration w) on [-1, 1] (Archimedes). The angle around the axis is
    uniform. The energy does not depend on the length of z, which keeps its prior, the chi distribution.
    """
    high, low = math.exp(concentration), math.exp(-concentration)

    def height_cdf(w: Any) -> Any:
        import numpy as np

        return (high - np.exp(-concentration * w)) / (high - low)

    def exact(num: int, generator: torch.Generator) -> Tensor:
        share = torch.rand(num, 1, generator=generator, dtype=torch.float64)
        w = -torch.log(high - share * (high - low)) / concentration
        angle = 2 * math.pi * torch.rand(num, 1, generator=generator, dtype=torch.float64)
        flat = (1 - w.square()).clamp_min(0).sqrt()
        direction = torch.cat([w, flat * angle.cos(), flat * angle.sin()], dim=1)
        return torch.randn(num, 3, generator=generator, dtype=torch.float64).norm(dim=1, keepdim=True) * direction

    slope = torch.tensor([concentration / math.sqrt(3.0), 0.0, 0.0], dtype=torch.float64)
    return Target(
        "tilted-sphere",
        GEBM(IdentityBase(3, "sphere"), LinearEnergy(slope)),
        1.0,
        exact,
        (
            Projection("height", lambda z: z.double()[:, 0] / z.double().norm(dim=1), height_cdf),
            Projection("angle", lambda z: torch.atan2(z.double()[:, 2], z.double()[:, 1]), _angle_cdf),
            Projection("length", lambda z: z.double().square().sum(1), _chi_square_cdf(3)),
        ),
        point=torch.tensor([1.0, 0.2, 0.2], dtype=torch.float64),
        largest_curvature=1.0 + concentration,
        log_partition=math.log(math.sinh(concentration) / concentration),
    )


def prior_only(latent_dim: int = 3) -> Target:
    """Build a target with inverse temperature 0, whose posterior is the prior for every energy."""
    slope = torch.full((latent_dim,), 5.0, dtype=torch.float64)
    return Target(
        "prior-only",
        GEBM(IdentityBase(latent_dim), LinearEnergy(slope)),
        0.0,
        lambda num, generator: torch.randn(num, latent_dim, generator=generator, dtype=torch.float64),
        tuple(Projection(f"z[{i}]", _coordinate(Tensor.double, i), _normal_cdf) for i in range(latent_dim)),
        point=torch.full((latent_dim,), 2.0, dtype=torch.float64),
        largest_curvature=1.0,
        log_partition=0.0,
    )


def all_targets() -> tuple[Target, ...]:
    """Build one target of each kind."""
    return linear_gaussian(), two_modes(), banana(), funnel(), tilted_uniform(), tilted_sphere(), prior_only()


def _coordinate(function: Callable[[Tensor], Tensor], index: int) -> Callable[[Tensor], Tensor]:
    """Return the function that gives column ``index`` of ``function``'s result."""
    return lambda z: function(z)[:, index]


def _normal_cdf(x: Any) -> Any:
    from scipy.special import ndtr

    return ndtr(x)


def _chi_square_cdf(dim: int) -> Cdf:
    def cdf(x: Any) -> Any:
        from scipy.special import gammainc

        return gammainc(dim / 2, x / 2)

    return cdf


def _angle_cdf(angle: Any) -> Any:
    return (angle + math.pi) / (2 * math.pi)
