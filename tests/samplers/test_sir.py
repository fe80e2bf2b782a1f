"""Tests of sampling importance resampling beyond the properties that all samplers share."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import Tensor

from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Sampler
from gebm_kit.core.model import GEBM
from gebm_kit.core.resampling import multinomial
from gebm_kit.samplers.sir import Sir
from gebm_kit.testing import Target, check_sampler
from gebm_kit.testing.statistics import ALPHA, confirmed, disagreement, t_p_value
from gebm_kit.testing.targets import IdentityBase, LinearEnergy, banana, linear_gaussian, prior_only

CHAINS = 32


def tilted_line(slope: float = 1.0) -> Target:
    """Build ``E(z) = slope z`` in one dimension, with the posterior N(-slope, 1) and A = slope² / 2."""
    energy = LinearEnergy(torch.tensor([slope], dtype=torch.float64))
    return Target(
        "tilted-line", GEBM(IdentityBase(1), energy), 1.0, lambda n, g: torch.empty(n, 1), (), torch.zeros(1), 1.0
    )


def island(sampler: Sampler, target: Target, num_chains: int, seed: int) -> Tensor:
    """Return the draws of one pool, (C, Z)."""
    generator = torch.Generator().manual_seed(seed)
    with target.potential() as potential:
        z = torch.randn(num_chains, target.point.shape[0], generator=generator, dtype=torch.float64)
        state = sampler.init(z, potential, generator)
        while not bool(sampler.finished(state)):
            state, _ = sampler.step(state, potential, generator)
    return state.position


def bias_is_not_as_known(sampler: Sampler, num_candidates: int, seed: int) -> dict[str, float]:
    """Return the failed tests that the draws' mean on the tilted line is -1 + e / n to first order, for n candidates."""
    target, first = tilted_line(), 100_000 * seed
    means = [float(island(sampler, target, CHAINS, first + index).mean()) for index in range(1200)]
    n = CHAINS * num_candidates
    p = t_p_value(torch.tensor(means, dtype=torch.float64), -1 + math.e / n)
    return {"mean": p} if p < ALPHA else {}


@pytest.mark.parametrize("num_candidates", [2, 4])
def test_the_bias_falls_as_one_over_the_candidates(num_candidates: int) -> None:
    """The biases are e / 64 = 0.042 and e / 128 = 0.021, each measured to about 0.008."""
    assert not confirmed(functools.partial(bias_is_not_as_known, Sir(num_candidates), num_candidates))


def test_a_small_pool_is_seen_to_be_biased() -> None:
    """With 32 candidates the bias is 0.085 to first order; the test that larger pools pass tells it from e / 256 = 0.011."""
    assert confirmed(functools.partial(bias_is_not_as_known, Sir(1), 8))


@pytest.mark.parametrize("target", [banana(), linear_gaussian(stiffness=4.0)], ids=lambda t: t.name)
def test_draws_from_a_large_pool_are_draws_of_the_target(target: Target) -> None:
    assert not confirmed(lambda seed: disagreement(island(Sir(300), target, 500, seed), target))


def test_check_sampler_passes_it() -> None:
    check_sampler(Sir(20), targets=(banana(),))


def test_equal_weights_choose_among_all_candidates_alike() -> None:
    """With a flat tilt C choices among C candidates leave out a share (1 - 1/C)^C of them, and A = 0."""
    sampler, generator, target = Sir(1), torch.Generator().manual_seed(0), prior_only(2)
    with target.potential() as potential:
        z = target.exact(5000, generator)
        state = sampler.init(z, potential, generator)
    assert abs(len(state.position.unique(dim=0)) / 5000 - (1 - math.exp(-1))) < 0.03
    assert float(sampler.log_partition(state)) == pytest.approx(0, abs=1e-12)
    summary = sampler.summary(state)
    assert float(summary["candidates_ess"]) == pytest.approx(5000)
    assert float(summary["effective_size"]) == pytest.approx(2500)


def test_a_full_pool_stays_as_it_is() -> None:
    sampler, generator, target = Sir(3), torch.Generator().manual_seed(0), linear_gaussian()
    with target.potential() as potential:
        state = sampler.init(torch.randn(10, 4, generator=generator, dtype=torch.float64), potential, generator)
        for _ in range(2):
            assert not bool(sampler.finished(state))
            state, _ = sampler.step(state, potential, generator)
        assert bool(sampler.finished(state))
        again, info = sampler.step(state, potential, generator)
    for name, before, after in zip(state._fields, state, again, strict=True):
        assert torch.equal(before, after), name
    assert float(info.acceptance.max()) == 0
    assert len(sampler.log_weights(state)) == 30
    torch.testing.assert_close(sampler.log_partition(state), state.log_total - math.log(30))


@pytest.mark.parametrize("num_candidates", [0, 2.5, None])
def test_bad_arguments(num_candidates) -> None:
    with pytest.raises(UsageError, match="num_candidates"):
        Sir(num_candidates)


def test_weights_of_zero_are_never_chosen() -> None:
    generator = torch.Generator().manual_seed(0)
    log_weights = torch.tensor([-math.inf, 700.0, -math.inf, 702.0, -math.inf])
    picks = multinomial(log_weights, 10_000, generator)
    assert set(picks.tolist()) == {1, 3}
    assert float((picks == 3).double().mean()) == pytest.approx(1 / (1 + math.exp(-2)), abs=0.02)
    assert int(multinomial(torch.full((4,), -math.inf), 9, generator).max()) <= 3  # no positive weight: still an index
