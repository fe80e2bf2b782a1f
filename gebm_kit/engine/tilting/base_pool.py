"""Scored base draws: what every level is compared with, the importance weights of log Z, and best-of-N.

References:
    Theoretical guarantees on the best-of-n alignment policy. A. Beirami et al., 2024. https://arxiv.org/abs/2401.01879
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gebm_kit.core.errors import UsageError
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.model_contracts import GRADIENT_FREE
from gebm_kit.core.progress import OnProgress, counted, warn
from gebm_kit.core.seeds import stream
from gebm_kit.engine.likelihood.log_partition import ROWS_AT_ONCE
from gebm_kit.engine.process.distributed import ALONE, Ranks
from gebm_kit.engine.tilting.result import BestOf, Estimate

BEST_OF = (1, 4, 16, 64)
"""Values of N."""

BLOCKS = 16
"""Independent parts of the pool behind the error of best-of-N."""

SHOWN = 512
"""Most draws of best-of-N that are looked at for diversity."""

TRIED = 16
"""Base draws at which the gradient is looked at."""


@dataclass(frozen=True, slots=True)
class BasePool:
    """Scored base draws.

    Attributes:
        z: codes in normal coordinates, (N, Z), on the model's device.
        energy: E at them, (N,) float64 on the CPU, inf where it is not finite.
        not_finite: number of energies that are not finite.
        has_gradient: whether the scorer has a gradient with respect to z.
        is_flat: whether all scores are equal.
    """

    z: Tensor
    energy: Tensor
    not_finite: int
    has_gradient: bool
    is_flat: bool

    @property
    def kept(self) -> Tensor:
        """Indices of draws with a finite score, (M,)."""
        return torch.isfinite(self.energy).nonzero().squeeze(1)

    @property
    def score(self) -> Tensor:
        """Finite scores ``-E``, (M,) float64."""
        return -self.energy[self.kept]


def base_codes(model: GEBM, num: int, seed: int) -> Tensor:
    """Draw codes from the prior, (N, Z) in normal coordinates, on the model's device."""
    generator = torch.Generator(model.device).manual_seed(stream(seed, "tilt", "base").initial_seed())
    return torch.randn(num, model.latent_dim, generator=generator, device=generator.device, dtype=model.dtype)


def take_pool(
    model: GEBM, name: str, z: Tensor, on_progress: OnProgress, ranks: Ranks = ALONE, what: str = "base"
) -> BasePool:
    """Score draws of the generator; warn about scores that are not finite, and about a missing gradient.

    Args:
        model: base and scorer, on their device.
        name: name of the scorer, for messages.
        z: codes of the draws, (N, Z) in normal coordinates, on the model's device.
        on_progress: called with the rows that are scored.
        ranks: the processes that share the scoring.
        what: what the draws are of, for messages.

    Raises:
        UsageError: no score is finite.
    """
    num = len(z)
    with LatentPotential(model, block_size=min(num, ROWS_AT_ONCE)) as potential:
        energy = _energies(potential, z, ranks, counted(on_progress, "score", num))
        finite = torch.isfinite(energy)
        bad = num - int(finite.sum())
        if bad == num:
            raise UsageError(f"the scorer {name} is not finite at any of {num:,} {what} draws")
        if bad:
            warn(
                f"the scorer {name} is not finite (NaN or infinity) at {bad:,} of {num:,} {what} draws; such points get no "
                "mass at any beta, and are left out of the base's mean"
            )
        some = z[finite.to(z.device)][:TRIED]
        flat = bool((energy[finite] == energy[finite][0]).all())
        has_gradient = bool((potential.tilt_and_grad(some).grad.nan_to_num() != 0).any())
    if not has_gradient and not flat:
        warn(
            f"the scorer {name} has no gradient with respect to x, so only samplers without gradients can draw "
            f"({GRADIENT_FREE}); gradient ascent is left out"
        )
    return BasePool(z, torch.where(finite, energy, math.inf), bad, has_gradient, flat)


def _energies(potential: LatentPotential, z: Tensor, ranks: Ranks, on_rows: Callable[[int], None]) -> Tensor:
    """Return the energies at z, (N,) float64 on the CPU; each rank computes some of the blocks."""
    if ranks.size == 1:
        return potential.energy(z, on_rows).double().cpu()
    size = potential.block_size or len(z)
    blocks = z.split(size)
    own = [potential.energy(blocks[i]).double().cpu() for i in ranks.mine(len(blocks))]
    parts = ranks.gather(torch.cat(own).numpy().tobytes() if own else b"")
    found = torch.empty(len(z), dtype=torch.float64)
    for rank, part in enumerate(parts):
        values = torch.frombuffer(bytearray(part), dtype=torch.float64) if part else torch.empty(0)
        start = 0
        for i in range(rank, len(blocks), ranks.size):
            found[i * size : i * size + len(blocks[i])] = values[start : start + len(blocks[i])]
            start += len(blocks[i])
    on_rows(len(z))
    return found


def best_of_kl(n: int) -> float:
    """Return ``log N - (N - 1) / N``, the KL of the best of N draws from a single one."""
    return math.log(n) - (n - 1) / n


def best_of_score(score: Tensor, n: int) -> Estimate:
    """Estimate the mean of the best of N draws, from scores (M,), without bias.

    In each of `BLOCKS` parts of m scores the mean over all subsets of N is ``sum_i C(i - 1, N - 1) / C(m, N) s_(i)``, with
    s_(i) the i-th smallest; the parts give the error.
    """
    size = len(score) // BLOCKS
    if size < n:
        return Estimate(math.nan, math.nan)
    rank = torch.arange(1, size + 1, dtype=torch.float64)
    log_ways = torch.lgamma(rank) - torch.lgamma((rank - n + 1).clamp_min(1)) - math.lgamma(n)
    log_all = math.lgamma(size + 1) - math.lgamma(n + 1) - math.lgamma(size - n + 1)
    share = torch.where(rank >= n, (log_ways - log_all).exp(), 0.0)
    means = (score[: size * BLOCKS].unflatten(0, (BLOCKS, size)).sort(1).values * share).sum(1)
    return Estimate(float(means.mean()), float(means.std()) / math.sqrt(BLOCKS))


def best_of_codes(pool: BasePool, n: int) -> Tensor:
    """Return the codes of the best draws of groups of N, (K, Z) with K at most `SHOWN`."""
    kept = pool.kept
    groups = kept[: len(kept) // n * n].unflatten(0, (-1, n))[:SHOWN]
    best = groups.gather(1, pool.energy[groups].argmin(1, keepdim=True)).squeeze(1)
    return pool.z[best.to(pool.z.device)]


def as_best_of(pool: BasePool, n: int, diversity: Estimate) -> BestOf:
    """Return what the best of N base draws gives."""
    return BestOf(n, best_of_kl(n), best_of_score(pool.score, n), diversity)
