"""The isokinetic dynamics of microcanonical samplers: kicks, integrators, refreshment, and the tuning of a length.

A particle at z moves at constant speed in a direction u on the unit sphere of R^d. The gradient g = grad U turns u:

    dz/dt = sqrt(d) s u,      du/dt = -sqrt(d)/(d - 1) (I - u u^T) s g,

with a diagonal preconditioner s. The invariant law is exp(-U) dz for z times the uniform law for u. The speed sqrt(d)
gives t the meaning that it has in Hamiltonian dynamics, where the velocity N(0, I) has about that length. A coordinate
then moves by about s t, in units of the prior's standard deviation, for every d. (Most papers set the speed to 1, so
their steps are sqrt(d) times as long.)

Turning u changes the volume of phase space. The kinetic energy K keeps track of that change: a kick with the Jacobian J
adds dK = -log |det J|. The exact dynamics conserve U + K. Hence dU + dK is the energy error of an integrator, and a
Metropolis test accepts with probability min(1, exp(-(dU + dK))).

Shapes: C chains, Z = d latent size.

References:
    Microcanonical Hamiltonian Monte Carlo. J. Robnik, G. B. De Luca, E. Silverstein, U. Seljak, JMLR 2023.
    https://arxiv.org/abs/2212.08549
    Fluctuation without dissipation: microcanonical Langevin Monte Carlo. J. Robnik, U. Seljak, AABI 2024.
    https://arxiv.org/abs/2303.18221
    Metropolis adjusted microcanonical Hamiltonian Monte Carlo. J. Robnik, R. Cohn-Gordon, U. Seljak, 2025.
    https://arxiv.org/abs/2503.01707
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gebm_kit.core.errors import UsageError
from gebm_kit.core.sampling import Adaptation, Info, Potential, Sampler


class Kick(NamedTuple):
    """The direction after a kick, (C, Z), and the change dK of the kinetic energy, (C,)."""

    direction: Tensor
    kinetic_change: Tensor


class Particle(NamedTuple):
    """Position and unit direction (C, Z), with the potential's value (C,) and gradient (C, Z) there."""

    position: Tensor
    direction: Tensor
    value: Tensor
    grad: Tensor


class Flight(NamedTuple):
    """The particle at the end of a trajectory, and the change dK of the kinetic energy along it, (C,)."""

    end: Particle
    kinetic_change: Tensor


class Scheme(NamedTuple):
    """A symmetric splitting of one step into kicks and drifts that alternate, beginning and ending with a kick.

    Each number is the share of the step that one kick or drift takes. A step costs one gradient for each drift, because
    the gradient of its last kick is also that of the next step's first.
    """

    kicks: tuple[float, ...]
    drifts: tuple[float, ...]


LEAPFROG = Scheme(kicks=(0.5, 0.5), drifts=(1.0,))

_LAMBDA = 0.1931833275037836  # McLachlan's optimum: the share of the outer kicks with the smallest error constant
MINIMAL_NORM = Scheme(kicks=(_LAMBDA, 1 - 2 * _LAMBDA, _LAMBDA), drifts=(0.5, 0.5))
"""The second-order scheme with the smallest error constant that two gradients a step allow.

On the numerical integration of ordinary differential equations by symmetric composition methods. R. I. McLachlan, SIAM
Journal on Scientific Computing 1995. https://doi.org/10.1137/0916010"""


def kick(direction: Tensor, force: Tensor, time: Tensor) -> Kick:
    """Turn ``direction`` exactly, for ``time``, under a constant gradient ``force`` = s g.

    With n = force / |force|, delta = sqrt(d) t |force| / (d - 1) and c = u.n,

        u' = (u - (sinh delta - c (cosh delta - 1)) n) / (cosh delta - c sinh delta),
        dK = (d - 1) log(cosh delta - c sinh delta).

    The code uses zeta = exp(-delta), p = u - n and w = |p|²/2 = 1 - c, which neither overflow nor cancel for large
    kicks:

        u' ∝ 2 zeta p + (2 zeta² - w (1 - zeta)²) n,      dK = (d - 1) (delta + log(w/2 + (1 - w/2) zeta²)).

    Args:
        direction, force: (C, Z).
        time: (C, 1).
    """
    dim = direction.shape[1]
    # squares of anything smaller underflow, and so small a force turns nothing
    smallest = math.sqrt(torch.finfo(force.dtype).tiny)
    norm = torch.linalg.vector_norm(force, dim=1, keepdim=True).clamp_(min=smallest)
    normal = force / norm
    delta = norm.mul_(time).mul_(math.sqrt(dim) / (dim - 1))
    zeta = (-delta).exp_()
    apart = direction - normal
    w = apart.square().sum(1, keepdim=True).mul_(0.5)
    squared = zeta.square()
    along = 2 * squared - w * (1 - zeta).square_()
    turned = apart.mul_(2 * zeta).addcmul_(normal, along)
    # renormalise, so that rounding errors do not add up over many kicks
    turned /= torch.linalg.vector_norm(turned, dim=1, keepdim=True)
    half = w.mul_(0.5)
    log_stretch = torch.lerp(squared, torch.ones_like(squared), half).log_()
    return Kick(turned, log_stretch.add_(delta).mul_(dim - 1).squeeze(1))


