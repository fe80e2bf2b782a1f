"""Tests of the penalty."""

import math

import torch
from torch import Tensor

from gebm_kit.core.interfaces import Batch, Energy
from gebm_kit.core.plugins import installed
from gebm_kit.scaffold.examples.penalty import Example
from gebm_kit.testing import check_penalty


class Constant(Energy):
    def forward(self, x: Tensor) -> Tensor:
        return x.new_full((len(x),), 3.0)


def test_it_does_what_every_penalty_must() -> None:
    check_penalty(Example())
    check_penalty(Example(weight=1.0, every=4), data_shape=(1, 4, 4))


def test_the_kit_finds_it_by_name() -> None:
    assert installed().registry.get("penalty", "example").load() is Example


def test_its_value_is_known_for_a_constant_energy() -> None:
    x, y = torch.randn(2, 10, 2)
    value = Example(weight=0.5)(Constant(), Batch(x, y, y), torch.Generator())
    assert math.isclose(float(value), 0.5 * (9 + 9))
