"""Estimates with 95 % intervals from independent draw sets.

The intervals hold for fixed reference rows: they cover the randomness of the draws, but not the sampling of the
reference.

References:
    Some problems in interval estimation. E. C. Fieller, Journal of the Royal Statistical Society B 16(2), 1954.
    https://doi.org/10.1111/j.2517-6161.1954.tb00159.x
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from gebm_kit.core.estimators import t_quantile
from gebm_kit.core.files import finite_or_none


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its 95 % interval.

    Attributes:
        value: the estimate.
        low, high: ends of the interval; None when it has no ends (a single set, or an unbounded ratio).
        n: independent sets behind it.
    """

    value: float
    low: float | None
    high: float | None
    n: int

    def as_dict(self) -> dict[str, float | int | None]:
        """Return plain data for JSON; a value that is not finite is None."""
        value, low, high = finite_or_none(self.value), finite_or_none(self.low), finite_or_none(self.high)
        return {"value": value, "low": low, "high": high, "n": self.n}


@dataclass(frozen=True, slots=True)
class RatioEstimate:
    """A ratio, and the method that gave its interval."""

    estimate: Estimate
    method: str


def mean_interval(values: Sequence[float]) -> Estimate:
    """Compute the mean of independent values and its t interval."""
    num, mean = len(values), fmean(values)
    if num < 2:
        return Estimate(mean, None, None, num)
    half = t_quantile(num - 1) * math.sqrt(variance(values) / num)
    return Estimate(mean, mean - half, mean + half, num)


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> RatioEstimate:
    """Compute the ratio of two figures and its interval; the k-th value of one is paired with the k-th of the other.

    A pair is set k of the GEBM and set k of the base: different draws, scored against the same reference with the same
    shuffles.

    When all values are positive, the ratio is ``exp(mean log(a_k / b_k))``, with a t interval on the logarithm.
    Otherwise (an unbiased estimate may be negative) it is ``mean a / mean b``, with Fieller's interval: all r for which
    a t test does not reject ``mean(a - r b) = 0``. That interval is unbounded, and both ends are None, when mean b is
    not clearly different from zero.
    """
    pairs = list(zip(numerators, denominators, strict=True))
    if all(a > 0 and b > 0 for a, b in pairs):
        logs = mean_interval([math.log(a / b) for a, b in pairs])
        low = None if logs.low is None else math.exp(logs.low)
        high = None if logs.high is None else math.exp(logs.high)
        return RatioEstimate(Estimate(math.exp(logs.value), low, high, logs.n), "t on log ratio, paired")
    return RatioEstimate(_fieller(pairs), "Fieller on ratio of means, paired")


def _fieller(pairs: list[tuple[float, float]]) -> Estimate:
    num = len(pairs)
    mean_a, mean_b = fmean(a for a, _ in pairs), fmean(b for _, b in pairs)
    value = mean_a / mean_b if mean_b != 0 else math.nan
    if num < 2:
        return Estimate(value, None, None, num)
    scale = t_quantile(num - 1) ** 2 / (num * (num - 1))
    spread_a = scale * sum((a - mean_a) ** 2 for a, _ in pairs)
    spread_b = scale * sum((b - mean_b) ** 2 for _, b in pairs)
    shared = scale * sum((a - mean_a) * (b - mean_b) for a, b in pairs)
    # r^2 (mean_b^2 - spread_b) - 2 r (mean_a mean_b - shared) + (mean_a^2 - spread_a) <= 0
    square, linear, constant = mean_b**2 - spread_b, mean_a * mean_b - shared, mean_a**2 - spread_a
    if square <= 0:
        return Estimate(value, None, None, num)
    root = math.sqrt(max(0.0, linear**2 - square * constant))
    return Estimate(value, (linear - root) / square, (linear + root) / square, num)
