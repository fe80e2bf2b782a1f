"""Properties of every registered energy, and what is particular to the built-in ones."""

import contextlib

import pytest
import torch
from torch import nn

from gebm_kit.core.components import Registered
from gebm_kit.core.errors import DataError, RecipeError, UsageError
from gebm_kit.core.interfaces import Energy
from gebm_kit.core.plugins import installed
from gebm_kit.energies.conv import ConvEnergy
from gebm_kit.energies.mlp import MlpEnergy

SHAPES = [(2,), (10,), (1, 1, 1), (1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 12, 21), (3, 1, 33), (1, 5, 2)]
RECORDS = installed().registry.of_kind("energy")


def build(record: Registered, shape: tuple[int, ...]) -> Energy:
    return record.load()(data_shape=shape)


def served() -> list:
    """Every registered energy with every shape that it does not refuse."""
    pairs = []
    for record in RECORDS:
        for shape in SHAPES:
            with contextlib.suppress(DataError):
                build(record, shape)
                pairs.append(pytest.param(record, shape, id=f"{record.component.name}-{'x'.join(map(str, shape))}"))
    return pairs


def points(num: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(num, *shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize(("record", "shape"), served())
class TestEveryEnergy:
    def test_one_number_per_row(self, record, shape):
        energy = build(record, shape)
        for num in (1, 5):
            values = energy(points(num, shape))
            assert values.shape == (num,)
            assert values.dtype == torch.float32
            assert values.isfinite().all()

    def test_float64_and_gradient_at_every_coordinate(self, record, shape):
        energy = build(record, shape).double()
        x = points(3, shape, torch.float64).requires_grad_()
        values = energy(x)
        assert values.dtype == torch.float64
        (grad,) = torch.autograd.grad(values.sum(), x)
        assert (grad != 0).all()

    def test_rows_do_not_meet_even_in_training(self, record, shape):
        energy = build(record, shape).double().train()
        x = points(4, shape, torch.float64)
        torch.testing.assert_close(energy(x)[1:2], energy(x[1:2]), rtol=1e-9, atol=1e-12)

    def test_no_output_bias(self, record, shape):
        """A bias b in the last layer has the gradient 1 on every input; no single parameter may have it."""
        energy = build(record, shape).double()
        grads = []
        for seed in range(3):
            x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            grads.append(torch.autograd.grad(energy(x).sum(), list(energy.parameters())))
        for parts in zip(*grads, strict=True):
            constant = (parts[0] == parts[1]) & (parts[1] == parts[2]) & (parts[0].abs() == 1)
            assert not constant.any()

    def test_every_parameter_takes_part(self, record, shape):
        energy = build(record, shape)
        energy(points(8, shape)).square().sum().backward()
        for name, parameter in energy.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name

    def test_penalties_can_differentiate_twice(self, record, shape):
        energy = build(record, shape)
        x = points(2, shape).requires_grad_()
        (grad,) = torch.autograd.grad(energy(x).sum(), x, create_graph=True)
        grad.square().sum().backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in energy.parameters())


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: r.component.name)
def test_every_energy_serves_images(record):
    assert record.load()(data_shape=(1, 8, 8))(points(2, (1, 8, 8))).shape == (2,)


NORMALISED = [
    lambda: MlpEnergy([32, 16], spectral_norm=True, data_shape=(6,)),
    lambda: ConvEnergy(4, spectral_norm=True, data_shape=(2, 9, 12)),
]


@pytest.mark.parametrize("make", NORMALISED, ids=["mlp", "conv"])
class TestSpectralNorm:
    def test_every_weight_has_norm_one(self, make):
        energy = make().double()
        x = points(2, (6,) if isinstance(energy, MlpEnergy) else (2, 9, 12), torch.float64)
        for _ in range(200):
            energy(x)
        energy.eval()
        layers = [m for m in energy.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        assert len(layers) >= 3
        for layer in layers:
            assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1.0, abs=1e-3)

    def test_eval_mode_leaves_the_estimate_alone(self, make):
        energy = make()
        x = points(2, (6,) if isinstance(energy, MlpEnergy) else (2, 9, 12))
        energy.eval()
        before = {name: buffer.clone() for name, buffer in energy.named_buffers()}
        first = energy(x)
        assert torch.equal(first, energy(x))
        assert all(torch.equal(before[name], buffer) for name, buffer in energy.named_buffers())
        energy.train()
        energy(x)
        assert not all(torch.equal(before[name], buffer) for name, buffer in energy.named_buffers())

    def test_state_round_trip(self, make):
        energy, twin = make(), make()
        x = points(2, (6,) if isinstance(energy, MlpEnergy) else (2, 9, 12))
        energy(x)
        twin.load_state_dict(energy.state_dict())
        assert torch.equal(energy.eval()(x), twin.eval()(x))


