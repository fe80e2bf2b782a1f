"""Tests of iterated sampling importance resampling beyond the properties that all samplers share."""

from __future__ import annotations

import functools

import pytest
import torch

from gebm_kit.core.errors import UsageError
from gebm_kit.samplers.isir import Isir
from gebm_kit.testing import check_sampler, invariance
from gebm_kit.testing.statistics import confirmed
from gebm_kit.testing.targets import linear_gaussian, prior_only, two_modes


def test_jumps_alone_are_exact_and_have_nothing_to_tune() -> None:
    sampler = Isir(num_candidates=20, num_local=0)
    assert sampler.tunable is None
    check_sampler(sampler, targets=(two_modes(),))
    assert not confirmed(functools.partial(invariance, Isir(2, 0), linear_gaussian()))


def test_moves_alone_tune_and_more_of_them_are_exact() -> None:
    assert not confirmed(functools.partial(invariance, Isir(2, 3), linear_gaussian()))


def test_a_flat_tilt_is_left_with_the_share_of_the_others() -> None:
    target, generator, sampler = prior_only(2), torch.Generator().manual_seed(0), Isir(5, 0)
    with target.potential() as potential:
        state = sampler.init(target.exact(5000, generator), potential, generator)
        new, info = sampler.step(state, potential, generator)
    torch.testing.assert_close(info.acceptance, torch.full_like(info.acceptance, 4 / 5))
    left = (new.position != state.position).any(1)
    assert torch.equal(left, info.accepted)
    assert abs(float(left.double().mean()) - 4 / 5) < 0.03


@pytest.mark.parametrize("arguments", [{"num_candidates": 1}, {"num_local": -1}, {"num_candidates": 2.5}])
def test_bad_arguments(arguments: dict) -> None:
    with pytest.raises(UsageError, match=next(iter(arguments))):
        Isir(**arguments)
