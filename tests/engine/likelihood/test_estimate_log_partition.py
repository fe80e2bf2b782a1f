"""Log-partition: frozen populations, bridge sampling, and the choice between methods."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import warnings

import pytest
import torch
from torch import Tensor

from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Base, Energy
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.progress import GebmKitWarning
from gebm_kit.core.resampling import systematic
from gebm_kit.core.seeds import stream
from gebm_kit.engine.likelihood.annealing import Annealed, anneal, learn_ladder
from gebm_kit.engine.likelihood.bridge import bridge
from gebm_kit.engine.likelihood.estimate_log_partition import Method, estimate_log_partition
from gebm_kit.engine.likelihood.log_partition import LogPartition
from gebm_kit.engine.likelihood.model_fit import base_tilts
from gebm_kit.samplers.smc import Smc
from gebm_kit.testing.host_sync import forbid_host_sync
from gebm_kit.testing.statistics import ALPHA, confirmed, t_p_value
from gebm_kit.testing.targets import IdentityBase, Target, WalledEnergy, banana, linear_gaussian, two_modes

NARROW = linear_gaussian(4, stiffness=150.0)


def plan_of(potential: LatentPotential, seed: int, particles: int = 128) -> Tensor:
    return learn_ladder(Smc(final_rounds=0), potential, particles, stream(seed, "pilot"), torch.float64)


def estimated(target: Target, seed: int = 0, method: Method = "auto", **rest: object) -> LogPartition:
    generator = stream(seed, "test")
    with target.potential() as potential:
        first, second = base_tilts(potential, generator, torch.float64)
        return estimate_log_partition(
            potential, first, second, generator, torch.float64, method=method, **rest  # type: ignore[arg-type]
        )  # fmt: skip


# --- populations on a frozen ladder ----------------------------------------------------------------------------------


def z_hat_is_biased(seed: int, sampler: Smc, groups: int = 1500) -> dict[str, float]:
    """Run a t-test of the mean of Z_r / Z over populations of 16 particles on a pilot's ladder."""
    target = linear_gaussian(2, stiffness=10.0)
    with target.potential() as potential:
        climber = sampler.frozen(plan_of(potential, seed, 64), groups)
        generator = stream(seed, "replicates")
        z = torch.randn(groups * 16, 2, generator=generator, dtype=torch.float64)
        state = climber.init(z, potential, generator)
        while not bool(climber.finished(state)):
            state, _ = climber.step(state, potential, generator)
        shares = (climber.log_partitions(state) - target.log_partition).exp()
    p = t_p_value(shares, 1.0)
    return {"partition": p} if p < ALPHA else {}


QUICK = {"num_moves": 1, "num_leapfrog": 2, "final_rounds": 0}


class MovesFirst(Smc):
    """A wrong twin, which weights particles after they moved to the next level."""

    def step(self, state, potential, generator):
        new, info = super().step(state, potential, generator)
        blocks = (-(new.level - state.level) * new.value).unflatten(0, (self.groups, -1))
        return new._replace(log_mass=state.log_mass + blocks.logsumexp(1) - math.log(blocks.shape[1])), info


def test_z_is_unbiased_on_the_ladder_of_a_pilot() -> None:
    assert not confirmed(functools.partial(z_hat_is_biased, sampler=Smc(**QUICK)))
    assert confirmed(functools.partial(z_hat_is_biased, sampler=MovesFirst(**QUICK)))


def test_the_plan_is_the_pilots() -> None:
    with NARROW.potential() as potential:
        plan = plan_of(potential, 0)
        levels, steps, scales = plan[:, 0], plan[:, 1], plan[:, 2:]
        assert plan.shape[1] == 2 + 4
        assert float(levels[-1]) == 1.0
        assert bool((levels.diff() > 0).all())
        assert bool(((steps > 0) & (steps < 0.2)).all())
        # The preconditioner ends at the posterior's spread: its precisions go from about 1 to about 150.
        spread = NARROW.exact(20_000, stream(0, "exact")).std(0)
        assert float((scales[-1] / spread).log().abs().max()) < 0.5
        climber = Smc(**QUICK).frozen(plan, 3)
        generator = stream(1, "climb")
        state = climber.init(torch.randn(48, 4, generator=generator, dtype=torch.float64), potential, generator)
        for level, step in zip(levels, steps, strict=True):
            state, _ = climber.step(state, potential, generator)
            assert float(state.level) == float(level)
            assert float(state.step_size) in (float(step), pytest.approx(math.pi / 2 / 2))
        assert bool(climber.finished(state))
        assert climber.log_partitions(state).shape == (3,)


