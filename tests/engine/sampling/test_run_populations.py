"""Running populations and refiners: islands, what is put together from them, and what is said about them."""

from __future__ import annotations

import json
import math
import warnings
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import gebm_kit as gk
from gebm_kit.core.errors import RunFailed, UsageError
from gebm_kit.core.interfaces import Info, Sampler
from gebm_kit.core.progress import GebmKitWarning, ignore
from gebm_kit.engine.evaluation.draw_sets import gebm_sets
from gebm_kit.engine.sampling import run_populations as populations
from gebm_kit.engine.sampling.contract import ROWS
from gebm_kit.engine.sampling.settings import SampleSettings
from gebm_kit.samplers.sir import Sir
from gebm_kit.testing.targets import IdentityBase, WalledEnergy, linear_gaussian, tilted_uniform, two_modes

TARGET = linear_gaussian(stiffness=4.0)
BETA = TARGET.inverse_temperature


class CountdownState(NamedTuple):
    position: Tensor
    value: Tensor
    left: Tensor


class Countdown(Sampler):
    """Stays where it starts, for three steps; its chains are not coupled."""

    family = "refiner"
    exact = False
    min_chains = 16
    counted, share = 5, 0.25

    def init(self, z, potential, generator):
        return CountdownState(z, potential.value(z), torch.tensor(3))

    def step(self, state, potential, generator):
        ones = torch.ones_like(state.value)
        return state._replace(left=state.left - 1), Info(ones / 2, ones > 0, ones < 0, 0)

    def finished(self, state):
        return state.left == 0

    def summary(self, state):
        return {"counted": torch.tensor(self.counted), "share": torch.tensor(self.share)}


def sample(sampler: Sampler, **settings):
    return gk.sample(
        TARGET.model, sampler, inverse_temperature=BETA, **{"num_samples": 250, "num_chains": 100, **settings}
    )


def test_draws_come_island_by_island() -> None:
    draws = sample(Sir(50))
    assert draws.z.shape == (250, 4)
    assert draws.chain.tolist() == [0] * 100 + [1] * 100 + [2] * 50  # particles of an island depend on each other
    found = draws.diagnostics
    assert (found.num_chains, found.warmup_steps, found.steps) == (100, 0, 3 * 7)  # steps of 7 x 100 candidates
    assert found.forward_evals == 3 * 100 * 50
    assert found.details["islands"] == 3
    assert 0 < found.ess_min < 250
    assert math.isnan(found.rhat_max)
    assert abs(found.log_partition - TARGET.log_partition) < 5 * found.log_partition_se
    assert 0 < found.log_partition_se < 0.1
    assert found.pareto_k < 0.7
    with torch.no_grad():
        torch.testing.assert_close(draws.x, TARGET.model.base(draws.z))


@pytest.mark.parametrize(
    ("block_size", "num_chains", "expected"), [(None, 100, 700), (250, 100, 200), (50, 100, 50), (1, 3, 1)]
)
def test_candidates_are_evaluated_in_full_blocks(block_size: int | None, num_chains: int, expected: int) -> None:
    """Steps take as many candidates as fit in a block, and never more: a block is what the memory allows."""
    rows: list[int] = []
    hook = TARGET.model.base.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    try:
        draws = sample(Sir(50), num_samples=2 * num_chains, num_chains=num_chains, block_size=block_size)
    finally:
        hook.remove()
    assert 2 * 50 * num_chains <= draws.diagnostics.forward_evals <= 1.02 * 2 * 50 * num_chains
    assert draws.diagnostics.num_chains == num_chains
    assert max(rows) == max(expected, ROWS)
    most = max(set(rows), key=rows.count)
    assert most == expected


def test_an_island_does_not_depend_on_how_many_there_are() -> None:
    few, many = sample(Sir(5), num_samples=100), sample(Sir(5), num_samples=250)
    assert torch.equal(few.z, many.z[:100])
    assert not torch.equal(few.z, many.z[100:200])
    assert not torch.equal(few.z, sample(Sir(5), num_samples=100, seed=1).z)


