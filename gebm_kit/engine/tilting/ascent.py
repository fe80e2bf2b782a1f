"""Plain gradient ascent on the score over latent codes, the way that has no law, for comparison.

References:
    ReNO: Enhancing One-step Text-to-Image Models through Reward-based Noise Optimization. L. Eyring et al., NeurIPS 2024.
    https://arxiv.org/abs/2406.04312
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.progress import OnProgress, Progress
from gebm_kit.engine.likelihood.log_partition import ROWS_AT_ONCE

CLIMBERS = 256
"""Codes that climb."""

ROWS_PER_COORDINATE = 4
"""Fewest codes for each coordinate with which their covariance is estimated; with fewer, each coordinate counts alone."""

PACES = (0.003, 0.01, 0.03, 0.1, 0.3)
"""Lengths of the first step that are tried, as a share of the typical length of a code, sqrt(Z). The one whose codes have
the highest mean score in the end is used: the comparison is with ascent at its best."""

PILOTS = 32
"""Codes with which each pace is tried."""

MOST_STEPS = 1000
"""Most steps, whatever the posterior cost."""


MOST_DIMENSIONS = 32
"""Most latent dimensions for which the volume that ascent loses is computed; it takes Z gradients of gradients a step."""

FOLLOWED = 64
"""Codes whose loss of volume is computed."""

MOST_FOLLOWED = 100
"""Most steps over which it is computed."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Codes on their way up.

    Attributes:
        steps: number of steps so far.
        z: codes, (N, Z).
        score: scores there, (N,) float64 on the CPU.
        kl: lower bound of the codes' KL from the prior, in nats.
    """

    steps: int
    z: Tensor
    score: Tensor
    kl: float


def climb(model: GEBM, starts: Tensor, steps: int, on_progress: OnProgress) -> list[Stop]:
    """Climb from prior draws by ``z <- z + h grad r(G(z))``; return stops after 1, 2, 4, ... and ``steps`` steps.

    Args:
        model: base and scorer, on their device.
        starts: codes in normal coordinates with finite scores, (N, Z).
        steps: number of steps, at least 1.
        on_progress: called with the steps done.
    """
    steps = min(steps, MOST_STEPS)
    with LatentPotential(model, block_size=min(len(starts), ROWS_AT_ONCE)) as potential:
        first = potential.tilt_and_grad(starts).grad.nan_to_num()
        size = float(first.double().square().sum(1).mean().sqrt())
        if not size > 0:
            return []
        lengths = [pace * math.sqrt(starts.shape[1]) / size for pace in PACES]
        trials = [(_last_score(potential, starts[:PILOTS], h, steps), h) for h in lengths]
        best = max(trials)[1]
        stops = {*(2**k for k in range(steps.bit_length())), steps}
        found, volume = [], _Volume(potential, starts, best)
        for done, z in enumerate(_path(potential, starts, best, steps)):
            on_progress(Progress("ascend", done, steps))
            if done in stops:
                kl = max(kl_at_least(z), volume.kl_at_least(z))
                found.append(Stop(done, z, -potential.energy(z).double().cpu(), kl))
            volume.step(z)
    return found


def _path(potential: LatentPotential, z: Tensor, step_size: float, steps: int) -> Iterator[Tensor]:
    """Yield the codes before and after every step; one whose gradient is not finite stays where it is."""
    yield z
    for _ in range(steps):
        grad = potential.tilt_and_grad(z).grad
        moves = torch.isfinite(grad).all(1, keepdim=True)
        z = torch.where(moves, z - step_size * grad, z)
        yield z


class _Volume:
    """The loss of volume along the paths of a few codes, from which their KL follows.

    With J the Jacobian of the map from first to last codes, ``KL >= E[(|z_T|^2 - |z_0|^2) / 2 - log|det J|]``, with equality
    where no two paths meet, as for small steps. J is a product over steps of ``I - h H``, H the Hessian of E(G(z)).
    """

    def __init__(self, potential: LatentPotential, starts: Tensor, step_size: float) -> None:
        self._potential, self._starts, self._step_size = potential, starts[:FOLLOWED], step_size
        self._log_det = torch.zeros(len(self._starts), dtype=torch.float64, device=starts.device)
        self._steps = 0
        self._known = starts.shape[1] <= MOST_DIMENSIONS

    def step(self, z: Tensor) -> None:
        """Take in the step that begins at ``z``."""
        self._steps += 1
        self._known = self._known and self._steps <= MOST_FOLLOWED
        if not self._known:
            return
        try:
            hessian = self._hessian(z[:FOLLOWED])
        except RuntimeError:  # an operation without a second derivative
            self._known = False
            return
        eye = torch.eye(z.shape[1], dtype=torch.float64, device=z.device)
        self._log_det += torch.linalg.slogdet(eye - self._step_size * hessian.double()).logabsdet

    def kl_at_least(self, z: Tensor) -> float:
        """Return the bound for codes (N, Z) after the steps so far; 0 where it is not known."""
        if not self._known:
            return 0.0
        squares = [codes.double().square().sum(1) for codes in (z[:FOLLOWED], self._starts)]
        terms = 0.5 * (squares[0] - squares[1]) - self._log_det
        value = float(terms[torch.isfinite(terms)].mean())
        return value if math.isfinite(value) else 0.0

    def _hessian(self, z: Tensor) -> Tensor:
        """Return the Hessian of E(G(z)), (N, Z, Z)."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            energy = self._potential.model(self._potential.prior.from_normal(z))
            (grad,) = torch.autograd.grad(energy.sum(), z, create_graph=True, materialize_grads=True)
            if not grad.requires_grad:  # linear
                return torch.zeros(*z.shape, z.shape[1], dtype=z.dtype, device=z.device)
            columns = [
                torch.autograd.grad(grad[:, i].sum(), z, retain_graph=True, materialize_grads=True)[0]
                for i in range(z.shape[1])
            ]
        return torch.stack(columns, 1)


def _last_score(potential: LatentPotential, z: Tensor, step_size: float, steps: int) -> float:
    for last in _path(potential, z, step_size, steps):
        z = last
    score = -potential.energy(z).double()
    mean = float(score[torch.isfinite(score)].mean())
    return mean if math.isfinite(mean) else -math.inf


def kl_at_least(z: Tensor) -> float:
    """Return a lower bound of ``KL(law of z || N(0, I))`` from codes (N, Z), in nats.

    Among all laws with mean m and covariance S, the Gaussian is the nearest to N(0, I), so
    ``KL >= (|m|^2 + tr S - Z - log det S) / 2``. With few codes for each coordinate, only the diagonal of S is used, which
    bounds it too. What estimated moments add on average, for Gaussian codes, is taken off: tr S / N from ``|m|^2``, and the
    bias of ``log det S``, ``sum_i psi((N - i) / 2) + Z log(2 / (N - 1))``.
    """
    z = z.double().cpu()
    num, dim = z.shape
    mean = z.mean(0)
    if num >= ROWS_PER_COORDINATE * dim:
        covariance = torch.atleast_2d(z.T.cov())
        log_det, trace = torch.linalg.slogdet(covariance).logabsdet, covariance.trace()
        lost = torch.arange(1, dim + 1, dtype=torch.float64)
    else:
        variance = z.var(0)
        log_det, trace = variance.log().sum(), variance.sum()
        lost = torch.ones(dim, dtype=torch.float64)
    bias = torch.digamma((num - lost) / 2).sum() + dim * math.log(2 / (num - 1))
    found = 0.5 * float(mean.square().sum() - trace / num + trace - dim - log_det + bias)
    return math.inf if math.isnan(found) else max(found, 0.0)
