"""Tests of the loss."""

import math

import torch
from torch import Tensor

from gebm_kit.core.interfaces import Base, Batch, Energy
from gebm_kit.core.model import GEBM
from gebm_kit.core.plugins import installed
from gebm_kit.scaffold.examples.loss import Example
from gebm_kit.testing import check_loss


class Line(Base):
    latent_dim, data_shape = 1, (1,)

    def forward(self, z: Tensor) -> Tensor:
        return z


class Flat(Energy):
    def forward(self, x: Tensor) -> Tensor:
        return 0 * x.flatten(1).sum(1)


def test_it_does_what_every_loss_must() -> None:
    check_loss(Example())
    check_loss(Example(data_weight=2.0))


def test_the_kit_finds_it_by_name() -> None:
    assert installed().registry.get("loss", "example").load() is Example


def test_an_energy_of_zero_can_tell_nothing_apart() -> None:
    x, y = torch.randn(2, 10, 1)
    terms = Example(data_weight=3.0).energy_loss(GEBM(Line(), Flat()), Batch(x, y, y))
    assert math.isclose(float(terms.loss), 4 * math.log(2), rel_tol=1e-6)
