"""Tests of SMILE's clipped weights: its formula, its limit for large tau, and where A starts."""

import math

import pytest
import torch
from torch import Tensor

from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Base, Batch, Energy
from gebm_kit.core.model import GEBM
from gebm_kit.losses.kale_dv import KaleDV
from gebm_kit.losses.logistic import Logistic
from gebm_kit.losses.smile import Smile

A = 0.4
DATA, BASE = (2.5 * torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in (9, 11))


class Given(Energy):
    """An energy that is the data themselves."""

    def forward(self, x: Tensor) -> Tensor:
        return x.squeeze(1)


class Shifted(Energy):
    """An energy that is the data plus a parameter for each row."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros(20, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x.squeeze(1) + self.shift


def batch() -> Batch:
    return Batch(DATA.unsqueeze(1), torch.zeros(11, 1), BASE.unsqueeze(1))


def at(loss, log_partition: float):
    loss = loss.double()
    with torch.no_grad():
        loss.log_partition.fill_(log_partition)
    return loss


def value_and_gradient(loss) -> tuple[Tensor, Tensor]:
    energy = Shifted()
    value = loss.energy_loss(GEBM(Base(), energy), batch()).loss
    return value.detach(), torch.autograd.grad(value, energy.shift)[0]


@pytest.mark.parametrize("tau", [0.5, 2.0])
def test_the_formula(tau: float) -> None:
    loss = at(Smile(tau, "clipped"), A)
    value, gradient = value_and_gradient(loss)
    data, base = DATA.clone().requires_grad_(), BASE.clone().requires_grad_()
    clipped = torch.exp(-(base + A)).clamp(math.exp(-tau), math.exp(tau))
    expected = data.mean() + A + clipped.mean().log()
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(gradient, torch.cat(torch.autograd.grad(expected, [data, base])))
    metrics = loss.energy_loss(GEBM(Base(), Given()), batch()).metrics
    assert 0 < metrics["clipped"].item() == pytest.approx(((BASE + A).abs() > tau).double().mean().item())
    torch.testing.assert_close(metrics["kale"], -expected.detach())
    loss.after_energy_step(metrics)
    torch.testing.assert_close(loss.log_partition, A + 0.1 * clipped.mean().log().detach())


def test_a_wide_clip_is_donsker_varadhan_whatever_a_is() -> None:
    expected = value_and_gradient(KaleDV())
    for log_partition in (0.0, A, -3.0):
        torch.testing.assert_close(value_and_gradient(at(Smile(1e3, "clipped"), log_partition)), expected)


def test_the_logistic_gradient_goes_with_the_clipped_value() -> None:
    value, gradient = value_and_gradient(at(Smile(2.0), A))
    torch.testing.assert_close(value, value_and_gradient(at(Smile(2.0, "clipped"), A))[0])
    torch.testing.assert_close(gradient, value_and_gradient(at(Logistic(), A))[1])
    on_a = []
    for loss in (at(Smile(2.0), A), at(Logistic(), A)):
        terms = loss.energy_loss(GEBM(Base(), Shifted()), batch())
        on_a += torch.autograd.grad(terms.loss, loss.log_partition)
        before = loss.log_partition.detach().clone()
        loss.after_energy_step(terms.metrics)
        assert torch.equal(loss.log_partition, before)  # only Adam changes A
    torch.testing.assert_close(on_a[0], on_a[1])


def test_a_starts_where_its_rule_rests() -> None:
    base = 8.0 * BASE
    loss = Smile(2.0, "clipped").double()
    loss.initialise(base)
    mean = torch.exp(-(base + loss.log_partition)).clamp(math.exp(-2.0), math.exp(2.0)).mean()
    assert mean.item() == pytest.approx(1.0, abs=1e-3)


def test_arguments_are_checked() -> None:
    with pytest.raises(UsageError, match="clip must be a number > 0, got 0"):
        Smile(clip=0)
    with pytest.raises(UsageError, match="gradient 'js' is unknown"):
        Smile(gradient="js")  # type: ignore[arg-type]
