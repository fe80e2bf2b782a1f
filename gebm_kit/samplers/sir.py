"""Sampling importance resampling: a pool of prior draws, from which the draws are chosen by weight."""

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
    """The draws so far at ``position`` (C, Z), with their tilt ``value`` (C,).

    Attributes:
        log_weights: log-weights of the candidates seen so far, a row for each chunk of C; -inf for those to come. The rows
            are filled up to whole steps; the candidates beyond the M-th row are not part of the pool and stay -inf.
        log_total: logarithm of the sum of the weights so far, ().
        chunks: number of rows of ``log_weights`` that are filled, () int64.
    """

    position: Tensor
    value: Tensor
    log_weights: Tensor
    log_total: Tensor
    chunks: Tensor


class Sir(Sampler):
    """Sampling importance resampling: z_1, ..., z_n ~ N(0, I); each draw is z_k with probability ∝ exp(-tilt(z_k)).

    The n = M C candidates, M for each of the C draws, form one pool. The pool is never stored. A step draws new candidates
    with total weight W', where the candidates so far have total weight W. Every draw is replaced, with probability
    W' / (W + W'), by a new candidate chosen by weight (a weighted reservoir). Once the pool is complete, the draws are C
    independent choices from it.

    A step adds C candidates, so M - 1 steps complete the pool. Sampling from a model takes larger steps (`in_blocks`): as
    many candidates at once as the model evaluates best. The law of the draws is the same.

    Expectations under the draws have the bias of self-normalised importance sampling, which is O(1/n): to first order
    -E[w² (f - mu)] / (n E[w]²). The draws of one pool repeat its heavy candidates. Their effective size is
    1 / (1/C + 1/ess) with ess = (sum w)² / sum w². Pareto's k of the weights tells whether the pool covers the places with
    most of the weight.

    The estimate ``A = log mean_k exp(-tilt(z_k))`` comes with the draws. A candidate without a finite tilt has weight
    zero; a chain's step with such a candidate counts as a divergence. ``acceptance`` is W' / (W + W').

    Args:
        num_candidates: M, the number of evaluations of the model for each draw.

    Raises:
        UsageError: an argument is outside its range.

    References:
        Using the SIR algorithm to simulate posterior distributions. D. B. Rubin, Bayesian Statistics 3, 1988.
        A general purpose unequal probability sampling plan. M. T. Chao, Biometrika 1982.
        https://doi.org/10.1093/biomet/69.3.653 (each draw is such a reservoir of size one)
        Pareto smoothed importance sampling. A. Vehtari et al., JMLR 2024. https://arxiv.org/abs/1507.02646
    """

    family: ClassVar[Literal["kernel", "population", "refiner"]] = "population"
    exact: ClassVar[bool] = False
    coupled: ClassVar[bool] = True
    caches_tilt: ClassVar[bool] = True

    def __init__(self, num_candidates: Annotated[int, Range(1, None)] = 100) -> None:
        check_arguments(self, num_candidates=num_candidates)
        self.num_candidates = num_candidates

    def in_blocks(self, num_chains: int, rows: int) -> Sampler:
        """Return a copy whose steps evaluate up to ``rows`` candidates, in whole chunks of ``num_chains``.

        Of the upper half of the possible sizes, the one is taken that leaves the fewest candidates over in the last step.
        """
        needed = self.num_candidates - 1
        most = max(min(rows // num_chains, needed), 1)
        size = min(range(most, most // 2, -1), key=lambda chunks: -needed % chunks)
        return self.tuned(rows_a_chain=size)

    def longer(self, factor: int) -> Sampler:
        """Return a copy that chooses its draws from a pool ``factor`` times as large."""
        return self.tuned(num_candidates=factor * self.num_candidates)

    def init(self, z: Tensor, potential: Potential, generator: torch.Generator) -> SirState:
        """Choose the first draws from C candidates, the prior draws ``z``, (C, Z)."""
        values = tilt(potential, z)
        new = _log_weights(values)
        picks = multinomial(new, len(z), generator)
        steps = -(-(self.num_candidates - 1) // self.rows_a_chain)
        log_weights = new.new_full((max(1 + steps * self.rows_a_chain, self.rows_a_chain), len(z)), -math.inf)
        log_weights[0] = new
        first = torch.ones((), dtype=torch.int64, device=z.device)
        return SirState(z.index_select(0, picks), values[picks], log_weights, new.logsumexp(0), first)

    def step(self, state: SirState, potential: Potential, generator: torch.Generator) -> tuple[SirState, Info]:
        """Add ``rows_a_chain`` chunks of C candidates to the pool, or as many as it still takes; a full pool stays."""
        z, value, log_weights, log_total, chunks = state
        size, num_chains = self.rows_a_chain, len(z)
        shape = (size * num_chains, z.shape[1])
        candidates = torch.randn(shape, generator=generator, dtype=z.dtype, device=z.device)
        values = tilt(potential, candidates)
        order = torch.arange(size, device=z.device)
        used = (chunks + order < self.num_candidates).unsqueeze(1)
        new = torch.where(used, _log_weights(values).view(size, num_chains), -math.inf)
        total = torch.logaddexp(log_total, new.flatten().logsumexp(0))
        share = (1 - (log_total - total).exp()).nan_to_num(nan=0.0).clamp(0, 1)  # NaN: no weight so far
        picks = multinomial(new.flatten(), num_chains, generator)
        taken = torch.rand(value.shape, generator=generator, dtype=z.dtype, device=z.device) < share
        rows = chunks.clamp(max=len(log_weights) - size) + order
        new_state = SirState(
            torch.where(taken.unsqueeze(1), candidates.index_select(0, picks), z),
            torch.where(taken, values[picks], value),
            log_weights.index_copy(0, rows, torch.where(used, new, log_weights.index_select(0, rows))),
            total,
            torch.clamp(chunks + size, max=self.num_candidates),
        )
        diverged = (used & ~torch.isfinite(values).view(size, num_chains)).any(0)
        return new_state, Info(share.expand_as(value), taken & ~diverged, diverged, grad_evals=0, forward_evals=size)

    def finished(self, state: SirState) -> Tensor:
        """Return True, (), once M candidates for each draw have been seen."""
        return state.chunks >= self.num_candidates

    def log_partition(self, state: SirState) -> Tensor:
        """Return ``log mean exp(-tilt)`` over the candidates, ()."""
        unseen = (state.chunks.double() / self.num_candidates).log()
        return log_mean_exp(self.log_weights(state).double()) - unseen

    def log_weights(self, state: SirState) -> Tensor:
        """Return ``-tilt`` of all candidates, (M C,)."""
        return state.log_weights[: self.num_candidates].flatten()

    def summary(self, state: SirState) -> Mapping[str, Tensor]:
        """Return the draws' ``effective_size``, and ``candidates_ess``, the effective number of candidates behind them."""
        ess = effective_sample_size(self.log_weights(state).double())
        return {"effective_size": 1 / (1 / len(state.position) + 1 / ess), "candidates_ess": ess}


def _log_weights(values: Tensor) -> Tensor:
    """Return ``-tilt``, or -inf where that is not finite; (N,) -> (N,)."""
    return torch.where(torch.isfinite(values), -values, -math.inf)
