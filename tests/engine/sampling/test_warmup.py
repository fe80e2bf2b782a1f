"""Warm-up reaches its target, finds the scale of each coordinate, and is frozen afterwards."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Info, Sampler, Tunable
from gebm_kit.core.reduce import in_block_order
from gebm_kit.core.sampling import Adaptation
from gebm_kit.engine.sampling.draw import draw
from gebm_kit.engine.sampling.settings import SampleSettings
from gebm_kit.engine.sampling.warmup import DualAveraging, WarmUp, _Moments, shrunk_variance, warm_up, warm_up_blocks
from gebm_kit.samplers.hmc import Hmc
from gebm_kit.samplers.mala import Mala
from gebm_kit.samplers.ula import Ula
from gebm_kit.testing.targets import (
    IdentityBase,
    PlainPotential,
    QuadraticEnergy,
    Target,
    linear_gaussian,
    prior_only,
    two_modes,
)

pytestmark = pytest.mark.filterwarnings("ignore:the chains have not mixed")

SAMPLERS = {"ula": Ula, "mala": Mala, "hmc": Hmc}


def _warm(sampler, target: Target, steps: int = 200, num_chains: int = 300) -> WarmUp:
    generator = torch.Generator().manual_seed(0)
    with target.potential() as potential:
        z = torch.randn(num_chains, potential.model.latent_dim, generator=generator, dtype=torch.float64)
        return warm_up(sampler, sampler.init(z, potential, generator), potential, generator, steps)


def _acceptance(warm: WarmUp, target: Target, steps: int = 40) -> float:
    state, generator, total = warm.state, torch.Generator().manual_seed(1), 0.0
    with target.potential() as potential:
        for _ in range(steps):
            state, info = warm.sampler.step(state, potential, generator)
            total += float((info.acceptance if info.tuning is None else info.tuning).mean())
    return total / steps


@pytest.mark.parametrize("start", [1e-4, 0.1, 10.0])
@pytest.mark.parametrize("name", SAMPLERS)
def test_reaches_its_target_from_any_start(name: str, start: float) -> None:
    target = linear_gaussian(20, stiffness=400.0)
    warm = _warm(SAMPLERS[name](step_size=start), target)
    assert _acceptance(warm, target) == pytest.approx(warm.sampler.tunable.target, abs=0.05)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_flat_tilt_leaves_the_step_within_its_bounds(name: str) -> None:
    sampler = SAMPLERS[name]()
    warm = _warm(sampler, prior_only(2))
    assert 0 < warm.sampler.step_size <= sampler.tunable.high * (1 + 1e-9)


@pytest.mark.parametrize("name", SAMPLERS)
def test_finds_the_scale_of_each_coordinate(name: str) -> None:
    """Independent coordinates with variances from 1 to 1/100."""
    precision = torch.diag(torch.tensor([0.0, 3.0, 24.0, 99.0], dtype=torch.float64))
    energy = QuadraticEnergy(precision, torch.zeros(4, dtype=torch.float64))
    target = prior_only(4)
    target.model.base, target.model.energy = IdentityBase(4), energy
    target = Target("scales", target.model, 1.0, target.exact, (), target.point, 100.0)
    warm = _warm(SAMPLERS[name](), target, steps=400)
    variance = 1 / (1 + precision.diagonal())
    torch.testing.assert_close(warm.sampler.inverse_mass, variance, rtol=0.35, atol=1e-3)
    assert torch.equal(SAMPLERS[name]().tuned(inverse_mass=variance).inverse_mass, variance)


def test_the_pooled_variance_of_few_rows_stays_near_the_prior() -> None:
    warm = _warm(Mala(), linear_gaussian(), steps=40, num_chains=1)
    assert 0.3 < float(warm.sampler.inverse_mass.min()) <= float(warm.sampler.inverse_mass.max()) < 3


def test_the_original_is_left_alone_and_nothing_is_tuned_without_steps() -> None:
    sampler = Hmc(step_size=0.123)
    warm = _warm(sampler, linear_gaussian(), steps=0)
    assert warm.sampler is sampler
    _warm(sampler, linear_gaussian(), steps=60)
    assert sampler.step_size == 0.123
    assert sampler.inverse_mass is None


def test_a_short_warm_up_tunes_the_step_size_alone() -> None:
    warm = _warm(Mala(), linear_gaussian(), steps=20)
    assert warm.sampler.inverse_mass is None
    assert warm.sampler.step_size != Mala().step_size


def test_a_sampler_with_nothing_to_tune_is_just_run() -> None:
    class Fixed(Mala):
        tunable = None

    target = linear_gaussian()
    sampler = Fixed(step_size=0.01)
    warm = _warm(sampler, target, steps=30)
    assert warm.sampler is sampler
    assert not torch.equal(warm.state.position[0], target.point)


def test_frozen_before_draws_are_kept() -> None:
    used: list[tuple[float, int | None]] = []

    class Spy(Hmc):
        def step(self, state, potential, generator):
            used.append((self.step_size, None if self.inverse_mass is None else id(self.inverse_mass)))
            return super().step(state, potential, generator)

    settings = SampleSettings(num_samples=100, num_chains=50, warmup=60, steps=30, thin=5)
    draws = draw(linear_gaussian().model, Spy(), settings)
    assert len(set(used[-30:])) == 1
    assert used[-1][0] == draws.diagnostics.step_size
    assert len(set(used[:-30])) > 10


def test_variances_are_shrunk_toward_one_on_a_logarithmic_scale() -> None:
    moments = _Moments()
    moments.add(0.01 * torch.randn(50_000, 2, generator=torch.Generator().manual_seed(0)))
    assert float(shrunk_variance(moments.sums()).max()) == pytest.approx(1e-4, rel=0.05)
    few = _Moments()
    few.add(0.01 * torch.randn(10, 2, generator=torch.Generator().manual_seed(0)))
    assert float(shrunk_variance(few.sums()).min()) > 0.05


@pytest.mark.parametrize("value", [math.nan, -1.0, 0.0, math.inf])
def test_a_step_size_set_behind_the_constructor_is_refused(value: float) -> None:
    sampler = Mala()
    sampler.step_size = value
    with pytest.raises(UsageError, match="step_size must be a positive finite number"):
        _warm(sampler, linear_gaussian())


def test_dual_averaging_solves_its_equation() -> None:
    """Acceptance exp(-h): the target is met at h = -log(target); the bounds hold on the way."""
    averaging = DualAveraging(Tunable("h", target=0.7, low=1e-3, high=5.0), 1e-3)
    for _ in range(1000):
        assert 1e-3 * (1 - 1e-12) <= averaging.value <= 5.0 * (1 + 1e-12)
        averaging.update(math.exp(-averaging.value))
    assert averaging.averaged == pytest.approx(-math.log(0.7), rel=0.02)


def test_progress_is_reported() -> None:
    seen = []
    settings = SampleSettings(num_samples=20, num_chains=20, warmup=25, steps=12, thin=1)
    draw(linear_gaussian().model, Mala(), settings, on_progress=seen.append)
    stages = [(p.stage, p.step, p.total) for p in seen]
    assert stages == [
        ("warmup", 8, 25),  # the end of the tempered start
        ("warmup", 18, 25),
        ("warmup", 25, 25),
        ("sample", 10, 12),
        ("sample", 12, 12),
    ]
    assert {"acceptance", "step_size"} <= set(seen[1].scalars)


@pytest.mark.parametrize("plain", [False, True])
def test_the_distance_between_modes_is_no_scale(plain: bool) -> None:
    """Two modes at ±5 have a pooled variance of 26; with the prior split off, 1 is the most a coordinate gets."""
    target, generator = two_modes(2, distance=10.0), torch.Generator().manual_seed(0)
    with target.potential() as split:
        potential = PlainPotential(split) if plain else split
        state = Hmc().init(target.exact(300, generator), potential, generator)
        mass = warm_up(Hmc(), state, potential, generator, 60).sampler.inverse_mass
    assert float(mass[0]) == (pytest.approx(26, rel=0.2) if plain else 1.0)


# --- blocks and adaptations ----------------------------------------------------------------------------------------------


def _blocks(sampler, potential, sizes: tuple[int, ...]) -> tuple[list, list[torch.Generator]]:
    generators = [torch.Generator().manual_seed(index) for index in range(len(sizes))]
    starts = [torch.randn(n, 4, generator=g, dtype=torch.float64) for n, g in zip(sizes, generators, strict=True)]
    return [sampler.init(z, potential, g) for z, g in zip(starts, generators, strict=True)], generators


def test_blocks_share_their_tuning_and_nothing_else() -> None:
    """Chains of a block depend on the others through the step size alone; without tuning on nothing."""
    target = linear_gaussian()

    class Fixed(Mala):
        tunable = None

    with target.potential() as potential:
        states, generators = _blocks(Fixed(0.05), potential, (6, 4))
        together = warm_up_blocks(Fixed(0.05), states, potential, generators, 10)
        states, generators = _blocks(Fixed(0.05), potential, (6, 4))
        alone = [
            warm_up(Fixed(0.05), s, potential, g, 10).state.position for s, g in zip(states, generators, strict=True)
        ]
    assert all(torch.equal(state.position, z) for state, z in zip(together.states, alone, strict=True))


def test_the_tuning_of_blocks_is_that_of_their_chains_together() -> None:
    target = linear_gaussian(20, stiffness=400.0)
    with target.potential() as potential:
        generators = [torch.Generator().manual_seed(index) for index in range(3)]
        states = [Hmc().init(target.exact(100, g), potential, g) for g in generators]
        warm = warm_up_blocks(Hmc(), states, potential, generators, 200)
    assert len(warm.states) == 3
    assert _acceptance(WarmUp(warm.sampler, warm.states[1:2], 0), target) == pytest.approx(0.7, abs=0.05)


class Counted(Adaptation):
    """Counts what it is asked, sums positions, and sets the step size to twice the share of warm-up done."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, int, float]] = []
        self.blocks: list[float] = []

    def statistics(self, sampler, before, after, info):
        assert before.position is not after.position
        self.blocks.append(float(after.position.sum()))
        return torch.stack([after.position.sum(), info.accepted.sum().double()]).double()

    def update(self, sampler, sums, num_chains, progress):
        assert sums.dtype == torch.float64
        self.seen.append((float(sums[0]), num_chains, progress))
        return sampler.tuned(other=2 * progress)

    def freeze(self, sampler):
        return sampler.tuned(other=-1.0)


