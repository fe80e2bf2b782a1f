"""Tests of every sampler where the energy is infinite, NaN or beyond all numbers on a part of the space."""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

import gebm_kit as gk
from gebm_kit.core.errors import GebmKitError, UsageError
from gebm_kit.core.hamiltonian import EnergyChange
from gebm_kit.core.interfaces import Energy, Info, Sampler
from gebm_kit.core.plugins import installed
from gebm_kit.core.progress import GebmKitWarning
from gebm_kit.engine.sampling.acceptance import acceptance_sums, mean_acceptance
from gebm_kit.engine.sampling.energy_checks import check_finite_start
from gebm_kit.samplers.hmc import Hmc, HmcState
from gebm_kit.testing.statistics import ALPHA, confirmed
from gebm_kit.testing.targets import IdentityBase, linear_gaussian

pytestmark = pytest.mark.filterwarnings("ignore::gebm_kit.core.progress.GebmKitWarning")

NAMES = {record.component.name: record.load() for record in installed().registry.of_kind("sampler")}
NAMES = {name: cls for name, cls in NAMES.items() if cls.family != "directive"}
SETTINGS: dict[str, Any] = {"num_samples": 600, "num_chains": 600, "warmup": 60, "steps": 60}


class Walled(Energy):
    """An energy of 0 where x_1 > 0.3 and of ``beyond`` elsewhere: the target is the prior, cut off at 0.3."""

    def __init__(self, beyond: float) -> None:
        super().__init__()
        self.beyond = beyond

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x[:, 0] > 0.3, 0.0 * x.sum(1), self.beyond)


class RootOfDistance(Energy):
    """The same support, with a value and a gradient of NaN beyond it."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.0 * (x[:, 0] - 0.3).sqrt()


class Scaled(Energy):
    """``|x|²/2`` on the half space x_1 > 0, and inf elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x[:, 0] > 0, 0.5 * x.square().sum(1), math.inf)


ENERGIES = {"inf": Walled(math.inf), "nan": Walled(math.nan), "-inf": Walled(-math.inf), "gradient": RootOfDistance()}


def misfit(sampler: str | Sampler, energy: Energy, seed: int, cut: float = 0.3) -> dict[str, float]:
    """Compare both coordinates of draws with the normal cut off at ``cut``; returns the p-values that are too small."""
    draws = gk.sample(gk.GEBM(IdentityBase(2), energy), sampler, seed=seed, **SETTINGS).x.double().numpy()
    tests = {
        "x1": stats.kstest(draws[:, 0], stats.truncnorm(cut, math.inf).cdf),
        "x2": stats.kstest(draws[:, 1], stats.norm.cdf),
    }
    return {name: float(test.pvalue) for name, test in tests.items() if test.pvalue < ALPHA}


@pytest.mark.parametrize("energy", ENERGIES)
@pytest.mark.parametrize("name", NAMES)
def test_draws_beside_a_wall_follow_the_cut_off_prior(name: str, energy: str) -> None:
    assert not confirmed(functools.partial(misfit, name, ENERGIES[energy]))


class Leaky(Hmc):
    """A broken twin of hmc: it accepts every proposal that is on the right side."""

    def step(self, state: HmcState, potential: Any, generator: torch.Generator) -> tuple[HmcState, Info]:
        new, info = super().step(state, potential, generator)
        shifted = new.position.clone()
        shifted[:, 0] += 0.2
        return new._replace(position=torch.where(info.accepted.unsqueeze(1), shifted, new.position)), info


def test_a_wrong_sampler_is_noticed() -> None:
    assert confirmed(functools.partial(misfit, Leaky(), ENERGIES["inf"]))


@pytest.mark.parametrize("energy", [Scaled(), RootOfDistance(), Walled(math.nan)])
@pytest.mark.parametrize("name", ["chees", "mams"])
def test_a_wall_does_not_shorten_the_steps(name: str, energy: Energy) -> None:
    """hmc's trajectories shrink with its step; those of chees and mams keep their length, so they leave again and again."""
    model = gk.GEBM(IdentityBase(2), energy)
    steps = [gk.sample(model, sampler, **SETTINGS).diagnostics for sampler in ("hmc", name)]
    assert steps[1].step_size > 0.5 * steps[0].step_size
    assert steps[1].nested_rhat_max < 1.05


