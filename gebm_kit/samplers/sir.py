"""Sampling importance resampling: prior draws, chosen again by weight from one pool of all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.estimators import effective_sample_size, log_mean_exp
from gebm_kit.core.interfaces import Info, Potential, Sampler
from gebm_kit.core.resampling import multinomial
from gebm_kit.core.tilt import tilt


class SirState(NamedTuple):
    """Draws so far at ``position`` (C, Z) with their tilt ``value`` (C,).

    ``log_weights`` (M, C) are those of the candidates seen, -inf where none has been yet; ``log_total`` () is the logarithm
    of their sum and ``chunks`` () int64 counts the rows that are filled.
    """

    position: Tensor
    value: Tensor
    log_weights: Tensor
    log_total: Tensor
    chunks: Tensor


class Sir(Sampler):
    """Sampling importance resampling: z_1, ..., z_n ~ N(0, I); each draw is z_k with probability ∝ exp(-tilt(z_k)).

    The n = M C candidates, M for each of the C draws, form one pool, which is never kept: a step brings C of them, of total
    weight W', to those of total weight W so far, and every draw is replaced with probability W' / (W + W') by one of the
    new ones, chosen by weight (a weighted reservoir). After M - 1 steps the draws are C independent choices from the pool.

    Expectations under the draws have a bias of O(1/n): that of self-normalised importance sampling,
    -E[w² (f - mu)] / (n E[w]²) to first order. The draws of one pool repeat its heavy candidates; their effective size is
    1 / (1/C + 1/ess), ess = (sum w)² / sum w². Pareto's k of the weights says whether the pool saw what matters.

    ``A = log mean_k exp(-tilt(z_k))`` comes with the draws. A candidate without a finite tilt has weight zero and counts as
    a divergence. ``acceptance`` is W' / (W + W').

    Args:
        num_candidates: M, evaluations of the model for each draw.

    Raises:
        UsageError: an argument outside its range.

    References:
        Using the SIR algorithm to simulate posterior distributions. D. B. Rubin, Bayesian Statistics 3, 1988.
        A general purpose unequal probability sampling plan. M. T. Chao, Biometrika 1982.
        https://doi.org/10.1093/biomet/69.3.653 (each draw is such a reservoir of size one)
        Pareto smoothed importance sampling. A. Vehtari et al., JMLR 2024. https://arxiv.org/abs/1507.02646
    """

    family: ClassVar[Literal["kernel", "population", "refiner"]] = "population"
    exact: ClassVar[bool] = False
    coupled: ClassVar[bool] = True

    def __init__(self, num_candidates: Annotated[int, Range(1, None)] = 100) -> None:
        check_arguments(self, num_candidates=num_candidates)
        self.num_candidates = num_candidates

    def init(self, z: Tensor, potential: Potential, generator: torch.Generator) -> SirState:
        """Draws from the first C candidates, ``z``: (C, Z), themselves prior draws."""
        values = tilt(potential, z)
        new = _log_weights(values)
        picks = multinomial(new, len(z), generator)
        log_weights = new.new_full((self.num_candidates, len(z)), -math.inf)
        log_weights[0] = new
        first = torch.ones((), dtype=torch.int64, device=z.device)
        return SirState(z.index_select(0, picks), values[picks], log_weights, new.logsumexp(0), first)

    def step(self, state: SirState, potential: Potential, generator: torch.Generator) -> tuple[SirState, Info]:
        """Bring C further candidates to the pool; one that is full stays as it is."""
        z, value, log_weights, log_total, chunks = state
        candidates = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
        values = tilt(potential, candidates)
        new = _log_weights(values)
        room = chunks < self.num_candidates
        row = chunks.clamp(max=self.num_candidates - 1).unsqueeze(0)
        total = torch.logaddexp(log_total, new.logsumexp(0))
        share = (1 - (log_total - total).exp()).nan_to_num(nan=0.0).clamp(0, 1) * room  # nan: no weight at all so far
        picks = multinomial(new, len(z), generator)
        taken = torch.rand(value.shape, generator=generator, dtype=z.dtype, device=z.device) < share
        new_state = SirState(
            torch.where(taken.unsqueeze(1), candidates.index_select(0, picks), z),
            torch.where(taken, values[picks], value),
            log_weights.index_copy(
                0, row, torch.where(room, new, log_weights.index_select(0, row).squeeze(0)).unsqueeze(0)
            ),
            torch.where(room, total, log_total),
            torch.clamp(chunks + 1, max=self.num_candidates),
        )
        diverged = ~torch.isfinite(values)
        return new_state, Info(share.expand_as(value), taken & ~diverged, diverged, grad_evals=0, forward_evals=1)

    def finished(self, state: SirState) -> Tensor:
        """Once M candidates for each draw have been seen."""
        return state.chunks >= self.num_candidates

    def log_partition(self, state: SirState) -> Tensor:
        """``log mean exp(-tilt)`` over the candidates, ()."""
        unseen = (state.chunks.double() / self.num_candidates).log()
        return log_mean_exp(self.log_weights(state).double()) - unseen

    def log_weights(self, state: SirState) -> Tensor:
        """``-tilt`` of all candidates, (M C,)."""
        return state.log_weights.flatten()

    def summary(self, state: SirState) -> Mapping[str, Tensor]:
        """``effective_size`` of the draws; ``candidates_ess``, the effective number of candidates behind them."""
        ess = effective_sample_size(self.log_weights(state).double())
        return {"effective_size": 1 / (1 / len(state.position) + 1 / ess), "candidates_ess": ess}


def _log_weights(values: Tensor) -> Tensor:
    """``-tilt``, and -inf where that is not finite; (N,) -> (N,)."""
    return torch.where(torch.isfinite(values), -values, -math.inf)
