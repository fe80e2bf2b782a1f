"""Tests of sampling importance resampling beyond the properties that all samplers share."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import Tensor

from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Potential, Sampler, ValueAndGrad
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
@pytest.mark.parametrize("at_once", [1, 3], ids=["small steps", "one step"])
def test_the_bias_falls_as_one_over_the_candidates(num_candidates: int, at_once: int) -> None:
    """The biases are e / 64 = 0.042 and e / 128 = 0.021, each measured to about 0.008."""
    sampler = Sir(num_candidates).in_blocks(CHAINS, at_once * CHAINS)
    assert not confirmed(functools.partial(bias_is_not_as_known, sampler, num_candidates))


def test_a_small_pool_is_seen_to_be_biased() -> None:
    """With 32 candidates the bias is 0.085 to first order; the test that larger pools pass tells it from e / 256 = 0.011."""
    assert confirmed(functools.partial(bias_is_not_as_known, Sir(1), 8))


@pytest.mark.parametrize("target", [banana(), linear_gaussian(stiffness=4.0)], ids=lambda t: t.name)
@pytest.mark.parametrize("rows", [500, 4000], ids=["small steps", "blocks"])
def test_draws_from_a_large_pool_are_draws_of_the_target(target: Target, rows: int) -> None:
    sampler = Sir(300).in_blocks(500, rows)
    assert not confirmed(lambda seed: disagreement(island(sampler, target, 500, seed), target))


@pytest.mark.parametrize("rows", [1, 90], ids=["small steps", "blocks"])
def test_check_sampler_passes_it(rows: int) -> None:
    check_sampler(Sir(20).in_blocks(12, rows), targets=(banana(),))


# --- steps of several chunks -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("num_candidates", "rows", "expected"),
    [
        (100, 100, 9),  # 11 steps of 9 leave nothing over; of 10 chunks the last step would waste one
        (6, 30, 3),
        (5, 30, 2),
        (12, 35, 3),
        (100, 10, 1),
        (100, 5, 1),  # fewer rows than chains: the potential evaluates each chunk in pieces
        (4, 10**6, 3),  # never more than the pool takes
        (1, 10**6, 1),
    ],
)
def test_the_size_of_a_step(num_candidates: int, rows: int, expected: int) -> None:
    sampler = Sir(num_candidates)
    assert sampler.in_blocks(10, rows).rows_a_chain == expected
    assert sampler.rows_a_chain == 1


def test_chunk_by_chunk_draws_stay_as_they_were() -> None:
    one = island(Sir(7), banana(), 16, 3)
    assert torch.equal(one, island(Sir(7).in_blocks(16, 16), banana(), 16, 3))


@pytest.mark.parametrize("num_candidates", [1, 2, 6, 7, 8])
def test_a_pool_of_blocks_holds_exactly_its_candidates(num_candidates: int) -> None:
    """The last step may draw more than the pool takes. The rest has no weight, is not drawn and is not counted."""
    sampler, generator, target = Sir(num_candidates), torch.Generator().manual_seed(0), linear_gaussian()
    sampler = sampler.in_blocks(10, 30)
    with target.potential() as potential:
        state = sampler.init(torch.randn(10, 4, generator=generator, dtype=torch.float64), potential, generator)
        steps = 0
        while not bool(sampler.finished(state)):
            state, info = sampler.step(state, potential, generator)
            assert info.forward_evals == sampler.rows_a_chain
            steps += 1
        again, _ = sampler.step(state, potential, generator)
    assert steps == -(-(num_candidates - 1) // sampler.rows_a_chain)
    assert int(state.chunks) == num_candidates
    log_weights = sampler.log_weights(state)
    assert log_weights.shape == (10 * num_candidates,)
    assert bool(log_weights.isfinite().all())
    assert not bool(state.log_weights[num_candidates:].isfinite().any())
    torch.testing.assert_close(sampler.log_partition(state), log_weights.logsumexp(0) - math.log(10 * num_candidates))
    torch.testing.assert_close(state.log_total, log_weights.logsumexp(0))
    for name, before, after in zip(state._fields, state, again, strict=True):
        assert torch.equal(before, after), name
    assert all(bool((-state.value[k] == log_weights).any()) for k in range(10))  # every draw is one of the pool


class Ledge(Potential):
    """A potential that is not finite at candidates from the ``first`` of each evaluation on."""

    def __init__(self, first: int) -> None:
        self.first = first

    def value(self, z: Tensor) -> Tensor:
        beyond = torch.arange(len(z)) >= self.first
        return torch.where(beyond, math.inf, 0.5 * z.square().sum(1))

    def value_and_grad(self, z: Tensor) -> ValueAndGrad:
        raise NotImplementedError


def test_candidates_left_over_do_not_diverge() -> None:
    """Of the last step's three chunks the pool takes two; the third has no finite energy, and nobody sees it."""
    sampler, generator = Sir(6).in_blocks(10, 30), torch.Generator().manual_seed(0)
    state = sampler.init(torch.randn(10, 2, generator=generator), Ledge(20), generator)
    state, info = sampler.step(state, Ledge(20), generator)
    assert bool(info.diverged.all())
    state, info = sampler.step(state, Ledge(20), generator)
    assert not bool(info.diverged.any())
    assert int(sampler.log_weights(state).isinf().sum()) == 10  # the chunk of the first step


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
