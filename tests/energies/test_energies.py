"""Tests of the properties of every registered energy, and of what is particular to the built-in ones."""

import contextlib
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from gebm_kit.core.components import Registered, parameters
from gebm_kit.core.errors import DataError, RecipeError, UsageError
from gebm_kit.core.frozen import Frozen
from gebm_kit.core.interfaces import Base, Energy, OnCodes
from gebm_kit.core.plugins import installed
from gebm_kit.energies.conv import ConvEnergy
from gebm_kit.energies.mlp import MlpEnergy
from gebm_kit.energies.resnet import ResnetEnergy
from gebm_kit.energies.sngan import SnganEnergy

SHAPES = [(2,), (10,), (1, 1, 1), (1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 12, 21), (3, 1, 33), (1, 5, 2)]
NEEDY = {"pretrained", "classifier", "sum"}
"""Energies that need a file, labels or parts; tests/energies/test_scorers.py tests them."""

RECORDS = [r for r in installed().registry.of_kind("energy") if r.component.name not in NEEDY]


class Doubled(Base):
    """The base ``G(z) = 2 z``, in the data's shape, with its inverse."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.latent_dim, self.data_shape = math.prod(shape), shape

    def forward(self, z: Tensor) -> Tensor:
        return 2 * z.unflatten(1, self.data_shape)

    def encode(self, x: Tensor) -> Tensor:
        return x.flatten(1) / 2

    def log_prob(self, x: Tensor) -> Tensor:
        return -0.5 * self.encode(x).square().sum(1)


def build(record: Registered, shape: tuple[int, ...]) -> Energy:
    """Build an energy, with few channels where that can be chosen, because large energies are slow here.

    An energy on codes is bound to a base.
    """
    target = record.load()
    few = {"width": 8} if "width" in parameters(target) else {}
    energy = target(**few, data_shape=shape)
    if isinstance(energy, OnCodes):
        energy.bind(Doubled(shape))
    return energy


def served() -> list:
    """Return every registered energy with every shape that it accepts."""
    pairs = []
    for record in RECORDS:
        for shape in SHAPES:
            with contextlib.suppress(DataError):
                build(record, shape)
                pairs.append(pytest.param(record, shape, id=f"{record.component.name}-{'x'.join(map(str, shape))}"))
    return pairs


def points(num: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(num, *shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def learned(energy: Energy) -> dict[str, torch.Tensor]:
    """Return the parameters that training changes. Some energies also have fixed ones, but each must have some to learn."""
    found = {name: parameter for name, parameter in energy.named_parameters() if parameter.requires_grad}
    assert found
    return found


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
        for part in energy.modules():
            if isinstance(part, ParametrizationList):
                part.eval()  # in training mode each evaluation changes the estimate of the spectral norm
        x = points(4, shape, torch.float64)
        torch.testing.assert_close(energy(x)[1:2], energy(x[1:2]), rtol=1e-9, atol=1e-12)

    def test_no_output_bias(self, record, shape):
        """The gradient of an output bias is 1 on every input; no parameter of the energy may have such a gradient."""
        energy = build(record, shape).double()
        grads = []
        for seed in range(3):
            x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            grads.append(torch.autograd.grad(energy(x).sum(), list(learned(energy).values())))
        for parts in zip(*grads, strict=True):
            constant = (parts[0] == parts[1]) & (parts[1] == parts[2]) & (parts[0].abs() == 1)
            assert not constant.any()

    def test_every_parameter_takes_part(self, record, shape):
        energy = build(record, shape)
        energy(points(8, shape)).square().sum().backward()
        for name, parameter in learned(energy).items():
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
    assert build(record, (1, 8, 8))(points(2, (1, 8, 8))).shape == (2,)


NORMALISED = [
    lambda: MlpEnergy([32, 16], spectral_norm=True, data_shape=(6,)),
    lambda: ConvEnergy(4, spectral_norm=True, data_shape=(2, 9, 12)),
    lambda: SnganEnergy(4, data_shape=(2, 8, 12)),
    lambda: ResnetEnergy(4, data_shape=(2, 8, 12)),
]
INPUTS = [(6,), (2, 9, 12), (2, 8, 12), (2, 8, 12)]


@pytest.mark.parametrize(
    ("make", "shape"), list(zip(NORMALISED, INPUTS, strict=True)), ids=["mlp", "conv", "sngan", "resnet"]
)
class TestSpectralNorm:
    def test_every_weight_has_norm_one(self, make, shape):
        torch.manual_seed(0)
        energy = make().double()
        x = points(2, shape, torch.float64)
        for _ in range(200):
            energy(x)
        energy.eval()
        layers = [m for m in energy.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        assert len(layers) >= 3
        for layer in layers:
            assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1.0, abs=1e-2)

    def test_eval_mode_leaves_the_estimate_alone(self, make, shape):
        energy = make()
        x = points(2, shape)
        energy.eval()
        before = {name: buffer.clone() for name, buffer in energy.named_buffers()}
        first = energy(x)
        assert torch.equal(first, energy(x))
        assert all(torch.equal(before[name], buffer) for name, buffer in energy.named_buffers())
        energy.train()
        energy(x)
        assert not all(torch.equal(before[name], buffer) for name, buffer in energy.named_buffers())

    def test_state_round_trip(self, make, shape):
        energy, twin = make(), make()
        x = points(2, shape)
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


@pytest.mark.parametrize("make", [MlpEnergy, ConvEnergy, SnganEnergy, ResnetEnergy])
def test_energies_are_summed_in_float32_under_autocast(make):
    energy = make(data_shape=(1, 8, 8))
    x = points(64, (1, 8, 8))
    with torch.autocast("cpu", torch.bfloat16):
        values = energy(x)
    assert values.dtype == torch.float32
    assert (values != values.bfloat16().float()).float().mean() > 0.9  # finer than bfloat16
    torch.testing.assert_close(values, energy(x), rtol=0.05, atol=0.02)


@pytest.mark.parametrize("spectral_norm", [False, True])
@pytest.mark.parametrize("make", [ConvEnergy, SnganEnergy, ResnetEnergy])
def test_channels_last_gives_the_same_energies(make, spectral_norm):
    energy = make(4, spectral_norm=spectral_norm, data_shape=(3, 12, 16)).double().eval()
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


@pytest.mark.parametrize("make", [SnganEnergy, ResnetEnergy])
@pytest.mark.parametrize("side", [28, 32, 48, 64, 128])
@pytest.mark.parametrize("channels", [1, 3])
def test_published_energies_serve_the_usual_sizes(make, side, channels):
    energy = make(4, data_shape=(channels, side, side)).double()
    x = points(2, (channels, side, side), torch.float64).requires_grad_()
    values = energy(x)
    assert values.shape == (2,)
    values.sum().backward()
    assert (x.grad != 0).all()
    for name, parameter in energy.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("make", [SnganEnergy, ResnetEnergy])
@pytest.mark.parametrize("shape", [(1, 30, 28), (3, 33, 47), (1, 50, 50), (3, 9, 8), (1, 1, 3), (1, 99, 101)])
def test_published_energies_see_every_pixel_of_any_size(make, shape):
    energy = make(4, "silu", data_shape=shape).double()
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    values = energy(x)
    assert values.shape == (2,)
    (grad,) = torch.autograd.grad(values.sum(), x)
    assert (grad != 0).all()


@pytest.mark.parametrize("make", [SnganEnergy, ResnetEnergy])
def test_published_energies_refuse_what_is_not_an_image(make):
    with pytest.raises(DataError, match=r"works on images.*\(2,\)"):
        make(data_shape=(2,))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_sngan_is_the_published_discriminator():
    """The convolutions are those of Table 3b for 32 x 32, (in, out, kernel). The last layer has no bias here."""
    table = [(3, 64, 3), (64, 64, 4), (64, 128, 3), (128, 128, 4), (128, 256, 3), (256, 256, 4), (256, 512, 3)]
    energy = SnganEnergy(data_shape=(3, 32, 32))
    made = [m for m in energy.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels, m.kernel_size[0]) for m in made] == table
    assert [m.stride[0] for m in made] == [1, 2, 1, 2, 1, 2, 1]
    total = sum(size * out * kernel**2 + out for size, out, kernel in table) + 512 * 4 * 4
    assert count(energy) == total == 2_935_872
    assert {m.negative_slope for m in energy.modules() if isinstance(m, nn.LeakyReLU)} == {0.1}


def test_resnet_is_the_published_discriminator():
    """The layers are those of Table 4. The number of parameters is that of the authors' implementation."""
    energy = ResnetEnergy(data_shape=(3, 32, 32))
    blocks = list(energy.layers[:-1])
    assert [count(block) for block in blocks] == [151_680, 311_680, 295_168, 295_168]
    assert count(energy) == 1_053_824
    assert not any(isinstance(m, nn.BatchNorm2d) for m in energy.modules())
    channels = {
        28: ([128, 128, 128, 128], 7),
        32: ([128, 128, 128, 128], 8),
        48: ([64, 128, 256, 512, 1024], 3),
        64: ([64, 128, 256, 512, 1024], 2),
        128: ([64, 128, 256, 512, 1024, 1024], 4),
    }
    for side, (expected, last) in channels.items():
        energy = ResnetEnergy(data_shape=(3, side, side), spectral_norm=False).eval()
        x = torch.zeros(1, 3, side, side)
        seen = []
        for block in energy.layers[:-1]:
            x = block(x)
            seen.append(x.shape[1])
        assert seen == expected
        assert x.shape[2:] == (last, last)