def test_one_island_takes_its_error_from_its_weights() -> None:
    found = sample(Sir(100), num_samples=200, num_chains=200).diagnostics
    assert abs(found.log_partition - TARGET.log_partition) < 5 * found.log_partition_se
    assert 0 < found.log_partition_se < 0.1


def test_priors_come_in_the_bases_coordinates() -> None:
    draws = gk.sample(tilted_uniform().model, Sir(50), num_samples=2000, num_chains=2000)
    assert float(draws.z.abs().max()) <= 1
    assert float(draws.z.mean()) == pytest.approx(1 / 2 - 1 / math.tanh(2), abs=0.05)


def test_counts_add_up_and_shares_are_averaged() -> None:
    draws = sample(Countdown(), num_samples=50, num_chains=20)
    found = draws.diagnostics
    assert draws.chain.tolist() == list(range(50))  # these particles have nothing to do with each other
    assert found.details == {"islands": 3, "counted": 15, "share": 0.25}
    assert (found.steps, found.acceptance) == (9, 0.5)
    written = json.loads(json.dumps(found.as_dict()))
    assert written["ess_min"] is written["log_partition"] is written["pareto_k"] is None
    assert written["details"]["counted"] == 15


def test_an_island_has_the_particles_that_its_sampler_needs() -> None:
    draws = sample(Countdown(), num_samples=3)
    assert draws.diagnostics.num_chains == 16
    assert draws.z.shape == (3, 4)
    with pytest.raises(UsageError, match="needs at least 16 chains, num_chains is 3"):
        sample(Countdown(), num_samples=20, num_chains=3)


def test_warm_up_steps_and_thinning_change_nothing() -> None:
    assert torch.equal(sample(Sir(5)).z, sample(Sir(5), warmup=1, steps=7, thin=3).z)


def test_points_without_an_energy_have_weight_zero() -> None:
    """The log-partition counts them: E[exp(-|x|²/2); x_1 <= 1] = Phi(sqrt 2) / 2."""
    model = gk.GEBM(IdentityBase(2), WalledEnergy(math.nan))
    with pytest.warns(GebmKitWarning, match="energy that is not finite"):
        draws = gk.sample(model, Sir(100), num_samples=400, num_chains=200)
    found = draws.diagnostics
    assert float(draws.z[:, 0].max()) <= 1
    expected = math.log(0.5 * (1 + math.erf(1)) / 2)
    assert abs(found.log_partition - expected) < 5 * found.log_partition_se + 0.01
    assert found.divergences > 0


def test_no_energy_anywhere_is_refused() -> None:
    model = gk.GEBM(IdentityBase(2), WalledEnergy(math.nan, curvature=math.nan))
    with pytest.raises(UsageError, match="not finite at any of 50 points"):
        gk.sample(model, Sir(5), num_samples=50)


def test_a_population_that_never_finishes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(populations, "MAX_STEPS", 2)
    with pytest.raises(RunFailed, match="not finished after 2 steps"):
        sample(Countdown())


def test_heavy_weights_are_warned_about() -> None:
    with pytest.warns(GebmKitWarning, match="Pareto k"):
        found = gk.sample(two_modes(distance=12.0).model, Sir(20), num_samples=100).diagnostics
    assert found.pareto_k > 0.7


def test_nothing_is_said_about_good_draws() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample(Sir(50))


def test_each_set_of_an_evaluation_is_a_run_of_its_own() -> None:
    for sampler in (Sir(5), Countdown()):
        settings = SampleSettings(num_chains=20, inverse_temperature=BETA)
        sets = gebm_sets(TARGET.model, sampler, settings, 50, 3, torch.device("cpu"), ignore)
        assert [tuple(x.shape) for x in sets.sets] == [(50, 5)] * 3
        assert len(torch.cat(sets.sets).unique(dim=0)) > 100
        assert sets.diagnostics is not None
        assert sets.diagnostics.details["islands"] == 3


def test_kept_weights_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(populations, "MAX_WEIGHTS", 1200)
    lengths: list[int] = []
    monkeypatch.setattr(populations, "pareto_k", lambda weights: lengths.append(len(weights)) or 0.0)
    sample(Sir(5))
    assert lengths == [1000]  # two islands of 500
