"""Tests of parallel tempering beyond the properties that all samplers share."""

from __future__ import annotations

import functools
import itertools
import math

import pytest
import torch
from torch import Tensor

from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Potential, Sampler
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.tilt import tilt_and_grad
from gebm_kit.engine.sampling.convergence import nested_rhat, rhat
from gebm_kit.engine.sampling.diagnostics import NESTED_RHAT_LIMIT, RHAT_LIMIT
from gebm_kit.engine.sampling.warmup import warm_up
from gebm_kit.samplers.mala import Mala
from gebm_kit.samplers.pt import Pt, PtState
from gebm_kit.samplers.pt_ladder import equalised
from gebm_kit.testing import check_sampler, invariance
from gebm_kit.testing.statistics import ALPHA, confirmed, holm, ks_p_value, z_p_value
from gebm_kit.testing.targets import IdentityBase, Target, WalledEnergy, linear_gaussian, prior_only, two_modes


def _run(
    sampler: Sampler, z: Tensor, potential: Potential, steps: int, warmup: int = 0, seed: int = 0
) -> tuple[Sampler, PtState, Tensor]:
    """Return the tuned sampler, its last state, and the trace of positions (steps, C, Z)."""
    generator = torch.Generator().manual_seed(seed)
    state = sampler.init(z, potential, generator)
    if warmup:
        warm = warm_up(sampler, state, potential, generator, warmup)
        sampler, state = warm.sampler, warm.state
    trace = []
    for _ in range(steps):
        state, _ = sampler.step(state, potential, generator)
        trace.append(state.position)
    return sampler, state, torch.stack(trace)


def _rates(state: PtState) -> Tensor:
    return state.swaps.sum(0) / state.steps.sum()


# --- swaps ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rungs", [(0.0, 1.0), (0.3, 0.8)])
def test_swaps_between_two_levels_are_in_detailed_balance(rungs: tuple[float, float]) -> None:
    """p_i(a) p_j(b) P(swap | a, b) = p_i(b) p_j(a) P(swap | b, a) for every pair of tilts."""
    sampler = Pt(2).tuned(ladder=rungs)
    pairs = torch.tensor(list(itertools.product([-1.0, 0.0, 0.7, 3.0], repeat=2)), dtype=torch.float64)
    weight = torch.exp(-pairs @ torch.tensor(rungs, dtype=torch.float64))
    mirrored = torch.exp(-pairs.flip(1) @ torch.tensor(rungs, dtype=torch.float64))
    order, rate = sampler.swap(pairs, torch.zeros(len(pairs), 1, dtype=torch.float64))
    _, back = sampler.swap(pairs.flip(1), torch.zeros(len(pairs), 1, dtype=torch.float64))
    torch.testing.assert_close(weight * rate[:, 0], mirrored * back[:, 0])
    assert bool((order == torch.tensor([1, 0])).all())  # with a uniform of 0 all pairs swap, above their rate none does
    order, _ = sampler.swap(pairs, torch.nextafter(rate, torch.full_like(rate, 2)))
    assert bool((order == torch.tensor([0, 1])).all())
    assert 0 < float(rate.min()) < 0.5


def test_swaps_keep_the_law_of_every_rung() -> None:
    """The tilts on the rung lambda are N(-lambda, 1), as for a standard normal with the tilt z."""
    sampler = Pt(5).tuned(ladder=(0.0, 0.2, 0.9, 1.7, 4.0))
    rungs = torch.tensor(sampler.ladder, dtype=torch.float64)

    def failures(seed: int) -> dict[str, float]:
        generator = torch.Generator().manual_seed(seed)
        tilts = torch.randn(20_000, 5, generator=generator, dtype=torch.float64) - rungs
        order, rates = sampler.swap(tilts, torch.rand(20_000, 4, generator=generator, dtype=torch.float64))
        assert float(rates.mean(0).max()) > 0.8
        assert float(rates.mean(0).min()) < 0.2
        scores = (tilts.gather(1, order) + rungs).unbind(1)
        normal = torch.distributions.Normal(0.0, 1.0).cdf
        return holm(
            {str(i): ks_p_value(score, lambda x: normal(torch.as_tensor(x)).numpy()) for i, score in enumerate(scores)}
        )

    assert not confirmed(failures)


