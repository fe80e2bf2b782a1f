"""Tests of the energy."""

import torch

from gebm_kit.core.plugins import installed
from gebm_kit.scaffold.examples.energy import Example
from gebm_kit.testing import check_energy


def test_it_does_what_every_energy_must() -> None:
    check_energy(Example(data_shape=(2,)), data_shape=(2,))
    check_energy(Example(data_shape=(1, 8, 8)), data_shape=(1, 8, 8))


def test_the_kit_finds_it_by_name() -> None:
    assert installed().registry.get("energy", "example").load() is Example


def test_it_grows_linearly_far_out() -> None:
    energy, direction = Example(data_shape=(2,)).double(), torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    steps = torch.cat([energy(scale * direction) for scale in (1e6, 2e6, 3e6)]).diff()
    assert torch.allclose(steps[0], steps[1])
