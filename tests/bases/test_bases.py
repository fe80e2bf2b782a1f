"""Tests of the properties of every registered base, and of what is particular to the built-in ones."""

import contextlib
import math

import pytest
import torch
from torch import nn

from gebm_kit.bases.dcgan import DcganBase
from gebm_kit.bases.mlp import MlpBase
from gebm_kit.bases.resnet import ResnetBase
from gebm_kit.bases.sngan import SnganBase
from gebm_kit.core.components import Registered, parameters
from gebm_kit.core.errors import DataError, RecipeError, UsageError
from gebm_kit.core.interfaces import Base, HasPretraining
from gebm_kit.core.layers import doublings
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.plugins import installed
from gebm_kit.core.priors import prior_sample

SHAPES = [(2,), (10,), (1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 12, 20), (1, 64, 4)]
# bases that need only parameters; the base read from a file has its own tests
RECORDS = [
    record
    for record in installed().registry.of_kind("base")
    if not any(parameter.required for parameter in parameters(record.load()).values())
]


def build(record: Registered, shape: tuple[int, ...], value_range: tuple[float, float] | None) -> Base:
    """Build a base, with few channels where that can be chosen, because large bases are slow here."""
    target = record.load()
    few = {"width": 8} if "width" in parameters(target) else {}
    return target(**few, data_shape=shape, value_range=value_range)


def served() -> list:
    """Return every registered base with every shape that it accepts."""
    pairs = []
    for record in RECORDS:
        for shape in SHAPES:
            with contextlib.suppress(DataError):
                build(record, shape, None)
                pairs.append(pytest.param(record, shape, id=f"{record.component.name}-{'x'.join(map(str, shape))}"))
    return pairs


@pytest.mark.parametrize(("record", "shape"), served())
class TestEveryBase:
    def test_shape_and_range(self, record, shape):
        for value_range in [(-1.0, 1.0), (0.0, 1.0), None]:
            base = build(record, shape, value_range)
            assert base.data_shape == shape
            assert base.prior.dim == base.latent_dim
            x = base(base.sample_prior(5, torch.Generator().manual_seed(0)))
            assert x.shape == (5, *shape)
            assert x.isfinite().all()
            if value_range is not None:
                assert value_range[0] <= x.min()
                assert x.max() <= value_range[1]

    def test_float64_and_gradient_reaches_z(self, record, shape):
        base = build(record, shape, (-1.0, 1.0)).double().eval()
        z = base.sample_prior(3, torch.Generator().manual_seed(0), torch.float64).requires_grad_()
        x = base(z)
        assert x.dtype == torch.float64
        (grad,) = torch.autograd.grad(x.square().sum(), z)
        assert grad.shape == z.shape
        assert (grad.abs().sum(1) > 0).all()

    def test_eval_mode_is_deterministic_and_rows_do_not_meet(self, record, shape):
        base = build(record, shape, (-1.0, 1.0)).double()
        z = base.sample_prior(6, torch.Generator().manual_seed(0), torch.float64)
        base(z)  # moves batch norm statistics away from their initial values
        base.eval()
        x = base(z)
        assert torch.equal(x, base(z))
        torch.testing.assert_close(base(z[:1]), x[:1], rtol=1e-9, atol=1e-12)

    def test_every_parameter_takes_part(self, record, shape):
        base = build(record, shape, (-1.0, 1.0))
        x = base(base.sample_prior(8, torch.Generator().manual_seed(0)))
        x.square().sum().backward()
        if isinstance(base, HasPretraining):  # its loss trains an encoder too
            base.pretraining_loss(x.detach()).backward()
        for name, parameter in base.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_every_base_serves_some_shape():
    assert {pair.values[0].component.name for pair in served()} == {r.component.name for r in RECORDS}


@pytest.mark.parametrize("prior", ["normal", "uniform", "sphere"])
def test_priors(prior):
    for base in (
        MlpBase(5, [8], prior=prior, data_shape=(2,)),
        DcganBase(5, 4, prior=prior, data_shape=(1, 8, 8)),
    ):
        z = base.sample_prior(100, torch.Generator().manual_seed(0))
        assert base.prior.name == prior
        assert torch.equal(z, prior_sample(base.prior, 100, torch.Generator().manual_seed(0)))
        if prior == "uniform":
            assert z.abs().max() <= 1
        if prior == "sphere":
            torch.testing.assert_close(z.norm(dim=1), torch.full((100,), math.sqrt(5.0)))


