"""Tests of the gradient penalties against closed forms, on energies whose gradient is known."""

import math

import pytest
import torch
from torch import Tensor, nn

from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Batch, Energy, Penalty
from gebm_kit.core.plugins import installed
from gebm_kit.energies.conv import ConvEnergy
from gebm_kit.penalties.gradient import GradientPenalty, squared_gradient_norm
from gebm_kit.penalties.zero_centred import R1, R2

RECORDS = installed().registry.of_kind("penalty")


class Quadratic(Energy):
    """The energy ``E(x) = a |x|^2 / 2``, with gradient a x, whose squared norm is a^2 |x|^2."""

    def __init__(self, scale: float = 1.5) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * self.scale * x.flatten(1).square().sum(1)


def rows(num: int = 6, seed: int = 0, shape: tuple[int, ...] = (3,)) -> Tensor:
    return torch.randn(num, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch(num: int = 6, shape: tuple[int, ...] = (3,)) -> Batch:
    return Batch(rows(num, 0, shape), torch.zeros(num, 1), rows(num, 1, shape) + 1.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: r.component.name)
class TestEveryPenalty:
    def test_a_scalar_that_is_not_negative_and_trains_the_energy(self, record):
        penalty: Penalty = record.load()()
        energy = Quadratic()
        value = penalty(energy, batch(), generator())
        assert value.shape == ()
        assert value > 0
        assert penalty.every >= 1
        (grad,) = torch.autograd.grad(value, energy.scale)
        torch.testing.assert_close(grad, 2 * value.detach() / energy.scale.detach())  # proportional to a^2

    def test_weight_is_a_factor_and_every_is_the_engines(self, record):
        energy = Quadratic()
        once = record.load()(weight=1.0)(energy, batch(), generator())
        lazy = record.load()(weight=3.0, every=4)
        assert lazy.every == 4
        torch.testing.assert_close(lazy(energy, batch(), generator()), 3.0 * once)

    def test_images_and_reproducible(self, record):
        torch.manual_seed(0)
        energy, penalty = ConvEnergy(4, data_shape=(2, 8, 12)).double(), record.load()()
        value = penalty(energy, batch(5, (2, 8, 12)), generator(3))
        assert torch.equal(value, penalty(energy, batch(5, (2, 8, 12)), generator(3)))
        value.backward()
        assert all(p.grad is not None for p in energy.layers[0].parameters() if p.ndim > 1)

    def test_the_base_gets_no_gradient(self, record):
        shift = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        given = batch()
        value = record.load()()(Quadratic(), Batch(given.x, given.z, given.x_base + shift), generator())
        (grad,) = torch.autograd.grad(value, shift, allow_unused=True, materialize_grads=True)
        assert not grad.any()

    def test_ranges(self, record):
        for wrong in ({"weight": -1.0}, {"every": 0}, {"every": 1.5}):
            with pytest.raises(UsageError, match=next(iter(wrong))):
                record.load()(**wrong)


def test_squared_gradient_norm():
    matrix = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)

    class Form(Energy):
        def forward(self, x: Tensor) -> Tensor:
            return 0.5 * ((x @ matrix) * x).sum(1)

    x = rows(6, 0, (2,))
    torch.testing.assert_close(squared_gradient_norm(Form(), x), (x @ matrix).square().sum(1))


def test_r1_and_r2():
    given, energy = batch(), Quadratic(1.5)
    on_data, on_base = (x.square().sum(1).mean() * 1.5**2 for x in (given.x, given.x_base))
    torch.testing.assert_close(R1(10.0)(energy, given, generator()), 5.0 * on_data)
    torch.testing.assert_close(R2(10.0)(energy, given, generator()), 5.0 * on_base)
    R2()(energy, Batch(None, given.z, given.x_base), generator())  # R2 needs no data
    for penalty in (R1(), GradientPenalty()):
        with pytest.raises(UsageError, match="needs data"):
            penalty(energy, Batch(None, given.z, given.x_base), generator())


def test_gradient_penalty_where_the_segment_is_a_point():
    x = rows()
    given = Batch(x, x, x)
    slope = 1.5 * x.norm(dim=1)
    torch.testing.assert_close(GradientPenalty(2.0)(Quadratic(), given, generator()), 2 * slope.square().mean())
    centred = GradientPenalty(2.0, centre=1.0)(Quadratic(), given, generator())
    torch.testing.assert_close(centred, 2 * (slope - 1).square().mean())


def test_interpolates_are_uniform_on_the_segment():
    """With one u a row (not one a coordinate), E_u |u x + (1 - u) y|^2 = (|x|^2 + x.y + |y|^2) / 3."""
    num = 100_000
    x, y = torch.tensor([1.0, 2.0, 0.0]).double(), torch.tensor([-1.0, 0.5, 1.0]).double()
    seen = []

    class Spy(Quadratic):
        def forward(self, points: Tensor) -> Tensor:
            seen.append(points.detach())
            return super().forward(points)

    value = GradientPenalty(1.0)(Spy(1.0), Batch(x.expand(num, 3), x, y.expand(num, 3)), generator())
    expected = (x.square().sum() + (x * y).sum() + y.square().sum()) / 3
    spread = seen[0].square().sum(1).std() / math.sqrt(num)
    assert abs(value - expected) < 5 * spread
    shares = (seen[0] - y) / (x - y)
    torch.testing.assert_close(shares, shares[:, :1].expand(num, 3))
    assert shares.min() >= 0
    assert shares.max() <= 1


def test_a_flat_energy_has_a_finite_penalty_and_gradient():
    energy = Quadratic(0.0)
    for centre in (0.0, 1.0):
        value = GradientPenalty(1.0, centre=centre)(energy, batch(), generator())
        assert value.item() == pytest.approx(centre)
        (grad,) = torch.autograd.grad(value, energy.scale)
        assert grad.isfinite()


def test_base_draws_of_another_precision():
    given = batch()
    value = GradientPenalty()(
        Quadratic().float(), Batch(given.x.float(), given.z, given.x_base.bfloat16()), generator()
    )
    assert value.dtype == torch.float32