def test_populations_of_a_batch_never_mix() -> None:
    """Blocks are resampled separately: a block of almost no weight keeps its rows."""
    generator = stream(0, "blocks")
    weights = torch.rand(4, 500, generator=generator, dtype=torch.float64).log() * 3
    weights[1] -= 1000.0
    picks = systematic(weights.flatten(), generator, 4).unflatten(0, (4, -1))
    for block in range(4):
        assert int(picks[block].min()) >= 500 * block
        assert int(picks[block].max()) < 500 * (block + 1)
        counts = (picks[block] - 500 * block).bincount(minlength=500)
        expected = 500 * weights[block].softmax(0)
        assert bool(((counts - expected).abs() <= 1 + 1e-9).all())
    with NARROW.potential() as potential:
        climber = Smc(**QUICK).frozen(plan_of(potential, 0), 5)
        state = climber.init(torch.randn(100, 4, generator=generator, dtype=torch.float64), potential, generator)
        while not bool(climber.finished(state)):
            state, _ = climber.step(state, potential, generator)
        block = torch.arange(100) // 20
        assert torch.equal(state.ancestor // 20, block)


def test_climbing_never_waits_for_the_device() -> None:
    with NARROW.potential() as potential:
        climber, generator = Smc(**QUICK).frozen(plan_of(potential, 0), 4), stream(0, "climb")
        z = torch.randn(64, 4, generator=generator, dtype=torch.float64)
        with forbid_host_sync():
            state = climber.init(z, potential, generator)
            for _ in range(3):
                state, _ = climber.step(state, potential, generator)


def test_annealed_replicates_find_log_z() -> None:
    def disagrees(seed: int) -> dict[str, float]:
        with NARROW.potential() as potential:
            found = anneal(potential, stream(seed, "anneal"), torch.float64)
        assert found.log_z.shape == (10,)
        assert 0 < found.se < 0.1
        assert found.acceptance > 0.5
        p = t_p_value((found.log_z - NARROW.log_partition).exp(), 1.0)
        return {"log z": p} if p < ALPHA else {}

    assert not confirmed(disagrees)


def test_more_particles_where_replicates_are_spread() -> None:
    """With few particles on a long ladder, the replicates differ too much, so more particles are tried."""
    with NARROW.potential() as potential:
        few = anneal(potential, stream(0, "few"), torch.float64, particles=16)
    assert few.tilt.shape[1] > 16
    assert few.spread <= 0.3


def test_error_of_the_mean_z() -> None:
    """It is the jackknife's error for nearly equal replicates; where one outweighs the others, the logarithms' spread."""
    near = torch.tensor([0.0, 0.1, -0.1, 0.05, -0.05], dtype=torch.float64)
    found = Annealed(near, torch.zeros(5, 1), 5.0, 1, 1.0)
    shares = near.exp()
    assert found.se == pytest.approx(float(shares.std() / shares.mean()) / math.sqrt(5), rel=0.02)
    assert found.value == pytest.approx(math.log(float(shares.mean())))
    low, high = found.interval
    assert (low, high) == pytest.approx((found.value - 2.776445 * found.se, found.value + 2.776445 * found.se))
    far = dataclasses.replace(found, log_z=torch.tensor([0.0, 0.0, 0.0, 0.0, 20.0], dtype=torch.float64))
    assert far.se >= float(far.log_z.std()) / math.sqrt(5)


# --- bridge ----------------------------------------------------------------------------------------------------------


def quadrature(energy: Energy) -> float:
    """Compute log Z of an energy over a two-dimensional standard normal, on a grid."""
    axis = torch.linspace(-9, 9, 1501, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        total = torch.logsumexp(-energy(grid) - 0.5 * grid.square().sum(1), 0)
    return float(total) + 2 * math.log(float(axis[1] - axis[0])) - math.log(2 * math.pi)


@pytest.mark.parametrize("target", [banana(), two_modes(), two_modes(2, 5.0)], ids=["banana", "modes", "far-modes"])
@pytest.mark.parametrize("effective", [None, 1000.0])
def test_the_bridge_agrees_with_quadrature(target: Target, effective: float | None) -> None:
    truth = quadrature(target.model.double().energy)
    assert truth == pytest.approx(0.0, abs=1e-4)  # these energies are normalised, so this checks the grid

    def disagrees(seed: int) -> dict[str, float]:
        generator = stream(seed, "bridge")
        with target.potential() as potential:
            base = potential.tilt(torch.randn(20_000, 2, generator=generator, dtype=torch.float64))
            model = potential.tilt(target.exact(5000, generator))
        found = bridge(base.unflatten(0, (20, -1)), model.unflatten(0, (20, -1)), effective)
        assert 0 < found.se < 0.1
        assert found.overlap > 100
        assert found.forward < found.value + 0.1
        p = math.erfc(abs(found.value - truth) / found.se / math.sqrt(2))
        return {"bridge": p} if p < ALPHA else {}

    assert not confirmed(disagrees)


def test_the_bridges_error_is_that_of_repeats() -> None:
    target, values, errors = two_modes(2, 5.0), [], []
    with target.potential() as potential:
        for seed in range(100):
            generator = stream(seed, "repeats")
            base = potential.tilt(torch.randn(2000, 2, generator=generator, dtype=torch.float64))
            found = bridge(
                base.unflatten(0, (10, -1)), potential.tilt(target.exact(1000, generator)).unflatten(0, (10, -1))
            )
            values.append(found.value)
            errors.append(found.se)
    spread = float(torch.tensor(values).std())
    assert float(torch.tensor(errors).mean()) == pytest.approx(spread, rel=0.35)  # a spread of 100 values: error 7 %


class OnIdentity(Energy):
    """``E(x) = a . x`` as an energy on codes of the identity."""

    def bind(self, base: Base) -> None:
        pass

    def encode(self, x: Tensor) -> Tensor:
        return x

    def of_codes(self, z: Tensor) -> Tensor:
        return 0.3 * z.sum(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.of_codes(x)


@pytest.mark.parametrize(("method", "used"), [("auto", "smc"), ("importance-sampling", "importance-sampling")])
def test_an_energy_on_codes_is_annealed_even_where_weights_would_do(method: Method, used: str) -> None:
    generator = stream(0, "codes")
    with LatentPotential(GEBM(IdentityBase(4), OnIdentity())) as potential:
        first, second = base_tilts(potential, generator, torch.float64)
        found = estimate_log_partition(potential, first, second, generator, torch.float64, method=method)
    assert found.pareto_k is not None
    assert found.pareto_k < 0.5
    assert found.method == used
    assert ("on codes" in found.reason) == (method == "auto")
    assert abs(found.value - 4 * 0.3**2 / 2) < 5 * found.se


def test_without_overlap_there_is_no_bridge() -> None:
    found = estimated(linear_gaussian(8, stiffness=3000.0))
    assert found.method == "smc"
    assert math.isnan(found.bridge)
    assert found.reverse - found.forward > 20
    tree = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert tree["bridge"] is None
    assert tree["gap"] == pytest.approx(found.reverse - found.forward)


# --- the choice ------------------------------------------------------------------------------------------------------


def test_light_tails_use_importance_sampling_and_heavy_tails_annealing() -> None:
    easy, hard = estimated(linear_gaussian(2, stiffness=1.0)), estimated(NARROW)
    assert easy.method == "importance-sampling"
    assert easy.pareto_k < 0.5
    assert "is below 0.5" in easy.reason
    assert easy.replicates is None
    assert hard.method == "smc"
    assert hard.pareto_k > 0.5
    assert "is not below 0.5" in hard.reason
    assert (hard.replicates, hard.degrees) == (10, 9)
    for found, target in ((easy, linear_gaussian(2, stiffness=1.0)), (hard, NARROW)):
        assert abs(found.value - target.log_partition) < 6 * found.se
        low, high = found.interval
        assert low < found.value < high
    assert hard.forward < hard.value + 0.3


def test_other_draws_than_the_estimates_decide_the_method() -> None:
    """Weights look harmless on the estimate's draws, and heavy-tailed on the other draws."""
    target = linear_gaussian(2, stiffness=1.0)
    generator = stream(0, "choice")
    with target.potential() as potential:
        first, _ = base_tilts(potential, generator, torch.float64)
        heavy = torch.rand(20_000, generator=generator, dtype=torch.float64).log()
        choose = functools.partial(estimate_log_partition, potential, generator=generator, dtype=torch.float64)
        assert choose(first, first).method == "importance-sampling"
        assert choose(first, heavy).method == "smc"
        with pytest.warns(GebmKitWarning, match="not to be trusted"):
            assert choose(first, heavy, method="importance-sampling").method == "importance-sampling"
        assert choose(first, first, method="smc").reason == "asked for"


def test_the_same_seed_gives_the_same_estimate() -> None:
    one, two, other = estimated(NARROW, 3), estimated(NARROW, 3), estimated(NARROW, 4)
    assert one == two
    assert one.value != other.value


def test_draws_of_the_model_check_importance_sampling() -> None:
    target = linear_gaussian(2, stiffness=1.0)
    with target.potential() as potential:
        exact = potential.tilt(target.exact(5000, stream(0, "exact"))).unflatten(0, (10, -1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = estimated(target, model_tilt=exact, effective=5000.0)
    assert found.bridge_draws == "sampler"
    assert abs(found.bridge - target.log_partition) < 6 * found.bridge_se
    assert abs(found.reverse - found.forward) < 0.1
    with pytest.warns(GebmKitWarning, match="bridge sampling between base draws and the sampler's draws"):
        estimated(target, model_tilt=exact - 1.0, effective=5000.0)  # chains with energies that are too low


def test_an_energy_that_can_not_be_annealed() -> None:
    """For an energy that is finite nowhere, ``auto`` gives NaN and ``smc`` raises."""
    model = GEBM(IdentityBase(2), WalledEnergy(math.nan, math.nan)).double()
    target = dataclasses.replace(two_modes(), model=model)
    assert math.isnan(estimated(target).value)
    with pytest.raises(UsageError, match="not finite at any"):
        estimated(target, method="smc")


def test_a_warning_says_that_replicates_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gebm_kit.engine.likelihood.annealing.MAX_EVALS", 0)
    monkeypatch.setattr("gebm_kit.engine.likelihood.annealing.PARTICLES", 16)
    monkeypatch.setattr("gebm_kit.engine.likelihood.estimate_log_partition.SPREAD_LIMIT", 1e-6)
    with pytest.warns(GebmKitWarning, match="10 annealed populations .* differ by .* nats"):
        estimated(NARROW)
