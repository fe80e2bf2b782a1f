"""Forecasts of chains that can't be run."""

from __future__ import annotations

import math

import pytest
import torch

import gebm_kit as gk
from gebm_kit.core.interfaces import Energy
from gebm_kit.engine.sampling.forecasts import MOST_STEPS, steps_for
from gebm_kit.engine.sampling.settings import SampleSettings
from gebm_kit.testing.targets import IdentityBase


@pytest.mark.parametrize("time", [1e12, 1e300, math.inf])
def test_steps_of_a_forecast_are_bounded(time: float) -> None:
    assert steps_for(time, SampleSettings(num_chains=10), 1.05) == MOST_STEPS
    assert steps_for(1.0, SampleSettings(num_chains=10, steps=30), 1.05) < 3000


class Steep(Energy):
    """An energy by which one base draw has all the weight."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.slope * x[:, 0]


@pytest.mark.filterwarnings("ignore::gebm_kit.core.progress.GebmKitWarning")
@pytest.mark.parametrize("slope", [30.0, 1e3, 1e6])
def test_one_heavy_draw_ends_in_draws_or_a_clear_word(slope: float) -> None:
    draws = gk.sample(
        gk.GEBM(IdentityBase(2), Steep(slope)), "auto", num_samples=20, num_chains=10, warmup=5, steps=5, progress=False
    )
    assert draws.x.shape == (20, 2)
