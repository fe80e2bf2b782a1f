"""Intervals: quantiles, coverage, and the paired ratio."""

from __future__ import annotations

import json
import math

import pytest
import torch
from scipy import stats

from gebm_kit.core.estimators import t_quantile
from gebm_kit.core.seeds import stream
from gebm_kit.engine.evaluation.intervals import Estimate, mean_interval, paired_ratio

REPEATS = 2000


def covered_as_nominal(hits: int, total: int = REPEATS) -> bool:
    """Whether a count of hits is compatible with 95 % coverage."""
    return stats.binomtest(hits, total, 0.95).pvalue > 1e-5


@pytest.mark.parametrize("degrees", [1, 2, 5, 9, 29, 30, 31, 60, 200, 5000])
def test_quantiles(degrees: int) -> None:
    assert t_quantile(degrees) == pytest.approx(float(stats.t.ppf(0.975, degrees)), abs=2e-5)


def test_mean_of_five() -> None:
    found = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.776445 * math.sqrt(2.5 / 5)
    assert (found.value, found.n) == (3.0, 5)
    assert found.low == pytest.approx(3 - half)
    assert found.high == pytest.approx(3 + half)


def test_one_set_has_no_interval() -> None:
    assert mean_interval([2.5]) == Estimate(2.5, None, None, 1)
    assert paired_ratio([2.0], [4.0]).estimate == Estimate(0.5, None, None, 1)
    assert paired_ratio([-2.0], [4.0]).estimate == Estimate(-0.5, None, None, 1)


@pytest.mark.parametrize("num", [2, 3, 10])
def test_mean_intervals_cover(num: int) -> None:
    values = 4 + torch.randn(REPEATS, num, generator=stream(0, "mean", num), dtype=torch.float64)
    hits = sum(found.low < 4 < found.high for found in map(mean_interval, values.tolist()))  # type: ignore[operator]
    assert covered_as_nominal(hits)


def pairs(noise: float, shared: float, means: tuple[float, float], num: int = 10) -> torch.Tensor:
    """(REPEATS, 2, num): a and b with noise of their own and a part in common."""
    generator = stream(1, noise, shared, means)
    common = shared * torch.randn(REPEATS, 1, num, generator=generator, dtype=torch.float64)
    own = noise * torch.randn(REPEATS, 2, num, generator=generator, dtype=torch.float64)
    return torch.tensor(means, dtype=torch.float64)[:, None] + common + own


def test_paired_ratio_of_positive_values_covers() -> None:
    """Log-normal figures: the truth on the log scale is the difference of means."""
    logs = pairs(0.1, 0.5, (math.log(0.6), 0.0))
    hits = 0
    for a, b in logs.exp().tolist():
        found = paired_ratio(a, b)
        assert found.method == "t on log ratio, paired"
        hits += found.estimate.low < 0.6 < found.estimate.high  # type: ignore[operator]
    assert covered_as_nominal(hits)


@pytest.mark.parametrize("mean_a", [0.0, 0.3, -0.5])
def test_fieller_covers_where_values_are_negative(mean_a: float) -> None:
    hits, used = 0, 0
    for a, b in pairs(0.5, 0.3, (mean_a, 2.0)).tolist():
        if min(a) > 0 and min(b) > 0:
            continue
        found = paired_ratio(a, b)
        assert found.method == "Fieller on ratio of means, paired"
        used += 1
        hits += found.estimate.low < mean_a / 2.0 < found.estimate.high  # type: ignore[operator]
    assert used > REPEATS / 2
    assert covered_as_nominal(hits, used)


def test_pairing_is_what_makes_the_interval_short() -> None:
    """Negative control: the same numbers paired with the wrong partners give a far wider interval."""
    a, b = pairs(0.02, 0.5, (math.log(0.6), 0.0))[0].exp().tolist()
    right, wrong = paired_ratio(a, b).estimate, paired_ratio(a, b[1:] + b[:1]).estimate
    assert right.high - right.low < 0.2 * (wrong.high - wrong.low)  # type: ignore[operator]


def test_a_denominator_that_may_be_zero_has_no_interval() -> None:
    found = paired_ratio([1.0, -1.0, 2.0], [0.1, -0.1, 0.05]).estimate
    assert found.low is None
    assert found.high is None
    assert paired_ratio([1.0, 2.0], [0.0, 0.0]).estimate.as_dict()["value"] is None


def test_plain_json_without_nan() -> None:
    found = Estimate(math.nan, -math.inf, 1.0, 3).as_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == {"value": None, "low": None, "high": 1.0, "n": 3}