@pytest.mark.parametrize("tunable", [True, False])
def test_an_adaptation_sees_the_sums_over_all_blocks_and_is_frozen(tunable: bool) -> None:
    adaptation, used = Counted(), []

    class Adapted(Mala):
        other = 0.0

        def adaptation(self):
            return adaptation

        def step(self, state, potential, generator):
            used.append(self.other)
            return super().step(state, potential, generator)

    class Untuned(Adapted):
        tunable = None

    sampler = (Adapted if tunable else Untuned)(0.05)
    with linear_gaussian().potential() as potential:
        states, generators = _blocks(sampler, potential, (6, 4))
        warm = warm_up_blocks(sampler, states, potential, generators, 8)
    assert [(n, p) for _, n, p in adaptation.seen] == [(10, (i + 1) / 8) for i in range(8)]
    assert [total for total, _, _ in adaptation.seen] == [
        a + b for a, b in zip(*[iter(adaptation.blocks)] * 2, strict=True)
    ]
    assert used[-16:] == [
        i / 4 for i in range(8) for _ in range(2)
    ]  # the last 8 steps of two blocks; trial steps before
    assert (warm.sampler.other, sampler.other) == (-1.0, 0.0)
    assert (warm.sampler.step_size == 0.05) is not tunable


def test_sums_are_added_in_the_order_of_the_blocks() -> None:
    """Addition of floats is not associative; here another order, or pairs first, would give 0 or 2."""
    rows = [torch.tensor([v], dtype=torch.float64) for v in (1.0, 1e17, -1e17, 1.0)]
    assert float(in_block_order(rows)) == 1.0