def test_normalised_mlp_is_lipschitz():
    energy = MlpEnergy([64, 64], activation="relu", spectral_norm=True, data_scale=0.5, data_shape=(3,)).double()
    x, y = points(500, (3,), torch.float64), 3 * points(500, (3,), torch.float64).flip(0)
    for _ in range(200):
        energy(x)
    energy.eval()
    slope = (energy(x) - energy(y)).abs() / (x - y).norm(dim=1)
    assert slope.max() <= 1.0 / 0.5 * 1.01  # one over data_scale


@pytest.mark.parametrize("make", [MlpEnergy, ConvEnergy])
def test_data_scale_divides_the_input(make):
    torch.manual_seed(0)
    plain = make(data_shape=(1, 8, 8))
    torch.manual_seed(0)
    scaled = make(data_scale=4.0, data_shape=(1, 8, 8))
    x = points(3, (1, 8, 8))
    torch.testing.assert_close(scaled(4.0 * x), plain(x))


class TestFourierFeatures:
    def test_they_are_sines_and_cosines_beside_the_coordinates(self):
        torch.manual_seed(0)
        energy = MlpEnergy([], fourier_features=5, fourier_scale=3.0, data_scale=2.0, data_shape=(2,)).double()
        x = points(4, (2,), torch.float64)
        angles = (x / 2.0) @ energy.frequencies.T
        features = torch.cat([x / 2.0, angles.sin(), angles.cos()], dim=1)
        torch.testing.assert_close(energy(x), features @ energy.readout.linear.weight[0])

    def test_frequencies_are_fixed_scaled_and_part_of_the_state(self):
        torch.manual_seed(0)
        energy, twin = (MlpEnergy([8], fourier_features=2000, fourier_scale=3.0, data_shape=(2,)) for _ in range(2))
        assert energy.frequencies.shape == (2000, 2)
        assert energy.frequencies.std().item() == pytest.approx(3.0, rel=0.1)
        assert "frequencies" not in dict(energy.named_parameters())
        twin.load_state_dict(energy.state_dict())
        assert torch.equal(twin(points(3, (2,))), energy(points(3, (2,))))

    def test_without_them_the_energy_is_plain(self):
        assert MlpEnergy([8], data_shape=(2,)).layers[0].in_features == 2


@pytest.mark.parametrize("make", [MlpEnergy, ConvEnergy])
def test_energies_are_summed_in_float32_under_autocast(make):
    energy = make(data_shape=(1, 8, 8))
    x = points(64, (1, 8, 8))
    with torch.autocast("cpu", torch.bfloat16):
        values = energy(x)
    assert values.dtype == torch.float32
    assert (values != values.bfloat16().float()).float().mean() > 0.9  # finer than bfloat16
    torch.testing.assert_close(values, energy(x), rtol=0.05, atol=0.02)


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_conv_in_channels_last_gives_the_same_energies(spectral_norm):
    energy = ConvEnergy(4, spectral_norm=spectral_norm, data_shape=(3, 12, 16)).double().eval()
    x = points(5, (3, 12, 16), torch.float64)
    expected = energy(x)
    energy.to(memory_format=torch.channels_last)
    torch.testing.assert_close(energy(x.to(memory_format=torch.channels_last)), expected, rtol=1e-10, atol=1e-12)


def test_conv_halves_until_the_map_is_small():
    for shape in [(1, 8, 8), (1, 28, 28), (3, 64, 64), (1, 100, 7), (1, 1, 50)]:
        energy = ConvEnergy(2, data_shape=shape)
        *_, height, width = energy.layers(torch.zeros(1, *shape)).shape
        assert max(height, width) <= 4
        assert min(height, width) >= 1
    channels = [m.out_channels for m in ConvEnergy(2, data_shape=(3, 128, 128)).modules() if isinstance(m, nn.Conv2d)]
    assert channels == [2, 4, 8, 16, 16, 16]


def test_arguments_are_checked():
    with pytest.raises(DataError, match=r"conv energy works on images.*\(2,\)"):
        ConvEnergy(data_shape=(2,))
    with pytest.raises(RecipeError, match="hidden must hold whole numbers"):
        MlpEnergy([16, -1], data_shape=(2,))
    with pytest.raises(UsageError, match="activation 'sliu' is unknown; did you mean silu"):
        MlpEnergy(activation="sliu", data_shape=(2,))
    with pytest.raises(UsageError, match="data_scale must be a number > 0"):
        ConvEnergy(data_scale=0.0, data_shape=(1, 8, 8))
