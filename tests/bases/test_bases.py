"""Properties of every registered base, and what is particular to the built-in ones."""

import contextlib
import math

import pytest
import torch
from torch import nn

from gebm_kit.bases.dcgan import DcganBase, doublings
from gebm_kit.bases.mlp import MlpBase
from gebm_kit.core.components import Registered
from gebm_kit.core.errors import DataError, RecipeError, UsageError
from gebm_kit.core.interfaces import Base
from gebm_kit.core.plugins import installed
from gebm_kit.core.priors import prior_sample

SHAPES = [(2,), (10,), (1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 12, 20), (1, 64, 4)]
RECORDS = installed().registry.of_kind("base")


def build(record: Registered, shape: tuple[int, ...], value_range: tuple[float, float] | None) -> Base:
    return record.load()(data_shape=shape, value_range=value_range)


def served() -> list:
    """Every registered base with every shape that it does not refuse."""
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
        base(z)  # gives batch norm statistics that are not the initial ones
        base.eval()
        x = base(z)
        assert torch.equal(x, base(z))
        torch.testing.assert_close(base(z[:1]), x[:1], rtol=1e-9, atol=1e-12)

    def test_every_parameter_takes_part(self, record, shape):
        base = build(record, shape, (-1.0, 1.0))
        base(base.sample_prior(8, torch.Generator().manual_seed(0))).square().sum().backward()
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


def test_dcgan_refuses_what_it_cannot_make():
    with pytest.raises(DataError, match=r"multiples of 4.*30 x 28"):
        DcganBase(data_shape=(1, 30, 28))
    with pytest.raises(DataError, match=r"works on images.*\(2,\)"):
        DcganBase(data_shape=(2,))


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