def integrate(
    start: Particle, time: Tensor, scale: Tensor | None, potential: Potential, scheme: Scheme, num_steps: int
) -> Flight:
    """Make ``num_steps`` steps of ``scheme``. The two kicks between consecutive steps are merged into one, which is exact.

    Where a gradient is NaN, no force acts, as in `gebm_kit.core.hamiltonian`.

    Args:
        time: length of a step for each chain, (C, 1).
        scale: s, (Z,); None stands for 1.
    """
    z, u, value, grad = start
    path = time * math.sqrt(z.shape[1])
    stride = path if scale is None else path * scale
    kinetic = torch.zeros_like(value)
    first, last = scheme.kicks[0], scheme.kicks[-1]
    share = first
    for step in range(num_steps):
        for index, drift in enumerate(scheme.drifts):
            u, change = kick(u, grad if scale is None else grad * scale, time * share)
            kinetic += change
            z = torch.addcmul(z, u, stride, value=drift)
            value, grad = potential.value_and_grad(z)
            grad = grad.nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf)
            share = scheme.kicks[index + 1]
        share = last if step == num_steps - 1 else last + first
    u, change = kick(u, grad if scale is None else grad * scale, time * share)
    return Flight(Particle(z, u, value, grad), kinetic.add_(change))


def random_direction(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw directions uniformly on the unit sphere, with the shape (C, Z), type and device of ``like``."""
    noise = torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)
    return noise.div_(torch.linalg.vector_norm(noise, dim=1, keepdim=True))


def refresh(direction: Tensor, time: float, memory: float, generator: torch.Generator) -> Tensor:
    """Refresh directions in part: ``u <- (u + nu xi) / |u + nu xi|`` with ``nu² = (exp(2 t / L) - 1) / d``; (C, Z).

    The uniform law is left invariant. Directions keep a correlation of about exp(-t / L), where t = ``time`` and
    L = ``memory``.
    """
    # exp(80) still fits into float32; from there on the old direction has no weight left
    nu = math.sqrt(math.expm1(min(2 * time / memory, 80.0)) / direction.shape[1])
    noise = torch.randn(direction.shape, generator=generator, dtype=direction.dtype, device=direction.device)
    mixed = noise.mul_(nu).add_(direction)
    return mixed.div_(torch.linalg.vector_norm(mixed, dim=1, keepdim=True))


def require_directions(sampler: Sampler, z: Tensor) -> None:
    """Raise UsageError if the chains ``z`` (C, Z) have Z = 1, because a direction on a line cannot turn."""
    if z.shape[1] < 2:
        raise UsageError(
            f"{type(sampler).__name__} needs a latent space of at least 2 dimensions; this one has {z.shape[1]}",
            hint="Use hmc or klmc.",
        )


class SpreadAdaptation(Adaptation):
    """The tuning of a length to ``factor sqrt(lambda)``, lambda the largest eigenvalue of the preconditioned covariance.

    Robnik and Seljak's first tuning takes the total standard deviation, which in the units used here is the root of the
    *mean* eigenvalue. After preconditioning the mean eigenvalue is 1 for every target, but the widest direction of a
    correlated target is longer than that by the root of its own eigenvalue. This class therefore takes the largest
    eigenvalue, as MEADS does for its damping.

    With y = (z - m) / s, the means m = E[z] and Cov(y) v are running means over chains and steps. A step's weight is
    proportional to its number since the preconditioner last changed. Setting v = Cov(y) v / |Cov(y) v| after every step
    is the power method.

    Args:
        name: attribute of the sampler that holds the length.
        factor: the length in units of sqrt(lambda).

    References:
        Tuning-free generalized Hamiltonian Monte Carlo. M. D. Hoffman, P. Sountsov, AISTATS 2022.
        https://proceedings.mlr.press/v151/hoffman22a.html (the largest eigenvalue sets the memory of momentum)
    """

    def __init__(self, name: str, factor: float) -> None:
        self._name, self._factor = name, factor
        self._steps = 0
        self._mean = self._product = self._vector = torch.empty(0)
        self._mass: Tensor | None = None

    def statistics(self, sampler: Any, before: Any, after: Any, info: Info) -> Tensor:
        """Return the sums of z and of y (y·v) over the chains, (2 Z,)."""
        z = after.position.double()
        if not len(self._vector):
            # a fixed random direction: it is hardly ever orthogonal to the widest one, which the power method looks for
            start = torch.randn(z.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            self._mean, self._product, self._vector = torch.zeros_like(start), start, start / start.norm()
        y = z - self._mean.to(z)
        if sampler.inverse_mass is not None:
            y /= sampler.inverse_mass.double().sqrt()
        return torch.cat([z.sum(0), (y @ self._vector.to(z)) @ y])

    def update(self, sampler: Any, sums: Tensor, num_chains: int, progress: float) -> Sampler:
        """Return the sampler with its length set from the running means."""
        if sampler.inverse_mass is not self._mass:
            self._mass, self._steps = sampler.inverse_mass, 0
        self._steps += 1
        weight = 2 / (self._steps + 1)
        mean, product = (sums / num_chains).chunk(2)
        self._mean = torch.lerp(self._mean, mean, weight)
        self._product = torch.lerp(self._product, product, weight)
        eigenvalue = self._product.norm().clamp(min=1e-12)
        self._vector = self._product / eigenvalue
        return sampler.tuned(**{self._name: self._factor * math.sqrt(float(eigenvalue))})
