"""Tests of the base."""

import torch

from gebm_kit.core.plugins import installed
from gebm_kit.scaffold.examples.base import Example
from gebm_kit.testing import check_base


def test_it_does_what_every_base_must() -> None:
    check_base(Example(data_shape=(2,)))
    check_base(Example(data_shape=(1, 8, 8), value_range=(-1.0, 1.0)))


def test_the_kit_finds_it_by_name() -> None:
    assert installed().registry.get("base", "example").load() is Example


def test_points_lie_in_the_range_of_the_data() -> None:
    x = Example(data_shape=(3,), value_range=(0.0, 2.0))(100 * torch.randn(50, 8)).detach()
    assert x.shape == (50, 3)
    assert float(x.min()) >= 0
    assert float(x.max()) <= 2
