"""Tests of elliptical slice sampling beyond the properties that all samplers share."""

from __future__ import annotations

import functools
import math

import pytest
import torch

from gebm_kit.core.errors import UsageError
from gebm_kit.samplers.elliptical import Elliptical
from gebm_kit.testing import invariance
from gebm_kit.testing.statistics import confirmed
from gebm_kit.testing.targets import linear_gaussian


@pytest.mark.parametrize("bracket", [0.5, 2 * math.pi])
@pytest.mark.parametrize("rounds", [1, 3])
def test_exact_whatever_the_bracket_and_however_short_the_loop(rounds: int, bracket: float) -> None:
    """It is exact even when many chains run out of rounds, as the first assertion checks."""
    target, sampler = linear_gaussian(), Elliptical(bracket, rounds)
    generator = torch.Generator().manual_seed(0)
    with target.potential() as potential:
        state = sampler.init(target.exact(2000, generator), potential, generator)
        _, info = sampler.step(state, potential, generator)
    assert 0.02 < float(info.acceptance.mean()) < 0.95
    assert not confirmed(functools.partial(invariance, sampler, target, tune=False))


def test_a_point_beside_the_current_one_is_on_the_slice() -> None:
    """With a vanishing bracket every chain moves in the first round, by a tiny distance."""
    target, sampler = linear_gaussian(), Elliptical(1e-6, 1)
    generator = torch.Generator().manual_seed(0)
    with target.potential() as potential:
        before = sampler.init(target.exact(500, generator), potential, generator)
        after, info = sampler.step(before, potential, generator)
    assert float(info.acceptance.mean()) > 0.99
    assert 0 < float((after.position - before.position).abs().max()) < 1e-4


@pytest.mark.parametrize("arguments", [{"bracket": 0.0}, {"bracket": 7.0}, {"max_evaluations": 0}])
def test_bad_arguments(arguments: dict) -> None:
    with pytest.raises(UsageError, match=next(iter(arguments))):
        Elliptical(**arguments)
