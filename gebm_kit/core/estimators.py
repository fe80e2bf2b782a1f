"""Estimates from energies of data and of base draws: log-partition, KALE, importance weights.

Notation as in the paper: E_P are energies of data, E_B of base draws, A the log-partition ``log E_B[exp(-E)]``.

References:
    Generalized Energy Based Models. M. Arbel, L. Zhou, A. Gretton, ICLR 2021. https://arxiv.org/abs/2003.05033
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

BISECTIONS = 24
"""Halvings, on a logarithmic scale, of the interval that `largest` searches: down to less than a millionth of its
width."""


def log_mean_exp(values: Tensor) -> Tensor:
    """Compute ``log (1/N) sum_i exp(values_i)``; (N,) -> ().

    The log-sum-exp starts from its first term, not from zero.
    """
    return torch.logsumexp(values, dim=0) - math.log(values.shape[0])


def log_partition(energy_base: Tensor, inverse_temperature: float = 1.0) -> Tensor:
    """Estimate by importance sampling ``A(beta) = log mean exp(-beta E_B)``, biased low; (N,) -> ()."""
    return log_mean_exp(-inverse_temperature * energy_base)


def log_partition_se(energy_base: Tensor, inverse_temperature: float = 1.0) -> Tensor:
    """Compute the delta-method standard error of `log_partition`: ``sd(w) / (mean(w) sqrt(N))``, w = exp(-beta E_B)."""
    log_weights = -inverse_temperature * energy_base
    weights = torch.exp(log_weights - log_weights.max())
    return weights.std() / (weights.mean() * math.sqrt(weights.shape[0]))


def kale(energy_data: Tensor, energy_base: Tensor, log_partition: Tensor) -> Tensor:
    """Compute KALE in its Fenchel form, ``-E_P[E] - A - E_B[exp(-(E + A))] + 1``.

    It is a lower bound of KL(P || B) for every A.

    Shapes: energy_data (N,), energy_base (M,), log_partition () -> (). At ``A = log E_B[exp(-E)]`` it equals the
    Donsker-Varadhan value ``-E_P[E] - A`` (paper, Section 3.1).
    """
    return 1.0 - energy_data.mean() - log_partition - torch.exp(-(energy_base + log_partition)).mean()


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """Compute Kish's effective sample size ``(sum w)^2 / sum w^2`` of importance weights; (N,) -> (),
    between 1 and N."""
    return torch.exp(2 * torch.logsumexp(log_weights, dim=0) - torch.logsumexp(2 * log_weights, dim=0))


def largest(enough: Callable[[Tensor], Tensor], top: Tensor, share: float) -> Tensor:
    """Find the largest t in ``[share * top, top]`` with ``enough(t)``, by bisection on log t, on the device; () -> ().

    ``enough`` maps t, (), to a boolean, (): true below some t and false above it.
    """
    high = top.log()
    low = high + math.log(share)
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        is_enough = enough(middle.exp())
        low, high = torch.where(is_enough, middle, low), torch.where(is_enough, high, middle)
    return low.exp()


PARETO_K_LIMIT = 0.7
"""Above it the mean of the weights and its standard error can't be relied on at any practical number of draws (Vehtari
et al. 2024, Section 3.2)."""


MIN_WEIGHTS = 25
"""Fewest weights that have a Pareto k: their tail, a fifth of them, is the five that a fit needs."""


MAX_SPREAD = 600.0
"""Nats between the largest and the smallest weight of the tail.

Beyond it the fit, in double precision, sees only zeros.
"""


def pareto_k(log_weights: Tensor) -> float:
    """Estimate the Pareto k of importance weights, (N,), from the ``min(N / 5, 3 sqrt(N))`` largest of them.

    The result is NaN for too few weights, -inf when the tail is constant, and inf when its spread exceeds `MAX_SPREAD`.
    """
    if len(log_weights) < MIN_WEIGHTS or not math.isfinite(float(log_weights.max())):
        return math.nan
    num_tail = math.ceil(min(len(log_weights) / 5, 3 * math.sqrt(len(log_weights))))
    tail = log_weights.topk(num_tail + 1).values
    if tail[0] == tail[-2]:
        return -math.inf
    if tail[0] - tail[-1] > MAX_SPREAD:
        return math.inf
    from arviz_stats.base.array import array_stats  # slow to import

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own words on a large k or a short tail; ours follow from the number
        _, k = array_stats.psislw(-log_weights.double().cpu().numpy())  # it takes log ratios with their sign turned
    return float(k)


# Student's t, 97.5 % quantile at 1 to 30 degrees of freedom.
_T_975 = (
    12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157, 2.228139,
    2.200985, 2.178813, 2.160369, 2.144787, 2.131450, 2.119905, 2.109816, 2.100922, 2.093024, 2.085963,
    2.079614, 2.073873, 2.068658, 2.063899, 2.059539, 2.055529, 2.051831, 2.048407, 2.045230, 2.042272,
)  # fmt: skip


_Z_975 = 1.9599639845
"""97.5 % quantile of the standard normal, the limit of Student's."""


def t_quantile(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t; beyond 30 degrees of freedom by an expansion that is right to 1e-5."""
    if degrees <= len(_T_975):
        return _T_975[degrees - 1]
    z = _Z_975
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3
