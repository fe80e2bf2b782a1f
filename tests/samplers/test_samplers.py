"""Tests of every registered sampler, by property: what it must do, and that exact samplers are exact."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Potential
from gebm_kit.core.plugins import installed
from gebm_kit.samplers.hmc import Hmc
from gebm_kit.samplers.mala import Mala
from gebm_kit.samplers.ula import Ula
from gebm_kit.testing import SAMPLER_CHECKS, all_targets, check_sampler, estimates, invariance, movement
from gebm_kit.testing.statistics import ALPHA, confirmed, z_p_value
from gebm_kit.testing.targets import PlainPotential, linear_gaussian, prior_only

CLASSES = {record.component.name: record.load() for record in installed().registry.of_kind("sampler")}
CLASSES = {name: cls for name, cls in CLASSES.items() if cls.family != "directive"}  # a directive has no steps
POPULATIONS = [name for name, cls in CLASSES.items() if cls.family == "population"]
KERNELS = [name for name, cls in CLASSES.items() if cls.family == "kernel"]
EXACT = [name for name in KERNELS if CLASSES[name].exact]
TARGETS = {target.name: target for target in all_targets()}


# --- properties of every sampler ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", SAMPLER_CHECKS)
@pytest.mark.parametrize("name", CLASSES)
def test_conformance(name: str, check: str) -> None:
    SAMPLER_CHECKS[check](CLASSES[name]())


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", EXACT)
def test_exact_draws_stay_exact(name: str, target: str) -> None:
    assert not confirmed(functools.partial(invariance, CLASSES[name](), TARGETS[target]))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", EXACT)
def test_chains_from_a_point_reach_the_target(name: str, target: str) -> None:
    assert not confirmed(functools.partial(movement, CLASSES[name](), TARGETS[target]))


@pytest.mark.parametrize("target", ["linear-gaussian", "banana", "tilted-sphere"])
@pytest.mark.parametrize("name", POPULATIONS)
def test_populations_estimate_what_they_should(name: str, target: str) -> None:
    assert not confirmed(functools.partial(estimates, CLASSES[name](), TARGETS[target], num_islands=25))


@pytest.mark.parametrize("name", CLASSES)
def test_a_state_that_was_saved_goes_on_where_it_stopped(name: str, tmp_path: Path) -> None:
    """The state goes through safetensors field by field; two further steps are then the same to the last bit."""
    target, sampler, generator = linear_gaussian(), CLASSES[name](), torch.Generator().manual_seed(0)
    with target.potential(torch.float32) as potential:
        state = sampler.init(target.exact(24, generator).float(), potential, generator)
        state, _ = sampler.step(state, potential, generator)
        save_file({key: field.contiguous() for key, field in state._asdict().items()}, tmp_path / "state.safetensors")
        fields = load_file(tmp_path / "state.safetensors")
        assert set(fields) == set(state._fields)
        ends, random = [], generator.get_state()
        for again in (state, type(state)(**fields)):
            generator.set_state(random)
            for _ in range(2):
                again, _ = sampler.step(again, potential, generator)
            ends.append(again)
    for key, kept, restored in zip(state._fields, *ends, strict=True):
        assert torch.equal(kept, restored), key


@pytest.mark.parametrize("name", EXACT)
def test_exact_in_float32(name: str) -> None:
    target = linear_gaussian()
    assert not confirmed(functools.partial(invariance, CLASSES[name](), target, dtype=torch.float32))


@pytest.mark.parametrize("name", KERNELS)
def test_float32_follows_float64(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same random numbers three steps in float32 end where three steps in float64 do."""
    for function in ("randn", "rand"):
        draw = getattr(torch, function)

        def in_double(*shape, draw=draw, dtype, **options):
            return draw(*shape, dtype=torch.float64, **options).to(dtype)

        monkeypatch.setattr(torch, function, in_double)
    target, ends = linear_gaussian(), []
    start = target.exact(50, torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.float64):
        generator, sampler = torch.Generator().manual_seed(1), CLASSES[name]()
        with target.potential(dtype) as potential:
            state = sampler.init(start.to(dtype), potential, generator)
            for _ in range(3):
                state, _ = sampler.step(state, potential, generator)
        ends.append(state.position.double())
    torch.testing.assert_close(*ends, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", EXACT)
def test_exact_with_a_preconditioner(name: str) -> None:
    target = linear_gaussian()
    sampler = CLASSES[name]()
    if not hasattr(sampler, "inverse_mass"):
        pytest.skip("takes no preconditioner")
    covariance = target.exact(4000, torch.Generator().manual_seed(3)).T.cov()
    sampler = sampler.tuned(inverse_mass=covariance.diagonal().clone() * torch.tensor([1.0, 0.5, 2.0, 1.0]))
    assert not confirmed(functools.partial(invariance, sampler, target, tune=False))


@pytest.mark.parametrize("value", [0.0, -0.1, math.nan, math.inf, "0.1", None, True])
@pytest.mark.parametrize("name", ["ula", "mala", "hmc", "rwm", "klmc", "isir", "chees", "meads", "pt", "mclmc", "mams"])
def test_bad_step_size(name: str, value) -> None:
    with pytest.raises(UsageError, match="step_size must be a number > 0"):
        CLASSES[name](step_size=value)


@pytest.mark.parametrize(
    "arguments", [{"num_leapfrog": 0}, {"num_leapfrog": 2.5}, {"jitter": 1.0}, {"jitter": -0.1}, {"max_angle": 0}]
)
def test_bad_hmc_arguments(arguments: dict) -> None:
    with pytest.raises(UsageError, match=next(iter(arguments))):
        Hmc(**arguments)


def test_check_sampler_passes_mala() -> None:
    check_sampler(Mala())


# --- what is known of each sampler --------------------------------------------------------------------------------------


@pytest.mark.parametrize("step_size", [0.2, 0.6])
def test_ula_shows_its_known_bias(step_size: float) -> None:
    """On N(0, 1) its variance is 1 / (1 - h/2)."""

    def failures(seed: int) -> dict[str, float]:
        target, generator = prior_only(3), torch.Generator().manual_seed(seed)
        variance = 1 / (1 - step_size / 2)
        sampler = Ula(step_size)
        with target.potential() as potential:
            z = math.sqrt(variance) * target.exact(20_000, generator)
            state = sampler.init(z, potential, generator)
            for _ in range(30):
                state, _ = sampler.step(state, potential, generator)
        ratio = float(state.position.square().mean()) / variance
        p = z_p_value((ratio - 1) * math.sqrt(3 * 20_000 / 2))
        exact = z_p_value((ratio * variance - 1) * math.sqrt(3 * 20_000 / 2))
        assert exact < ALPHA  # and the target's own variance is excluded
        return {"variance": p} if p < ALPHA else {}

    assert not confirmed(failures)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("step_size", [0.01, 0.2, 50.0])
def test_hmc_accepts_everything_at_beta_zero(step_size: float, dtype: torch.dtype) -> None:
    target, generator, sampler = prior_only(64), torch.Generator().manual_seed(0), Hmc(step_size)
    with target.potential(dtype) as potential:
        state = sampler.init(target.exact(500, generator).to(dtype), potential, generator)
        for _ in range(5):
            state, info = sampler.step(state, potential, generator)
            assert float(info.acceptance.min()) > 1 - (1e-4 if dtype == torch.float32 else 1e-12)
            assert dtype == torch.float32 or bool(info.accepted.all())


def test_hmc_caps_the_mean_of_the_total_angle() -> None:
    sampler = Hmc(step_size=100.0, num_leapfrog=4)
    with prior_only(2).potential() as potential:
        uniform = torch.full((3,), 0.5, dtype=torch.float64)
        assert float(sampler.steps(uniform, potential).max()) * 4 == pytest.approx(math.pi / 2)
        wide = sampler.tuned(inverse_mass=torch.tensor([4.0, 1.0], dtype=torch.float64))
        assert float(wide.steps(uniform, potential).max()) * 4 == pytest.approx(math.pi / 2)
        plain = sampler.steps(uniform, PlainPotential(potential))
        assert float(plain.max()) == pytest.approx(100.0 * 0.8)
        half = Hmc(step_size=100.0, num_leapfrog=4, max_angle=3.0)
        assert float(half.steps(uniform, potential).max()) * 4 == pytest.approx(3.0)


def test_scales_beyond_the_prior_do_not_shorten_leapfrog_steps() -> None:
    """Once the preconditioner knows the scale, a potential of scale 10 is as easy as one of scale 1."""
    tunable = Hmc(num_leapfrog=4, jitter=0.0).tuned(inverse_mass=torch.tensor([100.0, 1.0])).tunable
    assert tunable.high * 4 == pytest.approx(math.pi / 2)
    tunable = Hmc(num_leapfrog=4, jitter=0.0).tuned(inverse_mass=torch.tensor([0.25, 0.01])).tunable
    assert tunable.high * 4 * 0.5 == pytest.approx(math.pi / 2)


@pytest.mark.parametrize("check", [invariance, movement])
@pytest.mark.parametrize("target", ["linear-gaussian", "two-modes"])
def test_leapfrog_on_a_plain_potential_is_exact(target: str, check) -> None:
    assert isinstance(PlainPotential(TARGETS[target].potential()), Potential)
    assert not confirmed(functools.partial(check, Hmc(), TARGETS[target], plain=True))
