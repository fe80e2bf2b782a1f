"""The estimate of A and its diagnostics of reliability."""

from __future__ import annotations

import json
import math
import warnings

import pytest
import torch

from gebm_kit.core.estimators import pareto_k
from gebm_kit.core.progress import GebmKitWarning
from gebm_kit.core.seeds import stream
from gebm_kit.engine.likelihood.log_partition import from_tilt, warn_of_tail
from gebm_kit.engine.likelihood.model_fit import ModelFit

NUM = 20_000


def pareto_log_weights(k: float) -> torch.Tensor:
    """Return log weights of ``w = u^{-k}``, which is exactly the generalised Pareto law of shape k."""
    return -k * torch.rand(NUM, generator=stream(0, "pareto"), dtype=torch.float64).log()


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9, 1.5])
def test_k_is_found_for_weights_of_known_tail_whatever_their_scale(k: float) -> None:
    log_weights = pareto_log_weights(k)
    assert pareto_k(log_weights) == pytest.approx(k, abs=0.2)  # 424 tail weights: a standard error of about 0.06
    assert pareto_k(log_weights - 500.0) == pytest.approx(pareto_k(log_weights), abs=1e-6)


def test_bounded_equal_and_impossible_weights() -> None:
    assert pareto_k(torch.rand(NUM, generator=stream(0, "bounded"), dtype=torch.float64)) < 0
    assert pareto_k(torch.zeros(NUM)) == -math.inf
    assert math.isnan(pareto_k(torch.tensor([0.0, math.inf, 1.0])))
    assert math.isnan(pareto_k(torch.tensor([math.nan] * NUM)))
    assert math.isnan(pareto_k(torch.tensor([0.0, 1.0])))
    some_zero = torch.where(torch.arange(NUM) % 3 == 0, -math.inf, pareto_log_weights(0.5))
    assert pareto_k(some_zero) == pytest.approx(0.5, abs=0.25)


def test_a_warning_says_that_tails_are_heavy() -> None:
    with pytest.warns(GebmKitWarning, match=r"A and KALE are not to be trusted.*20,000 base draws"):
        warn_of_tail(from_tilt(-pareto_log_weights(1.5)))
    with pytest.warns(GebmKitWarning, match="not to be trusted"):
        warn_of_tail(from_tilt(-1000.0 * pareto_log_weights(1.0)))  # one draw has all the weight
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_tail(from_tilt(-pareto_log_weights(0.2)))
        warn_of_tail(from_tilt(torch.zeros(NUM)))


def test_json_has_k_and_the_number_of_draws() -> None:
    for tilt, expected in ((-pareto_log_weights(0.5), 0.5), (torch.zeros(NUM), None)):
        estimate = from_tilt(tilt)
        tree = json.loads(json.dumps(ModelFit(None, 0.0, estimate).as_dict(), allow_nan=False))["log_partition"]
        assert {"value", "se", "low", "high", "method", "reason", "ess", "pareto_k", "num_draws"} <= set(tree)
        assert tree["bridge"] is tree["gap"] is tree["replicates"] is None
        assert tree["low"] <= tree["value"] <= tree["high"]
        assert tree["num_draws"] == NUM
        assert tree["pareto_k"] == (None if expected is None else pytest.approx(expected, abs=0.2))