def test_mlp_without_hidden_layers_is_affine():
    base = MlpBase(3, [], data_scale=4.0, data_shape=(2,))
    (layer,) = [m for m in base.modules() if isinstance(m, nn.Linear)]
    z = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(base(z), 4.0 * (z @ layer.weight.T + layer.bias))


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
def test_mlp_norms(norm):
    base = MlpBase(3, [8, 8], norm=norm, data_shape=(2,))
    kinds = {"none": (), "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
    assert sum(isinstance(m, kinds[norm]) for m in base.modules()) == (0 if norm == "none" else 2)
    z = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    trained, evaluated = base(z), base.eval()(z)
    assert torch.equal(trained, evaluated) == (norm != "batch")


@pytest.mark.parametrize(
    ("sides", "count", "first"),
    [((4, 4), 2, (1, 1)), ((8, 8), 2, (2, 2)), ((12, 20), 2, (3, 5)), ((28, 28), 2, (7, 7)), ((32, 32), 3, (4, 4)),
     ((64, 64), 4, (4, 4)), ((64, 48), 3, (8, 6)), ((64, 4), 2, (16, 1))],
)  # fmt: skip
def test_dcgan_depth_follows_the_size(sides, count, first):
    assert doublings(*sides) == count
    base = DcganBase(4, 2, data_shape=(1, *sides))
    assert base.first_map == (2 * 2 ** (count - 1), *first)


@pytest.mark.parametrize("upsample", ["transpose", "nearest"])
@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
def test_dcgan_variants(upsample, norm):
    base = DcganBase(4, 4, upsample, norm, data_shape=(3, 16, 8), value_range=(0.0, 1.0))
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    trained, evaluated = base(z), base.eval()(z)
    assert trained.shape == (6, 3, 16, 8)
    assert torch.equal(trained, evaluated) == (norm != "batch")


def test_dcgan_in_channels_last_gives_the_same_images():
    base = DcganBase(4, 4, data_shape=(3, 16, 16)).double().eval()
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = base(z)
    torch.testing.assert_close(base.to(memory_format=torch.channels_last)(z), x, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("make", [DcganBase, SnganBase, ResnetBase])
def test_convolutional_bases_refuse_what_is_not_an_image(make):
    with pytest.raises(DataError, match=r"works on images.*\(2,\)"):
        make(data_shape=(2,))


@pytest.mark.parametrize("make", [DcganBase, SnganBase, ResnetBase])
@pytest.mark.parametrize(
    ("shape", "first"),
    [
        ((30, 30), (4, 4)),
        ((33, 47), (9, 12)),
        ((50, 50), (7, 7)),
        ((20, 21), (5, 6)),
        ((9, 8), (3, 2)),
        ((1, 3), (1, 1)),
        ((99, 101), (13, 13)),
    ],
)
def test_convolutional_bases_make_images_of_any_size(make, shape, first):
    base = make(4, 4, data_shape=(3, *shape), value_range=(-1.0, 1.0)).double().eval()
    z = base.sample_prior(2, torch.Generator().manual_seed(0), torch.float64).requires_grad_()
    x = base(z)
    assert x.shape == (2, 3, *shape)
    assert tuple(base.first_map[1:]) == first
    (grad,) = torch.autograd.grad(x.square().sum(), z)
    assert (grad != 0).all()


@pytest.mark.parametrize("make", [DcganBase, SnganBase, ResnetBase])
@pytest.mark.parametrize("side", [28, 32, 48, 64, 128])
@pytest.mark.parametrize("channels", [1, 3])
def test_convolutional_bases_make_images_of_the_usual_sizes(make, side, channels):
    base = make(4, 4, data_shape=(channels, side, side), value_range=(-1.0, 1.0)).double()
    z = base.sample_prior(2, torch.Generator().manual_seed(0), torch.float64).requires_grad_()
    x = base(z)
    assert x.shape == (2, channels, side, side)
    x.square().sum().backward()
    assert (z.grad != 0).all()
    for name, parameter in base.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_sngan_is_the_published_generator():
    """The layers are those of Table 3a for 32 x 32, (in, out, kernel), with a batch norm after all but the last."""
    table = [(512, 256, 4), (256, 128, 4), (128, 64, 4)]
    for latent_dim, total in ((128, 3_804_739), (100, 3_575_363)):
        dense = latent_dim * 4 * 4 * 512 + 2 * 512
        deconvolutions = sum(size * out * kernel**2 + 2 * out for size, out, kernel in table)
        base = SnganBase(latent_dim, data_shape=(3, 32, 32))
        assert count(base) == dense + deconvolutions + 64 * 3 * 9 + 3 == total
    maps = [SnganBase(data_shape=(3, side, side)).first_map for side in (28, 32, 48, 64, 128)]
    assert maps == [(256, 7, 7), (512, 4, 4), (512, 6, 6), (1024, 4, 4), (1024, 4, 4)]


def test_resnet_is_the_published_generator():
    """The layers are those of Table 4. The authors' implementation has 4,276,739 parameters, with biases before norms."""
    base = ResnetBase(128, data_shape=(3, 32, 32))
    assert count(base) == 4_276_739 - 3 * 256
    assert count(base.layers[0]) == 1_246_976 - 256
    assert count(base.project) == 528_384
    assert count(ResnetBase(data_shape=(3, 32, 32))) == 4_161_283
    channels = {
        28: [256, 256, 256],
        32: [256, 256, 256, 256],
        48: [512, 256, 128, 64],
        64: [1024, 512, 256, 128, 64],
        128: [1024, 1024, 512, 256, 128, 64],
    }
    for side, expected in channels.items():
        base = ResnetBase(4, 256, data_shape=(3, side, side))
        norms = [m.num_features for m in base.modules() if isinstance(m, nn.BatchNorm2d)]
        assert [base.first_map[0], *norms[1::2]] == expected  # the second norm of each block
        assert norms[-1] == expected[-1]


@pytest.mark.parametrize("make", [DcganBase, SnganBase, ResnetBase])
def test_sampling_evaluates_the_same_map(make):
    base = make(4, 4, data_shape=(3, 32, 32), value_range=(-1.0, 1.0)).double()
    energy = installed().registry.get("energy", "mlp").load()(data_shape=(3, 32, 32)).double()
    z = base.sample_prior(6, torch.Generator().manual_seed(0), torch.float64)
    for _ in range(3):
        base(2 * z)  # moves the batch norm statistics
    for norm in (m for m in base.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(1))
    base.eval()
    expected = base(z)
    with LatentPotential(GEBM(base, energy), 1.0):
        torch.testing.assert_close(base(z), expected, rtol=1e-10, atol=1e-12)
        assert any("forward" in part.__dict__ for part in base.modules())  # something is computed once and kept


def test_resnet_shortcut_is_the_published_one():
    """Doubling commutes with the 1x1 convolution after it."""
    block = ResnetBase(4, 4, data_shape=(3, 32, 32)).double().layers[0]
    x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    doubled, convolution = nn.Upsample(scale_factor=2), block.shortcut[0]
    torch.testing.assert_close(block.shortcut(x), convolution(doubled(x)), rtol=1e-12, atol=1e-12)


def test_arguments_are_checked():
    with pytest.raises(RecipeError, match="hidden must hold whole numbers"):
        MlpBase(4, [8, 0], data_shape=(2,))
    with pytest.raises(RecipeError, match=r"data_scale=2 has no effect on data bounded by \(0.0, 1.0\)"):
        MlpBase(4, data_scale=2.0, data_shape=(2,), value_range=(0.0, 1.0))
    with pytest.raises(UsageError, match="latent_dim must be a whole number >= 1"):
        MlpBase(0, data_shape=(2,))
    with pytest.raises(UsageError, match="did you mean batch"):
        MlpBase(norm="bach", data_shape=(2,))
    with pytest.raises(UsageError, match="prior 'cauchy' is unknown"):
        DcganBase(prior="cauchy", data_shape=(1, 8, 8))
