"""MEADS: generalised Hamiltonian Monte Carlo with persistent momentum, tuned by the statistics of many chains."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, NamedTuple

import torch
from torch import Tensor

from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.hamiltonian import Phase, energy_error, evaluate, integrate
from gebm_kit.core.interfaces import DIVERGENCE_THRESHOLD, Adaptation, Info, Potential, Sampler
from gebm_kit.core.tilt import is_tilted

STEP_FACTOR = 0.5
"""h in units of ``lambda_y^-1/2``, as published (Hoffman and Sountsov 2022)."""

LARGEST_STEP = 1.0
"""Upper bound of h, as published. Where the gradient vanishes nothing else bounds h."""

AVERAGED_SHARE = 0.1
"""Share of the steps so far over which statistics are averaged. A larger share averages more states. A smaller one sooner
forgets the early steps, in which the chains were still far from the target."""

SHRINKAGE_ROWS = 10.0
"""Weight of the variance 1 in a fold's variance, counted in states, as in the preconditioner of other kernels. It
matters only for folds with few states."""


class MeadsState(NamedTuple):
    """Chains at ``position`` (C, Z) with the cached ``value`` (C,) and gradient ``grad`` (C, Z).

    The value is the tilt when the potential is split into prior and tilt, else the whole potential.

    Attributes:
        momentum: v = s p, (C, Z), N(0, I) under the target; it persists from step to step.
        level: u, (C,), uniform on [-1, 1] under the target; the acceptance test compares it with the energy error.
    """

    position: Tensor
    value: Tensor
    grad: Tensor
    momentum: Tensor
    level: Tensor


class Folds(NamedTuple):
    """Parameters estimated from the chains of each fold f, for the chains of fold f + 1.

    Attributes:
        step_size: h, (F,).
        damping: gamma, (F,).
        scale: s, (F, Z).
        mean: mean position, (F, Z).
    """

    step_size: Tensor
    damping: Tensor
    scale: Tensor
    mean: Tensor


class Meads(Sampler):
    """Generalised HMC with one gradient a step, tuned by the maximum eigenvalues of damping and step size (MEADS).

    With alpha = 1 - exp(-2 gamma h), a step refreshes part of the momentum and moves the level u. It then makes one step
    of `gebm_kit.core.hamiltonian` (kick-rotate where the prior is split off, leapfrog elsewhere) and tests it against u:

        v = sqrt(1 - alpha) v + sqrt(alpha) xi,    u = (u + 1 + alpha/2) mod 2 - 1,    (z', v') = step of s h from (z, v),
        if |u| < exp(-dH):  (z, v, u) = (z', v', u exp(dH)),    else  v = -v,

    where dH is the error of the total energy U + |v|²/2. A rejection reverses the chain's direction. u drifts slowly, so
    rejections come in clusters, with long runs of accepted moves between them. A non-finite proposal or dH > 1000 is a
    divergence and is rejected too.

    Warm-up divides each block's chains into ``num_folds`` folds, chain i in fold i mod F. After every step the states of
    each fold, averaged over the latest steps, give the parameters of the next fold. These are the fold's standard
    deviations s, shrunk toward 1, and, with x = (z - mean) / s, y = s grad U and n steps done,

        h = ½ lambda_y^-½, at most 1,    gamma = max(lambda_x^-½, 1 / (n h)),    lambda_x = tr(S²) / tr(S),  S = E[x xᵀ].

    lambda_x is a lower bound of the largest eigenvalue of S. tr(S²) is estimated without bias by the mean of (x_i·x_j)²
    over pairs of different chains. lambda_y is the same for y, with one change. Far from the target E[y yᵀ] is the square
    of its value in equilibrium, and h would become too small to arrive in a short warm-up. In equilibrium E[x yᵀ] = I,
    hence E[(y_i·y_j)(x_i·y_j)] = tr(E[y yᵀ]). The denominator of lambda_y is the larger of these two estimates, which
    divides out the excess far from the target.

    At the end all folds are pooled and frozen. The acceptance is not tuned: it is 0.95 or more on smooth targets and 0.78
    on a trained network with leaky activations.

    Args:
        step_size: h, a length in units of s; before warm-up, s is the prior's standard deviation.
        damping: gamma, the rate at which momentum is forgotten, in inverse units of the time in which h is measured.
        num_folds: F.

    Raises:
        UsageError: an argument is outside its range.

    References:
        Tuning-free generalized Hamiltonian Monte Carlo. M. D. Hoffman, P. Sountsov, AISTATS 2022.
        https://proceedings.mlr.press/v151/hoffman22a.html (there the chains never freeze, so folds are drawn anew and one
        fold in F rests at every step)
        Non-reversibly updating a uniform [0, 1] value for Metropolis accept/reject decisions. R. M. Neal, 2020.
        https://arxiv.org/abs/2001.11950
        A generalized guided Monte Carlo algorithm. A. M. Horowitz, Physics Letters B 1991. (partial refreshment)
    """

    min_chains: ClassVar[int] = 8
    caches_tilt: ClassVar[bool] = True

    def __init__(
        self,
        step_size: Annotated[float, Range(0, None, low_open=True)] = 0.2,
        damping: Annotated[float, Range(0, None, low_open=True)] = 1.0,
        num_folds: Annotated[int, Range(2, None)] = 4,
    ) -> None:
        check_arguments(self, step_size=step_size, damping=damping, num_folds=num_folds)
        self.step_size = step_size
        self.damping = damping
        self.num_folds = num_folds
        self.scale: Tensor | None = None
        """s, (Z,), once frozen; None stands for 1."""
        self.folds: Folds | None = None
        """Parameters during warm-up, used instead of ``step_size``, ``damping`` and ``scale``; else None."""

    def adaptation(self) -> MeadsAdaptation:
        return MeadsAdaptation()

    def init(self, z: Tensor, potential: Potential, generator: torch.Generator) -> MeadsState:
        """Start chains at ``z``, (C, Z), with fresh momenta and levels."""
        momentum = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
        uniform = torch.rand(z.shape[0], generator=generator, dtype=z.dtype, device=z.device)
        return MeadsState(z, *evaluate(potential, z), momentum, 2 * uniform - 1)

    def step(self, state: MeadsState, potential: Potential, generator: torch.Generator) -> tuple[MeadsState, Info]:
        """Refresh, make one integration step and test it, for every chain."""
        z, value, grad, momentum, level = state
        noise = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
        tau, alpha = self.parameters(z)
        velocity = (1 - alpha).sqrt() * momentum + alpha.sqrt() * noise
        level = torch.remainder(level + 1 + alpha.squeeze(1) / 2, 2) - 1
        end = integrate(Phase(z, velocity, value, grad), tau, 1, potential)

        error = energy_error(Phase(z, velocity, value, grad), end, potential)
        diverged = error > DIVERGENCE_THRESHOLD
        ratio = (-error).exp()
        accepted = level.abs() < ratio  # never for a divergence, whose ratio is exp(-1000) = 0
        moves = accepted.unsqueeze(1)
        new_state = MeadsState(
            torch.where(moves, end.position, z),
            torch.where(accepted, end.value, value),
            torch.where(moves, end.grad, grad),
            torch.where(moves, end.velocity, -velocity),
            torch.where(accepted, level * error.exp(), level),
        )
        told = None
        if self.folds is not None:  # the gradient of U
            told = new_state.grad + new_state.position if is_tilted(type(potential)) else new_state.grad
        return new_state, Info(ratio.clamp_(max=1), accepted, diverged, grad_evals=1, statistics=told)

    def parameters(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the steps ``tau = s h``, (C, 1) or (C, Z), and alpha, (C, 1) or (1, 1), of the chains ``z`` (C, Z)."""
        if self.folds is None:
            tau = z.new_full((len(z), 1), self.step_size)
            alpha = z.new_full((1, 1), -math.expm1(-2 * self.damping * self.step_size))
            return (tau if self.scale is None else tau * self.scale), alpha
        source = (torch.arange(len(z), device=z.device) - 1) % self.num_folds
        h = self.folds.step_size[source].unsqueeze(1)
        gamma = self.folds.damping[source].unsqueeze(1)
        return h * self.folds.scale[source], -torch.expm1(-2 * gamma * h)


