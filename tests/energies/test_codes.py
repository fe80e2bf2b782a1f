"""Tests of the energy on codes: its two forms agree, it keeps no copy of the base, and it refuses bases without inverse."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import gebm_kit as gk
from gebm_kit.bases.mlp import MlpBase
from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Base, OnCodes
from gebm_kit.core.model import GEBM, DataPotential, LatentPotential
from gebm_kit.energies.codes import CodesEnergy
from gebm_kit.energies.mlp import MlpEnergy

WEIGHT = [[1.5, 0.4], [-0.3, 0.7]]


class Affine(Base):
    """The affine base ``G(z) = W z + m``, with inverse and density."""

    def __init__(self, weight: list[list[float]]) -> None:
        super().__init__()
        self.latent_dim, self.data_shape = 2, (2,)
        self.weight = torch.nn.Parameter(torch.tensor(weight, dtype=torch.float64))
        self.mean = torch.nn.Parameter(torch.tensor([0.5, -1.0], dtype=torch.float64))

    def forward(self, z: Tensor) -> Tensor:
        return z @ self.weight.T + self.mean

    def encode(self, x: Tensor) -> Tensor:
        z: Tensor = torch.linalg.solve(self.weight, (x - self.mean).T).T
        return z

    def log_prob(self, x: Tensor) -> Tensor:
        _, log_det = torch.linalg.slogdet(self.weight)
        return -0.5 * self.encode(x).square().sum(1) - math.log(2 * math.pi) - log_det


def codes_energy() -> CodesEnergy:
    torch.manual_seed(0)
    energy = CodesEnergy([16], data_shape=(2,)).double()
    for parameter in energy.parameters():
        torch.nn.init.normal_(parameter)
    return energy


def model() -> GEBM:
    return GEBM(Affine(WEIGHT), codes_energy())


def rows(num: int = 50) -> Tensor:
    return torch.randn(num, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_the_energy_of_a_draw_is_h_of_its_code() -> None:
    tilted, z = model(), rows()
    through_data = tilted.energy(tilted.base(z))
    torch.testing.assert_close(tilted(z), through_data)
    torch.testing.assert_close(tilted(z), tilted.energy.h(z))
    assert through_data.std() > 0.1


def test_the_latent_potential_is_that_of_the_same_energy_on_data() -> None:
    tilted, z = model(), rows()
    with LatentPotential(tilted, 0.7) as potential:
        value, grad = potential.value_and_grad(z)
        found = potential.energy(z)
    walk = z.clone().requires_grad_()
    expected = 0.5 * walk.square().sum(1) + 0.7 * tilted.energy(tilted.base(walk))
    (slope,) = torch.autograd.grad(expected.sum(), walk)
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(grad, slope)
    torch.testing.assert_close(found, tilted(z).detach())
    assert potential.grad_evals == len(z)


def test_a_sampler_does_not_evaluate_the_base() -> None:
    tilted = model()
    calls: list[int] = []
    tilted.base.register_forward_hook(lambda *_: calls.append(1))
    with LatentPotential(tilted) as potential:
        potential.value_and_grad(rows())
        assert not calls
        potential.data(rows())
    assert calls == [1]


def test_on_data_it_has_the_slope_of_the_composed_function() -> None:
    tilted, x = model(), rows()
    with DataPotential(tilted.energy, (2,)) as potential:
        _, grad = potential.value_and_grad(x)
    z = tilted.base.encode(x).detach().requires_grad_()
    (slope,) = torch.autograd.grad(tilted.energy.of_codes(z).sum(), z)
    torch.testing.assert_close(grad, torch.linalg.solve(tilted.base.weight.T, slope.T).T.detach())


def test_it_holds_no_copy_of_the_base_and_follows_it() -> None:
    tilted, x = model(), rows()
    assert not [name for name in tilted.energy.state_dict() if not name.startswith("h.")]
    assert len(list(tilted.parameters())) == len(list(tilted.base.parameters())) + len(list(tilted.energy.parameters()))
    before = tilted.energy(x)
    with torch.no_grad():
        tilted.base.mean += 1.0
    torch.testing.assert_close(tilted.energy(x + 1.0), before)
    assert (tilted.energy(x) - before).abs().max() > 1e-3


def test_another_model_binds_it_anew() -> None:
    energy = codes_energy()
    first, second = GEBM(Affine(WEIGHT), energy), GEBM(Affine([[1.0, 0.0], [0.0, 1.0]]), energy)
    x = rows()
    torch.testing.assert_close(energy(x), energy.h(second.base.encode(x)))
    assert (energy(x) - energy.h(first.base.encode(x))).abs().max() > 1e-3


def test_it_is_told_from_an_energy_on_data() -> None:
    assert isinstance(codes_energy(), OnCodes)
    assert not isinstance(MlpEnergy([4], data_shape=(2,)), OnCodes)


def test_a_bound_holds_the_energy_and_leaves_small_values_as_they_are() -> None:
    torch.manual_seed(0)
    energy = CodesEnergy([16], bound=3.0, data_shape=(2,)).double()
    for parameter in energy.parameters():
        torch.nn.init.normal_(parameter)
    z = 20.0 * rows()
    h = energy.h(z)
    assert h.abs().max() > 6.0  # the bound matters
    assert energy.of_codes(z).abs().max() <= 3.0
    torch.testing.assert_close(energy.of_codes(z), 3.0 * torch.tanh(h / 3.0))
    with torch.no_grad():
        for parameter in energy.h.readout.parameters():
            parameter *= 1e-3
    torch.testing.assert_close(energy.of_codes(z), energy.h(z), rtol=1e-2, atol=0)


def test_a_bound_is_positive() -> None:
    with pytest.raises(UsageError, match="bound"):
        CodesEnergy([16], bound=0.0, data_shape=(2,))


def test_without_a_base_it_says_so() -> None:
    with pytest.raises(UsageError, match="has no base"):
        codes_energy()(rows())


def test_a_base_without_an_inverse_is_refused() -> None:
    with pytest.raises(UsageError, match="an inverse, but MlpBase has none"):
        GEBM(MlpBase(2, data_shape=(2,)), codes_energy())


def test_a_recipe_whose_base_has_none_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="an inverse"):
        gk.train("quickstart", ["energy=codes", "train.steps=2"], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