def test_resnet_sums_over_places():
    energy = ResnetEnergy(4, data_shape=(1, 8, 8)).double().eval()
    features = energy.layers(points(3, (1, 8, 8), torch.float64))
    torch.testing.assert_close(energy.readout(features.sum((2, 3))), energy(points(3, (1, 8, 8), torch.float64)))
    assert features.shape == (3, 4, 2, 2)


def test_resnet_shortcut_is_the_published_one():
    """Pooling commutes with the 1x1 convolution that the published blocks have before it."""
    block = ResnetEnergy(4, data_shape=(1, 8, 8)).double().eval().layers[1]
    x = points(2, (4, 4, 4), torch.float64)
    pool, convolution = block.shortcut
    torch.testing.assert_close(block.shortcut(x), pool(convolution(x)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [SnganEnergy, ResnetEnergy])
def test_what_is_frozen_gives_the_same_energies(make):
    energy = make(4, data_shape=(3, 12, 16)).double()
    x = points(3, (3, 12, 16), torch.float64)
    energy(x)
    expected = energy.eval()(x)
    frozen = Frozen(energy)
    torch.testing.assert_close(energy(x), expected, rtol=1e-12, atol=1e-12)
    frozen.restore()
    assert torch.equal(energy(x), expected)


@pytest.mark.parametrize("make", [SnganEnergy, ResnetEnergy])
def test_spectral_norm_bounds_the_slope(make):
    """Large weights do not change the normalised energy, but make the plain one steep."""
    x = points(4, (1, 8, 8), torch.float64).requires_grad_()
    slopes = {}
    for normalised in (True, False):
        for scale in (1.0, 10.0):
            torch.manual_seed(0)
            energy = make(4, spectral_norm=normalised, data_shape=(1, 8, 8)).double()
            with torch.no_grad():
                for name, parameter in energy.named_parameters():
                    if "weight" in name:
                        parameter.mul_(scale)
            for _ in range(100):
                energy(x)
            (grad,) = torch.autograd.grad(energy.eval()(x).sum(), x)
            slopes[normalised, scale] = float(grad.flatten(1).norm(dim=1).max())
    assert slopes[True, 10.0] == pytest.approx(slopes[True, 1.0], rel=1e-3)
    assert slopes[False, 10.0] > 100 * slopes[False, 1.0]
