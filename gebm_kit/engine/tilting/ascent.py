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


@dataclass(frozen=True, slots=True)
class Stop:
    """Codes on their way up: the number of steps so far, codes (N, Z), and scores there (N,) float64 on the CPU."""

    steps: int
    z: Tensor
    score: Tensor


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
        found = []
        for done, z in enumerate(_path(potential, starts, best, steps)):
            on_progress(Progress("ascend", done, steps))
            if done in stops:
                found.append(Stop(done, z, -potential.energy(z).double().cpu()))
    return found


def _path(potential: LatentPotential, z: Tensor, step_size: float, steps: int) -> Iterator[Tensor]:
    """Yield the codes before and after every step; one whose gradient is not finite stays where it is."""
    yield z
    for _ in range(steps):
        grad = potential.tilt_and_grad(z).grad
        moves = torch.isfinite(grad).all(1, keepdim=True)
        z = torch.where(moves, z - step_size * grad, z)
        yield z


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