def test_a_harmonic_mean_is_held_by_its_smallest_acceptance() -> None:
    """Half the chains accept with 1, half with a: 2 a / (1 + a) against (1 + a) / 2, on a kernel where a = exp(-h)."""

    class State(NamedTuple):
        position: Tensor
        value: Tensor

    class Halves(Sampler):
        step_size = 0.1

        def __init__(self, harmonic: bool) -> None:
            self.harmonic = harmonic

        @property
        def tunable(self):
            return Tunable("step_size", target=0.7, low=1e-3, high=20.0, harmonic=self.harmonic)

        def init(self, z, potential, generator):
            return State(z, z[:, 0])

        def step(self, state, potential, generator):
            acceptance = torch.ones_like(state.value)
            acceptance[::2] = math.exp(-self.step_size)
            return state, Info(acceptance, acceptance > 2, acceptance > 2, 0)

    found = {
        harmonic: _warm(Halves(harmonic), linear_gaussian(), steps=2000).sampler.step_size for harmonic in (True, False)
    }
    assert found[True] == pytest.approx(-math.log(0.7 / 1.3), rel=0.03)  # 2 a / (1 + a) = 0.7
    assert found[False] == pytest.approx(-math.log(0.4), rel=0.03)  # (1 + a) / 2 = 0.7
