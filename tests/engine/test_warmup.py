"""Warm-up reaches its target, finds the scale of each coordinate, and is frozen afterwards."""

from __future__ import annotations

import math

import pytest
import torch

from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Tunable
from gebm_kit.engine.draws import SampleSettings
from gebm_kit.engine.sample import draw
from gebm_kit.engine.warmup import DualAveraging, WarmUp, _Moments, warm_up
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
    assert float(moments.shrunk_variance(torch.zeros(1)).max()) == pytest.approx(1e-4, rel=0.05)
    few = _Moments()
    few.add(0.01 * torch.randn(10, 2, generator=torch.Generator().manual_seed(0)))
    assert float(few.shrunk_variance(torch.zeros(1)).min()) > 0.05


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
        ("warmup", 10, 25),
        ("warmup", 20, 25),
        ("warmup", 25, 25),
        ("sample", 10, 12),
        ("sample", 12, 12),
    ]
    assert {"acceptance", "step_size"} <= set(seen[0].scalars)


@pytest.mark.parametrize("plain", [False, True])
def test_the_distance_between_modes_is_no_scale(plain: bool) -> None:
    """Two modes at ±5 have a pooled variance of 26; with the prior split off, 1 is the most a coordinate gets."""
    target, generator = two_modes(2, distance=10.0), torch.Generator().manual_seed(0)
    with target.potential() as split:
        potential = PlainPotential(split) if plain else split
        state = Hmc().init(target.exact(300, generator), potential, generator)
        mass = warm_up(Hmc(), state, potential, generator, 60).sampler.inverse_mass
    assert float(mass[0]) == (pytest.approx(26, rel=0.2) if plain else 1.0)
