"""R-hat, nested R-hat, effective sample size and Monte Carlo error of many quantities at once.

Every function takes a trace (N, C, Q): N steps of C chains, with Q numbers recorded for each chain and step. It returns
one number for each quantity, (Q,) float64; NaN for fewer than four steps, or for numbers that are not finite.
Quantities are worked through a few at a time, so memory stays within a few copies of `SLICE_NUMBERS` numbers, or of one
quantity if that has more.

References:
    Rank-normalization, folding, and localization: an improved R-hat for assessing convergence of MCMC.
    A. Vehtari, A. Gelman, D. Simpson, B. Carpenter, P.-C. Bürkner, Bayesian Analysis 2021.
    https://arxiv.org/abs/1903.08008
    Nested R-hat: assessing the convergence of Markov chain Monte Carlo when running many short chains.
    C. C. Margossian et al., Bayesian Analysis 2024. https://arxiv.org/abs/2110.13017
    Practical Markov chain Monte Carlo. C. J. Geyer, Statistical Science 1992. (the initial monotone sequence)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

MIN_STEPS = 4
"""Fewest steps that can be split into halves with a variance."""


SLICE_NUMBERS = 2**19
"""Numbers of a trace that are worked through at a time, 4 MiB in float64: a few copies of them cost little memory."""


TAIL = (0.05, 0.95)
"""Quantiles whose effective sample size is measured."""


MIN_CHAINS_FOR_NESTED = 64
"""Fewest chains with a nested R-hat: four superchains of 16."""


SUPERCHAINS = (4, 16)
"""Fewest and most superchains; in between, each has 32 chains."""


class Measured(NamedTuple):
    """Everything that this file computes from a trace, each (Q,); see the functions of these names."""

    rhat: Tensor
    nested_rhat: Tensor
    ess_bulk: Tensor
    ess_tail: Tensor
    ess_mean: Tensor
    mcse_mean: Tensor


def measure(trace: Tensor, start: Tensor | None = None) -> Measured:
    """Compute everything at once, for the price of two sorts and four Fourier transforms of each quantity.

    Args:
        trace: (N, C, Q).
        start: where the chains started, (C, Q), for `nested_rhat`; with None that is NaN.
    """
    columns = _by_slices(_measure, trace, start)
    return Measured(*columns.unbind(0))


def rhat(trace: Tensor) -> Tensor:
    """Compute rank-normalised split R-hat: (N, C, Q) -> (Q,).

    Each chain is cut into halves, and the M = 2C half-chains of n steps are replaced by the normal scores of their
    pooled ranks. Then

        R-hat² = ((n - 1)/n W + B/n) / W,

    where B/n is the variance of the half-chains' means and W the mean of their variances. It is computed for the
    quantity (which shows locations) and for its distance from the median (which shows scales); the larger one is
    returned.
    """
    return _by_slices(lambda x, start: _rhat(_scored(_halves(x))), trace)[0]


def nested_rhat(trace: Tensor, start: Tensor) -> Tensor:
    """Compute nested R-hat of chains started anywhere: (N, C, Q), (C, Q) -> (Q,); NaN for fewer than 64 chains.

    Chains are sorted by where the quantity started and cut into K superchains of M neighbours each. What a chain
    remembers of its start, its superchain remembers, while the noise of single chains averages out:

        nR-hat² = 1 + B / W,

    where B is the variance of the superchains' means, and W the mean over superchains of (the variance of their chains'
    means + the mean of their chains' variances). It is computed for rank-normalised values, and for their distance from
    the median with chains sorted by that distance at the start. To detect a drift that all chains share, both are also
    computed between the first and the second half of all chains. The largest of the four is returned.

    When nothing is remembered, B/W is about chi²(K-1)/(K-1) / (M N), where N is one chain's effective sample size. The
    typical value is then 1 + 1/(2 M N), and no chain needs to have explored everything.
    """
    return _by_slices(lambda x, start: _nested_rhat(_scored(_halves(x)), x, start), trace, start)[0]


def slowest_direction(trace: Tensor) -> Tensor:
    """Find the combination of quantities in which chains differ most: unit vector, (N, C, Q) -> (Q,).

    It maximises the variance of the chains' means relative to the total variance. It shows modes that no single
    coordinate separates. It does not depend on where chains started, so its nested R-hat is as fair as that of a
    coordinate.
    """
    wide = trace.to("cpu", torch.float64)
    means = wide.mean(0)
    between = torch.cov(means.T).reshape(trace.shape[2], -1)
    centred = (wide - means).flatten(0, 1)
    total = between + centred.T @ centred / max(len(centred) - len(means), 1)
    scale = total.diagonal().clamp(min=1e-300).rsqrt()
    values, vectors = torch.linalg.eigh(scale[:, None] * total * scale)
    whiten = scale[:, None] * vectors * values.clamp(min=1e-9).rsqrt()  # columns, of unit total variance
    slowest = whiten @ torch.linalg.eigh(whiten.T @ between @ whiten).eigenvectors[:, -1]
    return slowest / slowest.norm()


def ess_bulk(trace: Tensor) -> Tensor:
    """Compute the effective sample size for the centre of the distribution, of rank-normalised split chains: (N, C,
    Q) -> (Q,)."""
    return _by_slices(lambda x, start: _ess(_bulk_scores(_halves(x))), trace)[0]


def ess_tail(trace: Tensor) -> Tensor:
    """Compute the smaller effective sample size of the 5 % and 95 % quantiles: (N, C, Q) -> (Q,)."""
    return _by_slices(lambda x, start: _ess_tail(x), trace)[0]


def ess_mean(trace: Tensor) -> Tensor:
    """Compute the effective sample size for the mean, of split chains as they are: (N, C, Q) -> (Q,)."""
    return _by_slices(lambda x, start: _ess(_halves(x)), trace)[0]


def mcse_mean(trace: Tensor) -> Tensor:
    """Compute the Monte Carlo standard error of the mean, ``sd / sqrt(ess_mean)``, in the quantity's unit: (N, C,
    Q) -> (Q,)."""
    return _by_slices(lambda x, start: x.flatten(1).std(1) / _ess(_halves(x)).sqrt(), trace)[0]


def superchains(start: Tensor) -> Tensor:
    """Group chains into superchains: (q, C) values at the start -> (q, K, M) indices of chains.

    K, the number of superchains, is C/32, at least 4 and at most 16 (`SUPERCHAINS`). Each superchain holds M chains that
    started close together. Where K M is less than C, the chains left over belong to none; they are spread evenly over the
    order of starting values.
    """
    num_chains = start.shape[1]
    num = min(max(num_chains // 32, SUPERCHAINS[0]), SUPERCHAINS[1])
    size = num_chains // num
    spread = (torch.arange(num * size, device=start.device) * num_chains).div(num * size, rounding_mode="floor")
    return start.sort(dim=1, stable=True).indices[:, spread].unflatten(1, (num, size))


def ranks(rows: Tensor) -> Tensor:
    """Compute the ranks 1..S within each row, with ties sharing their average: (q, S) -> (q, S) float64."""
    ordered, order = _sorted(rows)
    twice = _twice_average_ranks(ordered[:, 1:] == ordered[:, :-1])
    return torch.empty_like(rows, dtype=torch.float64).scatter_(1, order, twice.double() / 2)


# --- slices of quantities: x (q, C, N), start (q, C) -----------------------------------------------------------------
class _Scores(NamedTuple):
    """Normal scores of half-chains (q, 2C, n): of the values and of their distances from the median (q,).

    ``ordered`` are the sorted values themselves, (q, 2C n).
    """

    bulk: Tensor
    folded: Tensor
    median: Tensor
    ordered: Tensor


def _by_slices(
    function: Callable[[Tensor, Tensor | None], Tensor], trace: Tensor, start: Tensor | None = None
) -> Tensor:
    """Apply ``function`` to a few quantities at a time, side by side: (rows, Q); one row when it returns (q,)."""
    steps, num_chains, num = trace.shape
    per_slice = max(SLICE_NUMBERS // max(steps * num_chains, 1), 1)
    found = []
    for first in range(0, num, per_slice):
        some = slice(first, first + per_slice)
        x = trace[:, :, some].permute(2, 1, 0).to("cpu", torch.float64).contiguous()
        begun = None if start is None else start[:, some].T.to("cpu", torch.float64).contiguous()
        if steps < MIN_STEPS:
            values = torch.full_like(function(x.new_zeros(len(x), 2, MIN_STEPS), None), math.nan)
        else:
            values = function(x, begun)
        found.append(values.where(torch.isfinite(x).all(2).all(1), math.nan))
    return torch.cat([part if part.dim() == 2 else part.unsqueeze(0) for part in found], dim=1)


def _measure(x: Tensor, start: Tensor | None) -> Tensor:
    """Compute the rows of `Measured`, (6, q)."""
    halves = _halves(x)
    scores = _scored(halves)
    mean_size = _ess(halves)
    return torch.stack(
        [
            _rhat(scores),
            _nested_rhat(scores, x, start),
            _ess(scores.bulk),
            _ess_tail(x, scores.ordered),
            mean_size,
            x.flatten(1).std(1) / mean_size.sqrt(),
        ]
    )


def _halves(x: Tensor) -> Tensor:
    """Stack first halves of all chains, then second halves; an odd middle step is left out: (q, C, N) -> (q,
    2C, N/2)."""
    half = x.shape[2] // 2
    return torch.cat([x[..., :half], x[..., -half:]], dim=1)


def _scored(halves: Tensor) -> _Scores:
    ordered, order = _sorted(halves.flatten(1))
    size = ordered.shape[1]
    median = (ordered[:, (size - 1) // 2] + ordered[:, size // 2]) / 2
    folded = (ordered - median.unsqueeze(1)).abs_()  # one falling and one rising run, which a stable sort merges
    in_folded = torch.from_numpy(np.argsort(folded.numpy(), axis=1, kind="stable"))
    bulk = _normal_scores(ordered, order).view_as(halves)
    folded_scores = _normal_scores(folded.gather(1, in_folded), order.gather(1, in_folded)).view_as(halves)
    return _Scores(bulk, folded_scores, median, ordered)


def _bulk_scores(halves: Tensor) -> Tensor:
    return _normal_scores(*_sorted(halves.flatten(1))).view_as(halves)


def _sorted(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Sort rows, and return where each entry came from.

    numpy's sort uses the processor's vector units; torch's does not.
    """
    order = torch.from_numpy(np.argsort(flat.numpy(), axis=1))
    return flat.gather(1, order), order


