"""Tests of relativistic pairs: the optimum is the log-ratio up to a constant, and all pairs of the batch are compared."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.utils._python_dispatch import TorchDispatchMode

from gebm_kit.core import estimators
from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Base, Batch, Energy, Loss, LossTerms
from gebm_kit.core.model import GEBM
from gebm_kit.losses import relativistic
from gebm_kit.losses.density_ratio import Energies, batch_energies, with_gradient
from gebm_kit.losses.relativistic import Relativistic, compare

DATA, BASE = (2.0 * torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in (9, 11))


class Identity(Base):
    def __init__(self) -> None:
        super().__init__()
        self.latent_dim, self.data_shape = 1, (1,)
        self.shift = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, z: Tensor) -> Tensor:
        return z + self.shift


class Shifted(Energy):
    """An energy that is the data plus a parameter for each row."""

    def __init__(self, rows: int = 20) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(rows, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x.squeeze(1) + self.shift[: len(x)]


class Table(Energy):
    """One energy for each of K states; x holds their numbers, (B, 1)."""

    def __init__(self, states: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(states, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.values[x.squeeze(1).long()]


def batch(data: Tensor = DATA, base: Tensor = BASE) -> Batch:
    return Batch(data.unsqueeze(1), torch.zeros(len(base), 1), base.unsqueeze(1))


# --- the formula -----------------------------------------------------------------------------------------------------
def test_the_formula_and_its_gradients() -> None:
    model, loss = GEBM(Identity(), Shifted()), Relativistic().double()
    terms = loss.energy_loss(model, batch())
    data, base = DATA.clone().requires_grad_(), BASE.clone().requires_grad_()
    expected = softplus(data.unsqueeze(1) - base).mean()
    torch.testing.assert_close(terms.loss, expected)
    gradient = torch.cat(torch.autograd.grad(expected, [data, base]))
    torch.testing.assert_close(torch.autograd.grad(terms.loss, model.energy.shift)[0], gradient)
    torch.testing.assert_close(terms.metrics["pairs_ordered"], (DATA.unsqueeze(1) < BASE).double().mean())
    torch.testing.assert_close(terms.metrics["log_partition"], estimators.log_partition(BASE))
    torch.testing.assert_close(terms.metrics["kale"], -DATA.mean() - estimators.log_partition(BASE))


def test_the_base_loss_has_the_roles_exchanged() -> None:
    model, loss = GEBM(Identity(), Shifted()), Relativistic().double()
    base = BASE.clone().requires_grad_()
    found = loss.base_loss(model, Batch(DATA.unsqueeze(1), torch.zeros(11, 1), base.unsqueeze(1))).loss
    again = BASE.clone().requires_grad_()
    expected = softplus(again - DATA.unsqueeze(1)).mean()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, base)[0], torch.autograd.grad(expected, again)[0])


def test_data_get_no_gradient_in_a_base_step() -> None:
    """The data are compared with, and not moved, even if they are a leaf of somebody's graph."""
    x = DATA.unsqueeze(1).requires_grad_()
    model = GEBM(Identity(), Shifted())
    z = BASE.unsqueeze(1)
    found = Relativistic().double().base_loss(model, Batch(x, z, model.base(z))).loss
    grads = torch.autograd.grad(found, [x, model.base.shift], allow_unused=True)
    assert grads[0] is None
    assert grads[1] > 0  # where base draws lie higher, the loss is larger


def test_a_base_step_without_data_is_refused() -> None:
    with pytest.raises(UsageError, match="needs data, and the batch has none"):
        Relativistic().base_loss(GEBM(Identity(), Shifted()), Batch(None, torch.zeros(11, 1), BASE.unsqueeze(1)))


