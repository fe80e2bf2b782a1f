"""Tests of what is said about an energy without a gradient, and that gradient-free samplers still draw from it."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import gebm_kit as gk
from gebm_kit.core.errors import GebmKitError, UsageError
from gebm_kit.core.interfaces import Energy
from gebm_kit.core.model import LatentPotential
from gebm_kit.core.plugins import installed
from gebm_kit.core.progress import GebmKitWarning
from gebm_kit.engine.sampling.energy_checks import check_gradient
from gebm_kit.engine.sampling.recorder import quantities
from gebm_kit.testing.targets import IdentityBase, linear_gaussian

NAMES = {record.component.name: record.load() for record in installed().registry.of_kind("sampler")}
NAMES = {name: cls for name, cls in NAMES.items() if cls.family != "directive"}
GRADIENT_FREE = ["rwm", "pcn", "elliptical", "imh", "sir", "drs"]
SETTINGS: dict[str, Any] = {"num_samples": 400, "num_chains": 400, "warmup": 40, "steps": 40}


class Detached(Energy):
    def forward(self, x: Tensor) -> Tensor:
        return 4 * x.detach().square().sum(1)


class Rounded(Energy):
    def forward(self, x: Tensor) -> Tensor:
        return (4 * x).round().abs().sum(1)


class Chosen(Energy):
    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(1).to(x.dtype)


class Ungraded(Energy):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return x.square().sum(1)


class Quadratic(Energy):
    def forward(self, x: Tensor) -> Tensor:
        return x.square().sum(1)


class CuttingBase(IdentityBase):
    """A base that passes no gradient on."""

    def forward(self, z: Tensor) -> Tensor:
        return z.detach()


ENERGIES = [Detached(), Rounded(), Chosen(), Ungraded()]


def said(name: str, model: gk.GEBM, **changes: Any) -> tuple[Any, list[str]]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        draws = gk.sample(model, name, **SETTINGS | changes)
    return draws, [str(w.message) for w in seen if issubclass(w.category, GebmKitWarning)]


@pytest.mark.parametrize("energy", ENERGIES, ids=lambda energy: type(energy).__name__)
@pytest.mark.parametrize("name", [name for name in NAMES if name not in GRADIENT_FREE])
def test_samplers_that_follow_the_gradient_refuse(name: str, energy: Energy) -> None:
    with pytest.raises(GebmKitError, match="has no gradient with respect to x") as caught:
        gk.sample(gk.GEBM(IdentityBase(2), energy), name, **SETTINGS)
    assert type(energy).__name__ in str(caught.value)


@pytest.mark.parametrize("name", ["ula", "hmc", "smc", "pt", "dot"])
def test_steps_that_few_rows_do_not_show(name: str) -> None:
    """The energy is 1 in a corner and 0 elsewhere: the check of components sees a constant."""

    class Corner(Energy):
        def forward(self, x: Tensor) -> Tensor:
            return ((x[:, 0] > 0.8) & (x[:, 1] > 0)).to(x.dtype)

    potential = LatentPotential(gk.GEBM(IdentityBase(2), Corner()))
    sampler, generator = NAMES[name](), torch.Generator().manual_seed(0)
    with potential, pytest.raises(UsageError, match=f"Corner has no gradient with respect to x.*Sampler '{name}'"):
        check_gradient(potential, sampler, sampler.init(torch.randn(64, 2, generator=generator), potential, generator))


@pytest.mark.parametrize("name", GRADIENT_FREE)
def test_gradient_free_samplers_draw_without_a_word(name: str) -> None:
    draws, texts = said(name, gk.GEBM(IdentityBase(2), Detached()), num_samples=2000, num_chains=1000, warmup=100)
    assert not any("gradient" in text or "equipartition" in text for text in texts)
    assert float(draws.x.var()) == pytest.approx(1 / 9, rel=0.2)


def test_a_base_that_stops_the_gradient_is_named() -> None:
    with pytest.raises(GebmKitError, match="'CuttingBase'.* has no gradient with respect to z"):
        gk.sample(gk.GEBM(CuttingBase(2), Quadratic()), "ula", **SETTINGS)


def test_an_energy_with_a_gradient_and_a_flat_tilt_are_not_blamed() -> None:
    for beta in (0.0, 1.0):
        for name in ("ula", "hmc", "isir"):
            _, texts = said(name, gk.GEBM(IdentityBase(2), Quadratic()), inverse_temperature=beta)
            assert not any("gradient" in text for text in texts)


@pytest.mark.parametrize("name", NAMES)
def test_the_recorded_potential_is_the_whole_potential(name: str) -> None:
    """The cached value is U or the tilt, as the sampler declares; what is recorded is U for all of them."""
    sampler, target, generator = NAMES[name](), linear_gaussian(), torch.Generator().manual_seed(0)
    with LatentPotential(target.model) as potential:
        z = torch.randn(20, target.model.latent_dim, generator=generator, dtype=torch.float64)
        state = sampler.init(z, potential, generator)
        for _ in range(2):
            state, _ = sampler.step(state, potential, generator)
        recorded = quantities(state, caches_tilt=sampler.caches_tilt)[:, -1]
        torch.testing.assert_close(recorded, potential.value(state.position))


def test_records_of_two_samplers_agree_on_the_potential() -> None:
    model = gk.GEBM(IdentityBase(16), Quadratic())
    means = []
    for name in ("mala", "hmc", "chees", "pcn", "klmc"):
        records = gk.sample(model, name, num_samples=400, num_chains=200, warmup=100, steps=100).records
        means.append(float(torch.cat([record["trace"][..., -1] for record in records], 1).mean()))
    assert means == pytest.approx([8.0] * len(means), rel=0.1)  # |z|²/2 + |z|² with z ~ N(0, 1/3): 16 / 2
