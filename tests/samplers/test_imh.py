"""Tests of independent Metropolis-Hastings beyond the properties that all samplers share."""

from __future__ import annotations

import math

import pytest
import torch

from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.samplers.imh import Imh
from gebm_kit.testing.statistics import ALPHA, confirmed, z_p_value
from gebm_kit.testing.targets import IdentityBase, LinearEnergy


@pytest.mark.parametrize("slope", [0.5, 2.0])
def test_mean_acceptance_is_the_known_one(slope: float) -> None:
    """With E(z) = c z the model is N(-c, 1). In equilibrium log alpha ~ N(-c², 2 c²), so the mean is 2 Phi(-c / sqrt 2)."""

    def failures(seed: int) -> dict[str, float]:
        generator, sampler = torch.Generator().manual_seed(seed), Imh()
        z = torch.randn(20_000, 1, generator=generator, dtype=torch.float64) - slope
        model = GEBM(IdentityBase(1), LinearEnergy(torch.tensor([slope], dtype=torch.float64)))
        with LatentPotential(model) as potential:
            _, info = sampler.step(sampler.init(z, potential, generator), potential, generator)
        error = float(info.acceptance.mean()) - math.erfc(slope / 2)
        p = z_p_value(error / float(info.acceptance.std()) * math.sqrt(len(z)))
        return {"mean": p} if p < ALPHA else {}

    assert not confirmed(failures)
