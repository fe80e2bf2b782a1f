"""Statistical tests of a set of draws against the known distribution of their target.

The tests of a set are combined. Holm's procedure keeps the probability of any false alarm below alpha = 1e-5, and a failure
counts only if it repeats with a new seed (`confirmed`). A correct sampler thus fails once in 10^10 runs.

References:
    A simple sequentially rejective multiple test procedure. S. Holm, Scandinavian Journal of Statistics 1979.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gebm_kit.testing.targets import Cdf, Target

ALPHA = 1e-5
"""Probability of a false alarm in one set of tests. With the retry of `confirmed` even thousands of tests hardly ever fail
without a fault; a smaller alpha would miss smaller errors."""

NUM_BINS = 20
"""Bins of the chi-square test. More bins see finer differences but each with less power; thousands of draws fill 20
bins well."""


def ks_p_value(values: Tensor, cdf: Cdf) -> float:
    """Return the p-value of the two-sided Kolmogorov-Smirnov test of independent draws (N,) against a continuous ``cdf``."""
    from scipy.stats import kstest

    return float(kstest(values.double().cpu().numpy(), cdf).pvalue)


def chi_square_p_value(values: Tensor, cdf: Cdf, num_bins: int = NUM_BINS) -> float:
    """Return the p-value of Pearson's test of the draws' (N,) counts in ``num_bins`` bins of equal probability."""
    from scipy.stats import chi2

    shares = torch.as_tensor(cdf(values.double().cpu().numpy()))
    bins = (shares * num_bins).long().clamp(0, num_bins - 1)
    expected = len(values) / num_bins
    statistic = float((torch.bincount(bins, minlength=num_bins) - expected).square().sum()) / expected
    return float(chi2.sf(statistic, num_bins - 1))


def moment_p_values(values: Tensor, cdf: Cdf) -> dict[str, float]:
    """Return the p-values of z-tests of the mean and mean square of the probability transforms ``cdf(values) - ½``; (N,).

    Under the target the transforms are uniform on [-½, ½]. They have mean 0 and variance 1/12. Their squares have mean 1/12
    and variance 1/180.
    """
    uniform = torch.as_tensor(cdf(values.double().cpu().numpy())) - 0.5
    root = math.sqrt(len(values))
    scores = {
        "mean": float(uniform.mean()) * root / math.sqrt(1 / 12),
        "mean square": (float(uniform.square().mean()) - 1 / 12) * root / math.sqrt(1 / 180),
    }
    return {name: z_p_value(score) for name, score in scores.items()}


def z_p_value(score: float) -> float:
    """Return the two-sided p-value of a standard normal score; 0 if the score is not finite."""
    return math.erfc(abs(score) / math.sqrt(2)) if math.isfinite(score) else 0.0


def t_p_value(values: Tensor, expected: float) -> float:
    """Return the p-value of the two-sided t-test that independent values (K,) have the mean ``expected``.

    It is 1 if all values are equal to ``expected``.
    """
    from scipy.stats import t

    if bool((values == expected).all()):
        return 1.0
    score = (float(values.mean()) - expected) * math.sqrt(len(values)) / float(values.std())
    return 2 * float(t.sf(abs(score), len(values) - 1)) if math.isfinite(score) else 0.0


def holm(p_values: Mapping[str, float], alpha: float = ALPHA) -> dict[str, float]:
    """Return the named p-values that Holm's procedure rejects; the probability of any false rejection is below alpha."""
    rejected = {}
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        if p > alpha / (len(p_values) - rank):
            break
        rejected[name] = p
    return rejected


def disagreement(z: Tensor, target: Target, alpha: float = ALPHA) -> dict[str, float]:
    """Test whether independent rows ``z`` (N, Z), in normal coordinates, are draws of ``target``; return the failed tests.

    Each projection is compared with its distribution by Kolmogorov-Smirnov, chi-square on bins of equal probability and the
    first two moments. Holm's procedure is applied to all p-values together.
    """
    if not bool(torch.isfinite(z).all()):
        return {"finite": 0.0}
    p_values = {}
    for projection in target.projections:
        values = projection.function(z.cpu())
        p_values[f"{projection.name}: Kolmogorov-Smirnov"] = ks_p_value(values, projection.cdf)
        p_values[f"{projection.name}: chi-square"] = chi_square_p_value(values, projection.cdf)
        for name, p in moment_p_values(values, projection.cdf).items():
            p_values[f"{projection.name}: {name}"] = p
    return holm(p_values, alpha)


def confirmed(attempt: Callable[[int], dict[str, Any]], seed: int = 0) -> dict[str, Any]:
    """Run ``attempt(seed)`` and, if it fails, ``attempt(seed + 1)``; return the failures of the second, if there are any."""
    return attempt(seed + 1) if attempt(seed) else {}
