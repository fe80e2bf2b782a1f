"""Tests of the metric."""

import math

import torch

from gebm_kit.core.interfaces import EvalContext
from gebm_kit.core.plugins import installed
from gebm_kit.scaffold.examples.metric import Example
from gebm_kit.testing import check_metric


def test_it_does_what_every_metric_must() -> None:
    check_metric(Example())
    check_metric(Example(max_rows=50))


def test_the_kit_finds_it_by_name() -> None:
    assert installed().registry.get("metric", "example").load() is Example


def test_its_value_is_known_for_two_points() -> None:
    def value(samples: torch.Tensor, reference: torch.Tensor) -> float:
        return Example()(EvalContext(samples, reference, None, None, torch.Generator()))["example"]

    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    assert value(x, x.clone()) == 0
    assert math.isclose(value(x[:1], x[1:]), math.sqrt(2 * 5))
