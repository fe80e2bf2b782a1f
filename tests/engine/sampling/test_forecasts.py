"""Forecasts of chains that can't be run."""

from __future__ import annotations

import math

import pytest
import torch

from gebm_kit.engine.sampling.forecasts import MOST_STEPS, _independent, steps_for
from gebm_kit.engine.sampling.interfaces import Counts
from gebm_kit.engine.sampling.pilot import Pilot, Stays
from gebm_kit.engine.sampling.settings import SampleSettings
from gebm_kit.samplers.auto import Auto


@pytest.mark.parametrize("time", [1e12, 1e300, math.inf])
def test_steps_of_a_forecast_are_bounded(time: float) -> None:
    assert steps_for(time, SampleSettings(num_chains=10), 1.05) == MOST_STEPS
    assert steps_for(1.0, SampleSettings(num_chains=10, steps=30), 1.05) < 3000


def test_a_chain_that_never_leaves_has_a_forecast() -> None:
    weights = torch.randn(2000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pilot = Pilot(weights, potential=-weights, has_gradient=True, device="cpu", latent_dim=4, spent=Counts())
    stays = Stays(torch.ones(1, dtype=torch.float64), torch.full((1,), 1e-12, dtype=torch.float64))
    found = _independent("imh", {}, stays, 1, pilot, SampleSettings(num_samples=20, num_chains=10), Auto())
    assert found.settings.total_steps == MOST_STEPS
    assert found.effective < 1