def test_where_all_swaps_are_accepted_replicas_are_carried_on() -> None:
    """At beta = 0 each step carries the prior draw and those that follow it up two rungs, and the others down two."""
    sampler = Pt(7)
    order, _ = sampler.swap(torch.zeros(1, 7), torch.full((1, 6), 0.99))
    assert order.tolist() == [[1, 3, 0, 5, 2, 6, 4]]
    target = prior_only()
    with target.potential() as potential:
        sampler, state, _ = _run(sampler, target.exact(10, torch.Generator().manual_seed(0)), potential, 12)
    assert {name: float(value) for name, value in sampler.summary(state).items()} == {
        "swap_rate_min": 1.0,
        "swap_rate_mean": 1.0,
        "communication_barrier": 0.0,
        "restarts": 12 - 2,  # a draw goes up to the rungs 2, 4 and 6, the last, so it arrives in its third step
    }
    assert float(sampler.log_partition(state)) == pytest.approx(0.0, abs=1e-12)
    assert torch.equal(state.steps, torch.full_like(state.steps, 12))


def test_what_is_cached_moves_with_the_replicas() -> None:
    target = two_modes()
    with target.potential() as potential:
        _, state, _ = _run(Pt(), target.exact(50, torch.Generator().manual_seed(0)), potential, 15)
        value, grad = tilt_and_grad(potential, state.replicas.flatten(0, 1))
    torch.testing.assert_close(state.tilts.flatten(), value)
    torch.testing.assert_close(state.grads.flatten(0, 1), grad)
    assert torch.equal(state.position, state.replicas[:, -1])
    assert torch.equal(state.value, state.tilts[:, -1])


# --- chains --------------------------------------------------------------------------------------------------------------