@pytest.mark.parametrize("at_once", [1, 7, 30, 10**6])
def test_pieces_change_nothing(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compare(DATA, BASE)
    monkeypatch.setattr(relativistic, "PAIRS_AT_ONCE", at_once)
    for one, other in zip(whole, compare(DATA, BASE), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-14)


def test_memory_does_not_grow_with_the_pairs() -> None:
    """No tensor has more elements than the pairs at once, where the matrix of all pairs would have 4 million."""
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    first, second = torch.randn(2, 2048, generator=torch.Generator().manual_seed(0))
    with Watch():
        compare(first, second)
    assert 2048 < largest <= relativistic.PAIRS_AT_ONCE


# --- the optimum -----------------------------------------------------------------------------------------------------
COUNTS = {"data": [1, 2, 9, 4], "base": [5, 6, 1, 4]}
"""How often each state occurs in a batch that is the whole population: P and B are these over 16."""


class Averaged(Relativistic):
    """The broken twin: a point against the *average* of the others (RaGAN), whose optimum is not the log-ratio."""

    def energy_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        energies = batch_energies(model, batch)
        data, base = (part.clone().requires_grad_() for part in (energies.data, energies.base))
        value = softplus(data - base.mean()).mean() + softplus(data.mean() - base).mean()
        on_data, on_base = torch.autograd.grad(value, [data, base])
        return LossTerms(with_gradient(value.detach(), energies, on_data * len(data), on_base * len(base)))


class Swapped(Relativistic):
    """Another broken twin: the derivatives of data and base draws are exchanged."""

    def energy_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        energies = batch_energies(model, batch)
        pairs = compare(energies.base, energies.data)
        swapped = Energies(energies.joint, energies.data, energies.base)
        return LossTerms(with_gradient(pairs.value, swapped, -pairs.on_second, pairs.on_first))


def distance_from_the_log_ratio(loss: Loss) -> float:
    """Minimise over a table of energies, and return how far E + log dP/dB is from a constant."""
    data, base = (torch.arange(4).repeat_interleave(torch.tensor(COUNTS[name])).double() for name in ("data", "base"))
    model = GEBM(Identity(), Table(4))
    optimizer = torch.optim.LBFGS(
        model.energy.parameters(),
        max_iter=500,
        tolerance_grad=1e-12,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss.energy_loss(model, batch(data, base)).loss
        value.backward()
        return value.detach()

    optimizer.step(closure)
    ratio = (torch.tensor(COUNTS["data"], dtype=torch.float64) / torch.tensor(COUNTS["base"])).log()
    off = model.energy.values.detach() + ratio
    return float((off - off.mean()).abs().max())


def test_the_optimum_is_the_log_ratio_up_to_a_constant() -> None:
    assert distance_from_the_log_ratio(Relativistic().double()) < 1e-6


@pytest.mark.parametrize("twin", [Averaged, Swapped])
def test_broken_twins_do_not_find_it(twin: type[Relativistic]) -> None:
    assert distance_from_the_log_ratio(twin().double()) > 0.05


def test_the_level_of_the_energy_does_not_matter() -> None:
    model, loss = GEBM(Identity(), Shifted()), Relativistic().double()
    before = loss.energy_loss(model, batch()).loss, loss.base_loss(model, batch()).loss
    with torch.no_grad():
        model.energy.shift += 3.0
    torch.testing.assert_close((loss.energy_loss(model, batch()).loss, loss.base_loss(model, batch()).loss), before)


# --- precision -------------------------------------------------------------------------------------------------------
def trained_terms(dtype: torch.dtype) -> list[Tensor]:
    """Return losses and gradients of a small network, in float64 for comparison."""
    torch.manual_seed(0)
    energy = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1), nn.Flatten(0))
    model, loss = GEBM(nn.Linear(2, 3), energy).to(dtype), Relativistic().to(dtype)  # type: ignore[arg-type]
    x, z = torch.randn(40, 3).to(dtype) + 1, torch.randn(40, 2).to(dtype)
    given = Batch(x, z, model.base(z))
    terms = loss.energy_loss(model, given)
    on_energy = torch.autograd.grad(terms.loss, list(energy.parameters()))
    base = loss.base_loss(model, given).loss
    on_base = torch.autograd.grad(base, list(model.base.parameters()))
    return [t.detach().double() for t in (terms.loss, base, *terms.metrics.values(), *on_energy, *on_base)]


def test_float32_and_float64_agree() -> None:
    for single, double in zip(trained_terms(torch.float32), trained_terms(torch.float64), strict=True):
        torch.testing.assert_close(single, double, rtol=1e-4, atol=1e-6)


def test_energies_in_bfloat16_are_compared_in_float32() -> None:
    """Under autocast an energy is bfloat16; sums over thousands of pairs in that type would stall."""
    torch.manual_seed(0)
    energy = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 1), nn.Flatten(0))
    model, loss = GEBM(nn.Linear(2, 3), energy), Relativistic()  # type: ignore[arg-type]
    x, z = torch.randn(600, 3), torch.randn(600, 2)
    plain = loss.energy_loss(model, Batch(x, z, model.base(z))).loss
    with torch.autocast("cpu", torch.bfloat16):
        given = Batch(x, z, model.base(z))
        assert given.x_base.dtype == energy(x).dtype == torch.bfloat16
        terms, base = loss.energy_loss(model, given), loss.base_loss(model, given)
    assert all(value.dtype == torch.float32 for value in (terms.loss, base.loss, *terms.metrics.values()))
    torch.testing.assert_close(terms.loss, plain, rtol=0.01, atol=0.01)
    grads = torch.autograd.grad(terms.loss, list(energy.parameters()), retain_graph=True)
    grads += torch.autograd.grad(base.loss, list(model.base.parameters()))
    assert all(grad.isfinite().all() and grad.abs().sum() > 0 for grad in grads)


# --- the base --------------------------------------------------------------------------------------------------------
def test_a_batch_norm_in_the_energy_sees_both_halves_in_both_steps() -> None:
    """Normalised on its own, each half would have mean zero, and the critic would see no difference between them."""
    torch.manual_seed(0)
    energy = nn.Sequential(nn.BatchNorm1d(1, affine=False), nn.Flatten(0))
    model = GEBM(Identity(), copy.deepcopy(energy)).double()  # type: ignore[arg-type]
    given = batch(DATA - 5.0, BASE + 5.0)
    assert Relativistic().double().base_loss(model, given).loss > 1.5  # log 2 if the difference were lost