@pytest.mark.parametrize("harmonic", [False, True])
def test_impossible_proposals_are_left_out_of_the_mean(harmonic: bool) -> None:
    acceptance = torch.tensor([0.5, 0.0, 0.5])
    flags = torch.tensor([False, True, False])
    info = Info(acceptance, flags, flags, 1, impossible=flags)
    floor = 0.01 if harmonic else None
    assert mean_acceptance(acceptance_sums(info, floor), harmonic) == pytest.approx(0.5)
    assert mean_acceptance(acceptance_sums(info._replace(impossible=None), floor), harmonic) < 0.4
    assert mean_acceptance(acceptance_sums(info._replace(impossible=~flags | flags), floor), harmonic) == 0.0


def test_a_step_that_is_too_long_is_not_taken_for_a_wall() -> None:
    error = torch.tensor([math.inf, 5000.0, math.inf, 0.5])
    known = torch.tensor([3.0, 4000.0, math.nan, 0.5])
    assert EnergyChange(error, known).left_support().tolist() == [True, False, False, False]
    stiff = linear_gaussian(2, stiffness=1e6)
    with stiff.potential() as potential:
        z = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        for name in ("chees", "mams"):
            sampler, generator = NAMES[name](step_size=1.0), torch.Generator().manual_seed(0)
            _, info = sampler.step(sampler.init(z, potential, generator), potential, generator)
            assert bool(info.diverged.any())
            assert not bool(info.impossible.any())


def test_equipartition_is_unknown_beside_a_wall() -> None:
    found = gk.sample(gk.GEBM(IdentityBase(2), ENERGIES["inf"]), "hmc", **SETTINGS).diagnostics
    assert math.isnan(found.equipartition)
    assert not any("equipartition" in problem for problem in found.problems)


@pytest.mark.parametrize("name", NAMES)
def test_energies_beyond_all_digits_are_refused(name: str) -> None:
    class Drowned(Energy):
        def forward(self, x: Tensor) -> Tensor:
            return x.square().sum(1) + 1e30

    class Deep(Energy):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x[:, 0] > 0, -1e30, 0.0) + x.square().sum(1)

    for energy in (Drowned(), Deep()):
        with pytest.raises(UsageError, match="too far apart to hold differences of 1"):
            gk.sample(gk.GEBM(IdentityBase(2), energy), name, **SETTINGS)


def test_an_energy_of_minus_infinity_is_named() -> None:
    with pytest.warns(GebmKitWarning, match="the energy is -inf at some points"):
        gk.sample(gk.GEBM(IdentityBase(2), ENERGIES["-inf"]), "hmc", **SETTINGS)


def test_a_gradient_that_is_nowhere_finite_is_named() -> None:
    class Kinked(Energy):
        def forward(self, x: Tensor) -> Tensor:
            return x.square().sum(1) + (0.0 * x[:, 0]).abs().sqrt()

    with pytest.raises(GebmKitError, match="has a gradient with respect to x that is not finite where its value is"):
        gk.sample(gk.GEBM(IdentityBase(2), Kinked()), "hmc", **SETTINGS)
    with pytest.raises(UsageError, match="the gradient of the energy is not finite at any of 2 points"):
        check_finite_start(torch.zeros(2), torch.full((2, 3), math.nan))


@pytest.mark.parametrize("name", NAMES)
def test_a_thin_set_without_energy_and_a_constant_energy(name: str) -> None:
    class Thin(Energy):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where((x[:, 0] - 0.3).abs() < 1e-3, math.nan, 0.0 * x.sum(1))

    class Constant(Energy):
        def forward(self, x: Tensor) -> Tensor:
            return x.new_full((len(x),), 3.0)

    for energy in (Thin(), Constant()):
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                draws = gk.sample(gk.GEBM(IdentityBase(2), energy), name, **SETTINGS)
        except GebmKitError as error:
            pytest.fail(f"{name}: {error}")
        assert bool(torch.isfinite(draws.x).all())
        assert not any("gradient" in str(w.message) for w in seen)