def test_modes_far_apart_get_their_share_where_mala_fails_and_the_diagnostics_say_so() -> None:
    """Two modes 12 apart have half of the mass each, and four fifths of the chains start in one of them."""
    target, num_chains = two_modes(distance=12.0), 300
    start = target.point.expand(num_chains, -1).clone()
    start[: num_chains // 5] *= -1

    def share(trace: Tensor) -> float:
        return float((trace[-1, :, 0] > 0).double().mean())

    def found(trace: Tensor) -> tuple[float, float]:
        return float(rhat(trace[50:]).max()), float(nested_rhat(trace[50:], start).max())

    with target.potential() as potential:
        *_, mala = _run(Mala(), start, potential, 300, warmup=60)
        assert share(mala) == 0.8  # not one chain has crossed
        plain, nested = found(mala)
        assert plain > RHAT_LIMIT + 0.2
        assert nested > NESTED_RHAT_LIMIT + 0.2

        def failures(seed: int) -> dict[str, float]:
            _, state, pt = _run(Pt(), start, potential, 300, warmup=60, seed=seed)
            plain, nested = found(pt)
            assert plain < RHAT_LIMIT
            assert nested < NESTED_RHAT_LIMIT
            assert float(state.restarts.mean()) > 10
            p = z_p_value((share(pt) - 0.5) / math.sqrt(0.25 / num_chains))
            return {"share": p} if p < ALPHA else {}

        assert not confirmed(failures)


@pytest.mark.parametrize("sampler", [Pt(2), Pt(3, num_leapfrog=1), Pt(4, num_leapfrog=3)], ids=["2", "3", "4"])
def test_exact_with_few_rungs(sampler: Pt) -> None:
    assert not confirmed(functools.partial(invariance, sampler, linear_gaussian(), steps=60))


def test_two_rungs_conform() -> None:
    check_sampler(Pt(2), targets=())


def test_exact_on_a_potential_that_is_not_split() -> None:
    assert not confirmed(functools.partial(invariance, Pt(), linear_gaussian(), plain=True))


def test_replicas_do_not_start_where_the_tilt_is_not_finite() -> None:
    start = torch.full((40, 2), 0.9, dtype=torch.float64)
    with LatentPotential(GEBM(IdentityBase(2), WalledEnergy(math.nan))) as potential:
        state = Pt().init(start, potential, torch.Generator().manual_seed(0))
    assert bool(torch.isfinite(state.tilts).all())
    beyond = (state.replicas[:, :-1] == 0.9).all(2).double().mean()
    assert 0.05 < float(beyond) < 0.3  # the wall has 16 % of the prior


# --- warm-up and what comes with the draws -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned() -> tuple[Target, Pt, PtState]:
    """Run pt on the linear-Gaussian target from prior draws."""
    target = linear_gaussian()
    z = torch.randn(100, target.model.latent_dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with target.potential() as potential:
        sampler, state, _ = _run(Pt(), z, potential, 100, warmup=150)
    return target, sampler, state


def test_warm_up_makes_all_pairs_swap_equally_often(tuned: tuple[Target, Pt, PtState]) -> None:
    target, sampler, state = tuned
    with target.potential() as potential:
        _, raw, _ = _run(Pt(), state.position, potential, 100)
    assert float(_rates(raw).max() - _rates(raw).min()) > 0.1
    assert float(_rates(state).max() - _rates(state).min()) < 0.03
    assert sampler.ladder[0] == 0
    assert sampler.ladder[-1] == 1
    assert all(low < high for low, high in itertools.pairwise(sampler.ladder))
    assert not sampler.adapting
    assert int(state.steps[0]) == 100  # warm-up steps are not counted
    summary = sampler.summary(state)
    assert float(summary["communication_barrier"]) == pytest.approx(float((1 - _rates(state)).sum()))


def test_step_sizes_are_tuned_on_every_rung() -> None:
    """On a stiff target the rungs of the upper half have an acceptance of 0.7 and decreasing steps; below, h is capped."""
    target = linear_gaussian(16, stiffness=400.0)
    generator = torch.Generator().manual_seed(0)
    with target.potential() as potential:
        z = torch.randn(50, 16, generator=generator, dtype=torch.float64)
        sampler, state, _ = _run(Pt(), z, potential, 1, warmup=200)
        accepted = torch.zeros(9, dtype=torch.float64)
        for _ in range(40):
            moved = sampler.local_moves(state, potential, generator)
            accepted += moved.acceptance.mean(0) / 40
            state, _ = sampler.step(state, potential, generator)
    steps = (*sampler.step_sizes, sampler.step_size)
    assert steps[0] > 1.5 * steps[-1]
    capped = torch.tensor([h > 0.95 * sampler.longest_step for h in steps])
    assert not bool(capped[4:].any())
    assert float((accepted[~capped] - 0.7).abs().max()) < 0.1


def test_log_partition_by_stepping_stones() -> None:
    """The mean over eight short runs agrees with the known A within its error."""
    target = linear_gaussian()

    def failures(seed: int) -> dict[str, float]:
        estimates = []
        with target.potential() as potential:
            for run in range(10 * seed, 10 * seed + 8):
                z = target.exact(50, torch.Generator().manual_seed(run))
                sampler, state, _ = _run(Pt(), z, potential, 60, warmup=60, seed=run)
                estimates.append(float(sampler.log_partition(state)))
        found = torch.tensor(estimates, dtype=torch.float64)
        error = float(found.std()) / math.sqrt(len(found))
        assert error < 0.03
        p = math.nan if error == 0 else z_p_value((float(found.mean()) - target.log_partition) / error)
        return {} if p > 1e-6 else {"mean": p}  # t has 7 degrees of freedom and long tails: |t| > 4.9

    assert not confirmed(failures)


def test_nothing_is_known_before_the_first_step() -> None:
    target, sampler = linear_gaussian(), Pt(3)
    with target.potential() as potential:
        state = sampler.init(target.exact(4, torch.Generator()), potential, torch.Generator())
    assert math.isnan(float(sampler.log_partition(state)))
    assert math.isnan(float(sampler.summary(state)["swap_rate_min"]))


def test_a_ladder_is_equalised_by_inverting_the_barrier() -> None:
    assert equalised((0.0, 0.5, 1.0), (0.2, 0.2)) == pytest.approx((0.0, 0.5, 1.0))
    assert equalised((0.0, 0.5, 1.0), (0.6, 0.2)) == pytest.approx((0.0, 1 / 3, 1.0))
    assert equalised((0.0, 0.1, 0.5, 1.0), (0.0, 0.0, 0.0)) == pytest.approx((0.0, 0.1, 0.5, 1.0))
    assert equalised((0.0, 1.0), (0.7,)) == (0.0, 1.0)


@pytest.mark.parametrize("arguments", [{"num_rungs": 1}, {"num_rungs": 2.5}, {"num_leapfrog": 0}, {"jitter": 1.0}])
def test_bad_arguments(arguments: dict) -> None:
    with pytest.raises(UsageError, match=next(iter(arguments))):
        Pt(**arguments)
