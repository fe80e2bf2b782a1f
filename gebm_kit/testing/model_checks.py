"""Checks of what every base and every energy must do, which plugin authors run on their own components."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from gebm_kit.core.interfaces import Base, Energy, HasDensity, HasEncoder
from gebm_kit.core.priors import Prior

CHECKED_ROWS = 5
"""Rows on which a module is checked: more than one, so that rows can depend on each other, and few, so that it is quick."""


def check_base(base: Base) -> None:
    """Check a base: shapes, prior, independent rows in eval mode, gradient with respect to z, float64, state round trip.

    The checks run on a copy, so the base itself does not change.

    Raises:
        AssertionError: a check failed; the message says which.
    """
    assert isinstance(base, Base), (
        f"a base must derive from gebm_kit.core.interfaces.Base; {type(base).__name__} does not"
    )
    assert isinstance(base.latent_dim, int), "base.latent_dim must be an int"
    assert base.latent_dim > 0, "base.latent_dim must be positive"
    assert isinstance(base.data_shape, tuple), "base.data_shape must be a tuple"
    prior = base.prior
    assert isinstance(prior, Prior), "base.prior must be a Prior, with name, dim and from_normal"
    assert prior.dim == base.latent_dim, (
        f"base.prior has {prior.dim} dimensions, but base.latent_dim is {base.latent_dim}"
    )
    base = copy.deepcopy(base).eval()
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        base = base.to(dtype)
        z = base.sample_prior(CHECKED_ROWS, generator, dtype)
        assert z.shape == (CHECKED_ROWS, base.latent_dim), f"prior draws must be (B, Z), but they are {tuple(z.shape)}"
        _check_rows(base, z, base.data_shape, dtype)
        x = base(z).detach()
        if isinstance(base, HasDensity):
            assert base.log_prob(x).shape == (CHECKED_ROWS,), "log_prob must be (B,)"
        if isinstance(base, HasEncoder):
            assert base.encode(x).shape == z.shape, "encode must return (B, Z)"
    _check_state(base, base.sample_prior(CHECKED_ROWS, generator, torch.float64))


def check_energy(energy: Energy, data_shape: tuple[int, ...]) -> None:
    """Check an energy: one number a row, independent rows in eval mode, a live gradient, float64, state round trip.

    The checks run on a copy, so the energy itself does not change. An energy on codes must be bound to a base.

    Args:
        energy: the energy.
        data_shape: shape of one data point, ``*D``.

    Raises:
        AssertionError: a check failed; the message says which.
    """
    assert isinstance(energy, Energy), (
        f"an energy must derive from gebm_kit.core.interfaces.Energy; {type(energy).__name__} does not"
    )
    energy = copy.deepcopy(energy).eval()
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        energy = energy.to(dtype)
        x = torch.randn(CHECKED_ROWS, *data_shape, generator=generator, dtype=dtype)
        _check_rows(energy, x, (), dtype)
        far = (10 * x).requires_grad_()
        (grad,) = torch.autograd.grad(energy(far).sum(), far)
        assert bool((grad.flatten(1) != 0).any(1).all()), "the gradient is zero far out: is the energy clamped?"
    _check_state(energy, torch.randn(CHECKED_ROWS, *data_shape, generator=generator, dtype=torch.float64))


def _check_rows(module: nn.Module, rows: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Check that ``module`` maps each row on its own to ``shape``, differentiably, in ``dtype``."""
    points = rows.clone().requires_grad_()
    result = module(points)
    expected = (CHECKED_ROWS, *shape)
    assert result.shape == expected, f"{CHECKED_ROWS} rows must give {expected}, but they give {tuple(result.shape)}"
    assert result.dtype == dtype, f"{dtype} input must give {dtype} output, but it gives {result.dtype}"
    assert bool(torch.isfinite(result).all()), "the result is not finite"
    (grad,) = torch.autograd.grad(result.sum(), points)
    assert bool(torch.isfinite(grad).all()), "the gradient with respect to the input is not finite"
    with torch.no_grad():
        assert torch.equal(module(rows), result), "two calls on the same rows differ in eval mode"
        tolerance = 1e-4 if dtype == torch.float32 else 1e-9
        alone = torch.cat([module(row) for row in rows.split(1)])
        assert torch.allclose(alone, result, rtol=tolerance, atol=tolerance), (
            "in eval mode a row's result must not depend on the other rows"
        )


def _check_state(module: nn.Module, rows: Tensor) -> None:
    """Check that a copy with overwritten weights gives the same results once the state is loaded back."""
    twin = copy.deepcopy(module)
    with torch.no_grad():
        for tensor in twin.parameters():
            tensor.zero_()
        twin.load_state_dict(module.state_dict())
        assert torch.equal(twin(rows), module(rows)), "state_dict does not hold everything that the result depends on"
