"""Tests of FLO against its bound written out pair by pair, and against kale where its network is constant."""

import pytest
import torch
from torch import Tensor, nn

from gebm_kit.core.errors import RecipeError
from gebm_kit.core.interfaces import Base, Batch, Energy
from gebm_kit.core.model import GEBM
from gebm_kit.energies.conv import ConvEnergy
from gebm_kit.losses.flo import Flo
from gebm_kit.losses.kale import Kale


class Bent(Energy):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * self.layers(x).squeeze(1)


def make() -> tuple[GEBM, Batch, Flo]:
    torch.manual_seed(0)
    model = GEBM(Base(), Bent()).double()
    loss = Flo([5], data_scale=2.0, data_shape=(2,)).double()
    x, z = torch.randn(7, 2, dtype=torch.float64) + 1, torch.randn(9, 2, dtype=torch.float64)
    return model, Batch(x, z, z), loss


def bound(model: GEBM, batch: Batch, loss: Flo) -> Tensor:
    """Return the published bound, ``1 - E_P[u(x) + exp(-u(x)) E_B[exp(E(x) - E(x'))]]`` with u = E + v."""
    data, base = model.energy(batch.x), model.energy(batch.x_base)
    u = data + loss.v(batch.x)
    return 1 - (u + torch.exp(-u) * torch.exp(data.unsqueeze(1) - base).mean(1)).mean()


def test_it_is_minus_the_published_bound() -> None:
    model, batch, loss = make()
    with torch.no_grad():
        loss.readout.linear.weight.normal_()
        loss.constant.fill_(-0.3)
    assert loss.v(batch.x).std() > 0.01
    learned = [*model.energy.parameters(), *loss.parameters()]
    value, expected = loss.energy_loss(model, batch), -bound(model, batch, loss)
    torch.testing.assert_close(value.loss, expected)
    torch.testing.assert_close(value.metrics["kale"], -expected.detach())
    grads, expected_grads = torch.autograd.grad(value.loss, learned), torch.autograd.grad(expected, learned)
    torch.testing.assert_close(grads, expected_grads)


def test_a_constant_network_is_the_constant_of_kale() -> None:
    model, batch, loss = make()
    base = model.energy(batch.x_base).detach()
    kale = Kale("adam").double()
    for one in (loss, kale):
        one.initialise(base)
    assert torch.equal(loss.v(batch.x), kale.log_partition.detach().expand(7))
    with torch.no_grad():
        loss.constant += 0.5
        kale.log_partition += 0.5
    first, second = loss.energy_loss(model, batch), kale.energy_loss(model, batch)
    torch.testing.assert_close(first.loss, second.loss)
    torch.testing.assert_close(first.metrics["log_partition"], second.metrics["log_partition"])
    parameters = list(model.energy.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(first.loss, [*parameters, loss.constant]),
        torch.autograd.grad(second.loss, [*parameters, kale.log_partition]),
    )
    loss.after_energy_step(first.metrics)
    torch.testing.assert_close(loss.log_partition_estimate(), kale.log_partition.detach())


def test_a_new_phase_starts_from_a_constant() -> None:
    _, batch, loss = make()
    with torch.no_grad():
        loss.readout.linear.weight.normal_()
    loss.initialise(torch.full((4,), 3.0, dtype=torch.float64))
    assert torch.equal(loss.v(batch.x), torch.full((7,), -3.0, dtype=torch.float64))


def test_images() -> None:
    loss = Flo(data_shape=(3, 8, 6))
    model = GEBM(Base(), ConvEnergy(4, data_shape=(3, 8, 6)))
    x = torch.randn(5, 3, 8, 6)
    loss.initialise(model.energy(x).detach())
    terms = loss.energy_loss(model, Batch(x, x, x + 1))
    terms.loss.backward()
    assert terms.loss.isfinite()
    assert loss.readout.linear.weight.grad.abs().sum() > 0


def test_nothing_overflows() -> None:
    loss = Flo(data_shape=(2,))

    class Far(Energy):
        def forward(self, x: Tensor) -> Tensor:
            return 1e4 * x[:, 0]

    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    terms = loss.energy_loss(GEBM(Base(), Far()), Batch(x, x, x))
    terms.loss.backward()
    assert terms.loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in loss.parameters())


def test_arguments_are_checked() -> None:
    with pytest.raises(RecipeError, match="hidden must hold whole numbers"):
        Flo([0], data_shape=(2,))