def _normal_scores(ordered: Tensor, order: Tensor) -> Tensor:
    """Compute ``Phi^-1((r - 3/8) / (S + 1/4))`` of average ranks r, from sorted entries and their places: (q,
    S) -> (q, S)."""
    size = ordered.shape[1]
    twice = torch.arange(2, 2 * size + 1, dtype=torch.float64)  # every possible 2r
    table = torch.special.ndtri((twice / 2 - 0.375) / (size + 0.25))
    repeated = ordered[:, 1:] == ordered[:, :-1]
    scores = table[::2].expand_as(ordered)
    if bool(repeated.any()):
        scores = table[_twice_average_ranks(repeated) - 2]
    return torch.empty_like(ordered).scatter_(1, order, scores)


def _twice_average_ranks(repeated: Tensor) -> Tensor:
    """Compute twice the ranks 1..S of sorted entries, with ties sharing their average.

    Takes which entries equal the one before them, (q, S - 1); returns (q, S).
    """
    rows, size = repeated.shape[0], repeated.shape[1] + 1
    begins = torch.nn.functional.pad(~repeated, (1, 0), value=True).flatten()
    first = begins.nonzero().squeeze(1)  # of each run of equal entries, rows end to end
    length = torch.diff(first, append=first.new_tensor([rows * size]))
    twice = (2 * (first % size) + length + 1).repeat_interleave(length)
    return twice.view(rows, size)


