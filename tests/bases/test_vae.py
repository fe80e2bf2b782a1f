"""Tests of a variational autoencoder: its bounds, its encoder and its training."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gebm_kit.bases.vae import Vae
from gebm_kit.core.errors import DataError, RecipeError, UsageError
from gebm_kit.core.interfaces import HasDensity, HasEncoder, HasPretraining
from gebm_kit.testing import check_base


def linear_vae(noise: float = 0.5) -> Vae:
    """Build ``G(z) = W z + b`` with an affine encoder. log p(x) is then Gaussian, and q can be exact."""
    torch.manual_seed(0)
    return Vae(2, hidden=[], noise=noise, data_shape=(3,)).double()


def log_density(vae: Vae, x: Tensor) -> Tensor:
    linear = vae.decoder.layers[0]
    covariance = linear.weight @ linear.weight.T + torch.exp(2 * vae.log_noise) * torch.eye(3, dtype=x.dtype)
    return torch.distributions.MultivariateNormal(linear.bias, covariance).log_prob(x)


def make_exact(vae: Vae) -> None:
    """Set the exact encoder of a model whose posterior has no correlations, because W has orthogonal columns."""
    linear, encoder = vae.decoder.layers[0], vae.encoder[-1]
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0], [0.0, 0.0]]))
        precision = torch.diag(linear.weight.T @ linear.weight) * torch.exp(-2 * vae.log_noise) + 1
        gain = linear.weight.T * torch.exp(-2 * vae.log_noise) / precision.unsqueeze(1)
        encoder.weight.zero_()
        encoder.weight[:2] = gain
        encoder.bias[:2] = -gain @ linear.bias
        wanted = -0.5 * precision.log()
        encoder.bias[2:] = 10 * torch.atanh(wanted / 10)


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ({}, (2,)),
        ({"hidden": [8], "noise": 0.1}, (1, 4, 4)),
        ({"network": "conv", "width": 4, "latent_dim": 5}, (1, 8, 8)),
        ({"network": "conv", "width": 4, "kl_warmup": 5}, (3, 28, 28)),
    ],
)
def test_conformance(arguments, shape):
    torch.manual_seed(0)
    vae = Vae(**arguments, data_shape=shape, value_range=(-1.0, 1.0) if len(shape) == 3 else None)
    check_base(vae)
    assert isinstance(vae, HasEncoder)
    assert isinstance(vae, HasPretraining)
    assert not isinstance(vae, HasDensity)
    x = torch.randn(4, *shape).clamp(-1, 1)
    vae.pretraining_loss(x).backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in vae.parameters())


def test_with_the_exact_posterior_both_bounds_are_the_log_density():
    vae = linear_vae()
    make_exact(vae)
    x = 2 * torch.randn(50, 3, dtype=torch.float64)
    with torch.no_grad():
        expected = log_density(vae, x)
        torch.testing.assert_close(vae.importance_weighted_bound(x, 1), expected)
        torch.testing.assert_close(vae.importance_weighted_bound(x, 7), expected)
        elbo = torch.stack([vae.elbo(x) for _ in range(4000)])
    error = (elbo.mean(0) - expected) / (elbo.std(0) / math.sqrt(4000))
    assert float(error.abs().max()) < 5.5


def test_the_elbo_is_below_the_tighter_bound_which_is_below_the_log_density():
    vae = linear_vae()
    x = torch.randn(20, 3, dtype=torch.float64)
    with torch.no_grad():
        elbo = torch.stack([vae.elbo(x) for _ in range(2000)])
        tighter = torch.stack([vae.importance_weighted_bound(x, 20) for _ in range(200)])
        truth = log_density(vae, x)
    slack = 5 * (elbo.std(0) / math.sqrt(2000) + tighter.std(0) / math.sqrt(200))
    assert bool((elbo.mean(0) <= tighter.mean(0) + slack).all())
    assert bool((tighter.mean(0) <= truth + 5 * tighter.std(0) / math.sqrt(200)).all())
    assert float((truth - tighter.mean(0)).mean()) < 0.5 * float((truth - elbo.mean(0)).mean())


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ({"hidden": [16], "noise": 0.4}, (3,)),
        ({"hidden": [16, 8], "latent_dim": 5}, (1, 4, 4)),
        ({"network": "conv", "width": 4, "latent_dim": 3}, (1, 8, 8)),
    ],
)
def test_the_elbo_of_a_network_is_never_above_the_tighter_bound(arguments, shape):
    """A few updates come first, so that q is neither the prior nor exact."""
    torch.manual_seed(0)
    vae = Vae(**arguments, data_shape=shape).double()
    data = 0.5 * torch.randn(40, *shape, dtype=torch.float64).cumsum(-1)
    optimizer = torch.optim.Adam(vae.parameters(), 3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        vae.pretraining_loss(data).backward()
        optimizer.step()
    vae.eval()
    generator, x = torch.Generator().manual_seed(1), data[:10]
    with torch.no_grad():
        elbo = torch.stack([vae.elbo(x, generator) for _ in range(400)])
        tighter = torch.stack([vae.importance_weighted_bound(x, 20, generator) for _ in range(50)])
    error = (elbo.var(0) / len(elbo) + tighter.var(0) / len(tighter)).sqrt()
    assert bool((elbo.mean(0) <= tighter.mean(0) + 5 * error).all())
    assert bool((elbo.mean(0) < tighter.mean(0) - 5 * error).any()), "the two bounds were told apart nowhere"


def test_the_loss_is_minus_the_elbo():
    vae, x = linear_vae(), torch.randn(30, 3, dtype=torch.float64)
    torch.manual_seed(1)
    loss = vae.pretraining_loss(x)
    torch.manual_seed(1)
    torch.testing.assert_close(loss, -vae.elbo(x).mean())


def test_the_kl_term_warms_up_over_updates_and_is_saved():
    torch.manual_seed(0)
    vae = Vae(2, hidden=[4], noise=0.5, kl_warmup=4, data_shape=(3,)).double()
    x = torch.randn(200, 3, dtype=torch.float64)
    fit, divergence = vae.terms(x, torch.Generator().manual_seed(0))
    weights = []
    for _ in range(6):
        torch.manual_seed(3)
        loss = vae.pretraining_loss(x)
        torch.manual_seed(3)
        fit, divergence = vae.terms(x, None)
        weights.append(float(((loss + fit.mean()) / divergence.mean()).detach()))
    assert weights == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])
    twin = Vae(2, hidden=[4], noise=0.5, kl_warmup=4, data_shape=(3,)).double()
    twin.load_state_dict(vae.state_dict())
    assert float(twin.kl_updates) == 6
    vae.eval().pretraining_loss(x)
    assert float(vae.kl_updates) == 6


def test_in_eval_mode_the_loss_is_minus_the_elbo_whatever_the_warm_up():
    torch.manual_seed(0)
    vae = Vae(2, hidden=[4], noise=0.5, kl_warmup=1000, data_shape=(3,)).double().eval()
    x = torch.randn(20, 3, dtype=torch.float64)
    torch.manual_seed(3)
    loss = vae.pretraining_loss(x)
    torch.manual_seed(3)
    assert loss.item() == pytest.approx(-vae.elbo(x).mean().item(), rel=1e-12)


@pytest.mark.parametrize("noise", [None, 0.2])
def test_training_finds_a_line_in_the_plane(noise):
    torch.manual_seed(0)
    vae = Vae(1, hidden=[16], noise=noise, data_shape=(2,))
    data = torch.randn(512, 1) * torch.tensor([[2.0, 1.0]]) + 0.2 * torch.randn(512, 2)
    optimizer = torch.optim.Adam(vae.parameters(), 3e-2)
    for _ in range(600):  # the noise and the width of q can only shrink together, which takes many steps
        optimizer.zero_grad()
        vae.pretraining_loss(data).backward()
        optimizer.step()
    with torch.no_grad():
        error = (vae(vae.encode(data)) - data).square().mean().sqrt()
        draws = vae(torch.randn(4000, 1))
    assert float(error) < 0.25
    assert float(torch.exp(vae.log_noise.detach())) == pytest.approx(0.2, abs=0.06)
    torch.testing.assert_close(draws.std(0), data.std(0), atol=0.35, rtol=0)
    assert (noise is None) == isinstance(vae.log_noise, torch.nn.Parameter)


def test_bad_arguments():
    with pytest.raises(UsageError):
        Vae(noise=0.0, data_shape=(2,))
    with pytest.raises(RecipeError, match="hidden"):
        Vae(hidden=[0], data_shape=(2,))
    with pytest.raises(DataError, match="images"):
        Vae(network="conv", data_shape=(2,))


@pytest.mark.parametrize("shape", [(1, 9, 9), (3, 30, 20), (1, 33, 47)])
def test_convolutions_take_images_of_any_size(shape):
    vae = Vae(3, network="conv", width=2, data_shape=shape, value_range=(-1.0, 1.0)).eval()
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    loss = vae.pretraining_loss(x)
    assert bool(torch.isfinite(loss).all())
    assert vae(torch.randn(4, 3)).shape == x.shape