class MeadsAdaptation(Adaptation):
    """The tuning of every fold's parameters, from running sums.

    The sums are K = F (7 + 2 Z) numbers. For each fold they are its number of states and of pairs i != j, the five sums
    of `products`, and the sums of z and of z².
    """

    def __init__(self) -> None:
        self._like = torch.empty(0)
        self._steps = 0
        self._sums = torch.zeros((), dtype=torch.float64)

    def statistics(self, sampler: Sampler, before: MeadsState, after: MeadsState, info: Info) -> Tensor:
        assert isinstance(sampler, Meads)
        self._like = after.position
        positions = after.position.double()
        grads = (after.grad if info.statistics is None else info.statistics).double()
        rows = []
        for fold in range(sampler.num_folds):
            x, y = positions[fold :: sampler.num_folds], grads[fold :: sampler.num_folds]
            sums = [x.sum(0), x.square().sum(0)]
            if sampler.folds is not None:
                scale = sampler.folds.scale[fold].double()
                x, y = (x - sampler.folds.mean[fold].double()) / scale, y * scale
            counts = x.new_tensor([len(x), len(x) * (len(x) - 1)])
            rows.append(torch.cat([counts, products(x, y), *sums]))
        return torch.cat(rows)

    def update(self, sampler: Sampler, sums: Tensor, num_chains: int, progress: float) -> Meads:
        assert isinstance(sampler, Meads)
        self._steps += 1
        keep = 1 - 1 / max(AVERAGED_SHARE * self._steps, 1.0)
        self._sums = keep * self._sums + sums.view(sampler.num_folds, -1)
        folds = self._solve(self._sums)
        return sampler.tuned(folds=Folds(*(field.to(self._like) for field in folds)))  # type: ignore[return-value]

    def freeze(self, sampler: Sampler) -> Meads:
        if self._steps == 0:
            return sampler  # type: ignore[return-value]
        pooled = self._solve(self._sums.sum(0, keepdim=True))
        return sampler.tuned(  # type: ignore[return-value]
            folds=None,
            step_size=float(pooled.step_size),
            damping=float(pooled.damping),
            scale=pooled.scale[0].to(self._like),
        )

    def _solve(self, sums: Tensor) -> Folds:
        """Return the parameters for each row of sums, (F, 7 + 2 Z).

        An empty fold (blocks of fewer than F chains) gets the parameters of all folds pooled.
        """
        sums = torch.where(sums[:, :1] > 0, sums, sums.sum(0))
        rows, pairs, xx, xxxx, yy, yyyy, xyyy = sums[:, :7].unbind(1)
        mean, square = (sums[:, 7:] / rows.unsqueeze(1)).chunk(2, dim=1)
        variance = (square - mean.square()).clamp(1e-8, 1e8).pow((rows / (rows + SHRINKAGE_ROWS)).unsqueeze(1))
        pair = pairs / rows  # turns sums over pairs into sums over states
        spread = _largest(xxxx, pair * xx, xx / rows)
        steepness = _largest(yyyy, torch.maximum(pair * yy, xyyy), yy / rows)
        h = (STEP_FACTOR * steepness.rsqrt()).clamp(1e-6, LARGEST_STEP)
        return Folds(h, torch.maximum(spread.rsqrt(), 1 / (self._steps * h)), variance.sqrt(), mean)


def products(x: Tensor, y: Tensor) -> Tensor:
    """Return the sums of |x_i|², (x_i·x_j)², |y_i|², (y_i·y_j)² and (x_i·y_j)(y_i·y_j); (N, Z) twice -> (5,).

    The sums of products run over pairs i != j.
    """
    if x.shape[0] < x.shape[1]:
        xx, xy, yy = x @ x.T, x @ y.T, y @ y.T
    else:  # the same inner products of smaller matrices
        xx, xy, yy = x.T @ x, x.T @ y, y.T @ y
    x_squares, y_squares, both = (torch.linalg.vecdot(*pair) for pair in ((x, x), (y, y), (x, y)))
    return torch.stack(
        [
            x_squares.sum(),
            xx.square().sum() - x_squares.square().sum(),
            y_squares.sum(),
            yy.square().sum() - y_squares.square().sum(),
            (xy * yy).sum() - (both * y_squares).sum(),
        ]
    )


def _largest(squares: Tensor, weights: Tensor, trace: Tensor) -> Tensor:
    """Return the estimated eigenvalue ``squares / weights``, (F,); ``trace``, which is larger, where no block has pairs."""
    return torch.where(weights > 0, squares / weights, trace).clamp_min(1e-12)