def _rhat(scores: _Scores) -> Tensor:
    return torch.fmax(_plain_rhat(scores.bulk), _plain_rhat(scores.folded))


def _plain_rhat(z: Tensor) -> Tensor:
    """Compute R-hat of half-chains: (q, M, n) -> (q,)."""
    n = z.shape[2]
    mean, variance = _moments(z)
    return ((mean.var(1) / variance.mean(1)) + (n - 1) / n).sqrt()


def _moments(z: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and variance over the last dimension, several times faster than `torch.var_mean`."""
    mean = z.mean(-1, keepdim=True)
    return mean.squeeze(-1), (z - mean).square_().sum(-1) / (z.shape[-1] - 1)


def _nested_rhat(scores: _Scores, x: Tensor, start: Tensor | None) -> Tensor:
    num, num_chains, _ = x.shape
    if start is None or num_chains < MIN_CHAINS_FOR_NESTED:
        return x.new_full((num,), math.nan)
    found = x.new_full((num,), -math.inf)
    for z, key in ((scores.bulk, start), (scores.folded, (start - scores.median.unsqueeze(1)).abs())):
        in_time = z.unflatten(1, (2, num_chains))
        whole = in_time.transpose(1, 2).flatten(2)
        rows = torch.arange(num, device=x.device)[:, None, None]
        found = torch.fmax(found, grouped_rhat(whole[rows, superchains(key)]))
        found = torch.fmax(found, grouped_rhat(in_time))
    return found.where(torch.isfinite(start).all(1), math.nan)


def grouped_rhat(z: Tensor) -> Tensor:
    """Compute nested R-hat of K given groups of M chains: (q, K, M, n) -> (q,)."""
    mean, variance = _moments(z)
    within = (mean.var(2) + variance.mean(2)).mean(1)
    return (1 + mean.mean(2).var(1) / within).sqrt()


def _ess_tail(x: Tensor, ordered: Tensor | None = None) -> Tensor:
    """Compute `ess_tail` of x (q, C, N).

    ``ordered`` holds the sorted values of its halves, used when they are all values.
    """
    if ordered is None or ordered.shape[1] < x.shape[1] * x.shape[2]:
        ordered = torch.from_numpy(np.sort(x.flatten(1).numpy(), axis=1))
    low, high = (_ess(_halves((x <= _quantile(ordered, p)[:, None, None]).to(x))) for p in TAIL)
    return torch.minimum(low, high)


def _quantile(ordered: Tensor, p: float) -> Tensor:
    """Interpolate the quantile p of sorted rows linearly: (q, S) -> (q,)."""
    place = p * (ordered.shape[1] - 1)
    below = math.floor(place)
    low, high = ordered[:, below], ordered[:, min(below + 1, ordered.shape[1] - 1)]
    share = place - below  # interpolated from the nearer end, so that a share of 0 or 1 gives that end itself
    return low + (high - low) * share if share < 0.5 else high - (high - low) * (1 - share)


def _ess(z: Tensor) -> Tensor:
    """Compute the effective size ``M n / tau`` of M chains of n steps: (q, M, n) -> (q,).

        tau = -1 + 2 sum_k P_k + rho_2K,   P_k = rho_2k + rho_2k+1,   rho_t = 1 - (W - mean autocovariance_t) / var+,

    over Geyer's initial sequence: the pairs up to the first one, K, that is not positive, each capped at the one before
    it. tau is at least 1/log10(M n), so that antithetic chains don't promise too much. Chains that are all the same
    constant count as independent.
    """
    _, num_chains, n = z.shape
    covariance, means = _autocovariance(z)
    mean_variance = covariance[:, 0] * n / (n - 1)
    total = covariance[:, 0].clone()
    if num_chains > 1:
        total += means.var(1)
    rho = 1 - (mean_variance.unsqueeze(1) - covariance) / total.unsqueeze(1)
    rho[:, 0] = 1.0
    pairs = rho[:, : n // 2 * 2].unflatten(1, (-1, 2)).sum(2)
    last = max((n - 3) // 2, 0)  # the last pair looked at, should none before it end the sequence
    index = torch.arange(last + 1, device=z.device)
    ended = (pairs[:, : last + 1] > 0).logical_not() | (index == last)
    end = ended.to(torch.int8).argmax(1, keepdim=True)  # K, for each quantity
    falling = pairs[:, : last + 1].cummin(1).values
    tau = -1 + 2 * (falling * (index < end)).sum(1)
    at_end, pair_at_end = rho.gather(1, 2 * end).squeeze(1), pairs.gather(1, end).squeeze(1)
    tau += at_end.where((at_end > 0) | (pair_at_end >= 0), 0.0)
    size = num_chains * n
    found = size / tau.clamp(min=1 / math.log10(size))
    found = found.where(torch.isfinite(rho).all(1), math.nan)
    low, high = z.flatten(1).aminmax(dim=1)
    return found.where(high - low >= 1e-15, size)


def _autocovariance(z: Tensor) -> tuple[Tensor, Tensor]:
    """Average the biased autocovariance at every lag over chains, (q, n); also return the chains' means, (q, M).

    Power spectra are averaged before they are transformed back: one inverse transform serves all chains.
    """
    n = z.shape[2]
    length = _fast_length(2 * n)
    means = z.mean(2, keepdim=True)
    spectrum = torch.view_as_real(torch.fft.rfft(z - means, length))
    power = spectrum.square_().mean(1).sum(2)
    return torch.fft.irfft(power, length)[:, :n] / n, means.squeeze(2)


def _fast_length(least: int) -> int:
    """Return the smallest product of powers of 2, 3 and 5 that is not below ``least``."""
    best = 1 << (least - 1).bit_length()
    five = 1
    while five < best:
        three = five
        while three < best:
            rest = -(-least // three)
            best = min(best, three << (rest - 1).bit_length())
            three *= 3
        five *= 5
    return best
