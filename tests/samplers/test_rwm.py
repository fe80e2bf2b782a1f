"""Tests of random-walk Metropolis beyond the properties that all samplers share."""

from __future__ import annotations

import math

import pytest

import gebm_kit as gk
from gebm_kit.testing.targets import prior_only

pytestmark = pytest.mark.filterwarnings("ignore:the chains have not mixed")


def test_step_size_is_that_of_the_theory() -> None:
    """On a standard normal in d dimensions h = l / sqrt(d) has the acceptance 2 Phi(-l/2), which is 0.25 for l = 2.3."""
    dim = 30
    found = gk.sample(
        prior_only(dim).model, "rwm", num_samples=500, num_chains=500, warmup=150, steps=40, inverse_temperature=0.0
    ).diagnostics  # fmt: skip
    assert found.acceptance == pytest.approx(0.25, abs=0.05)
    assert found.step_size == pytest.approx(2.3 / math.sqrt(dim), rel=0.15)
