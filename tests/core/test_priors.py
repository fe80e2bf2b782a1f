"""Priors as images of the standard normal."""

import math

import pytest
import torch

from gebm_kit.core.priors import PRIORS, Prior, prior_sample

DIM, NUM = 3, 200_000


@pytest.mark.parametrize("name", PRIORS)
def test_protocol_and_reproducible_draws(name):
    prior = PRIORS[name](DIM)
    assert isinstance(prior, Prior)
    assert (prior.name, prior.dim) == (name, DIM)
    first, second = (prior_sample(prior, 7, torch.Generator().manual_seed(3), torch.float64) for _ in range(2))
    assert first.shape == (7, DIM)
    assert first.dtype == torch.float64
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("name", "variance", "fourth"),
    # Moments of one coordinate: N(0, 1); uniform on [-1, 1]; on a sphere of radius sqrt(3) in three dimensions a
    # coordinate is uniform on [-sqrt(3), sqrt(3)] (Archimedes).
    [("normal", 1.0, 3.0), ("uniform", 1 / 3, 1 / 5), ("sphere", 1.0, 9 / 5)],
)
def test_moments(name, variance, fourth):
    u = prior_sample(PRIORS[name](DIM), NUM, torch.Generator().manual_seed(0), torch.float64)
    for power, expected in ((1, 0.0), (2, variance), (3, 0.0), (4, fourth)):
        samples = u**power
        error = samples.std(0) / math.sqrt(NUM)
        assert ((samples.mean(0) - expected).abs() < 5 * error).all()  # about 1e-6 each
    cross = u[:, 0] * u[:, 1]
    assert cross.mean().abs() < 5 * cross.std() / math.sqrt(NUM)


def test_sphere_ignores_the_length_of_z_and_its_gradient_is_tangent():
    prior = PRIORS["sphere"](4)
    z = torch.randn(10, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    u = prior.from_normal(z)
    torch.testing.assert_close(u, prior.from_normal(7.0 * z))
    torch.testing.assert_close(u.norm(dim=1), torch.full((10,), 2.0, dtype=torch.float64))
    (grad,) = torch.autograd.grad((u * torch.arange(4.0)).sum(), z)
    torch.testing.assert_close((grad * z).sum(1), torch.zeros(10, dtype=torch.float64))


@pytest.mark.parametrize("name", PRIORS)
def test_maps_are_differentiable(name):
    z = torch.randn(4, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(PRIORS[name](DIM).from_normal, (z,))
