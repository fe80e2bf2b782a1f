"""Checks of what every base and every energy must do, which plugin authors run on their own components."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from gebm_kit.core import contracts
from gebm_kit.core.classes import CAPABILITIES, ClassBase, ClassEnergy, classes_of, is_conditional
from gebm_kit.core.interfaces import Base, Energy, HasDensity, HasEncoder, HasPretraining, OnCodes
from gebm_kit.testing.conformance import conformance

CHECKED_ROWS = 5
"""Rows on which a module is checked: more than one, so that rows can depend on each other, and few, so that it is quick."""

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
"""Largest difference between a row's results alone and among others, relative to the largest value."""


@conformance("base")
def check_base(base: Base) -> None:
    """Check a base ``x = G(z)``: facts, shapes, independent rows in eval mode, gradients, float64, state round trip.

    The rows must satisfy ``G(z)_i = G(z_i)``, and ``dG(z)_i / dz_i`` must be finite and not zero everywhere. What else it
    offers is checked too: ``log_prob`` (B,), ``encode`` (B, Z) and ``pretraining_loss`` (). A conditional base is checked at
    its first and its last class, and must give each row of a mixed batch what it gives the row's class. The checks run on a
    copy, so the base itself does not change.

    Raises:
        AssertionError: a check failed, or the signature is not valid; the message names base, package, file and line.

    Example:
        >>> from gebm_kit.bases.mlp import MlpBase
        >>> check_base(MlpBase(latent_dim=3, hidden=[8], data_shape=(2,)))
    """
    contracts.check_base_facts(base)
    base = copy.deepcopy(base).eval()
    if is_conditional(base):
        _check_labels("base", base, base.sample_prior(CHECKED_ROWS, torch.Generator().manual_seed(0), _dtype(base)))
        for method in CAPABILITIES:
            if hasattr(base, method):
                contracts.check_takes_labels("base", base, method)
    for one in _held_at_classes("base", base):
        _check_base(one)


def _check_base(base: Base) -> None:
    """Check a base without classes, which may change."""
    shape = tuple(base.data_shape)
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        base = base.to(dtype)
        z = base.sample_prior(CHECKED_ROWS, generator, dtype)
        assert z.shape == (CHECKED_ROWS, base.latent_dim), f"prior draws must be (B, Z), but they are {tuple(z.shape)}"
        _check_rows("base", base, z, shape, dtype)
        x = base(z).detach()
        if isinstance(base, HasDensity):
            assert tuple(base.log_prob(x).shape) == (CHECKED_ROWS,), "log_prob must be (B,)"
        if isinstance(base, HasEncoder):
            assert tuple(base.encode(x).shape) == tuple(z.shape), "encode must return (B, Z)"
        if isinstance(base, HasPretraining):
            contracts.check_scalar("base", base, "its pretraining_loss", base.pretraining_loss(x))
    _check_learns("base", base, base.sample_prior(CHECKED_ROWS, generator, torch.float64))
    _check_state("base", base, base.sample_prior(CHECKED_ROWS, generator, torch.float64))


@conformance("energy")
def check_energy(energy: Energy, data_shape: tuple[int, ...]) -> None:
    """Check an energy ``E(x)``: one number a row, independent rows in eval mode, a live gradient, float64, state round trip.

    The rows must satisfy ``E(x)_i = E(x_i)``, and the gradient ``dE(x_i) / dx_i`` must not be zero, even at ten times the
    scale of data. A conditional energy is checked at its first and its last class, and must give each row of a mixed batch
    what it gives the row's class. The checks run on a copy, so the energy itself does not change. An energy on codes must be
    bound to a base.

    Args:
        energy: the energy.
        data_shape: shape of one data point, ``*D``.

    Raises:
        AssertionError: a check failed, or the signature is not valid; the message names energy, package, file and line.

    Example:
        >>> from gebm_kit.energies.mlp import MlpEnergy
        >>> check_energy(MlpEnergy(hidden=[8], data_shape=(2,)), (2,))
    """
    energy = copy.deepcopy(energy).eval()
    if is_conditional(energy):
        generator = torch.Generator().manual_seed(0)
        _check_labels(
            "energy", energy, torch.randn(CHECKED_ROWS, *data_shape, generator=generator, dtype=_dtype(energy))
        )
    for one in _held_at_classes("energy", energy):
        _check_energy(one, data_shape)


def _check_energy(energy: Energy, data_shape: tuple[int, ...]) -> None:
    """Check an energy without classes, which may change."""
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        energy = energy.to(dtype)
        x = torch.randn(CHECKED_ROWS, *data_shape, generator=generator, dtype=dtype)
        _check_rows("energy", energy, x, (), dtype)
        far = (10 * x).requires_grad_()
        (grad,) = torch.autograd.grad(energy(far).sum(), far)
        assert bool((grad.flatten(1) != 0).any(1).all()), "the gradient is zero far out: is the energy clamped?"
        if isinstance(energy, OnCodes):
            codes = energy.encode(x)
            contracts.check_energy_output(energy, energy.of_codes(codes), CHECKED_ROWS)
    rows = torch.randn(CHECKED_ROWS, *data_shape, generator=generator, dtype=torch.float64)
    _check_learns("energy", energy, rows)
    _check_state("energy", energy, rows)


def _dtype(module: nn.Module) -> torch.dtype:
    return next((p.dtype for p in [*module.parameters(), *module.buffers()] if p.is_floating_point()), torch.float32)


def _held_at_classes(kind: str, part: Any) -> list[Any]:
    """Return a conditional part held at its first and at its last class; any other part alone."""
    if not is_conditional(part):
        return [part]
    held = ClassBase if kind == "base" else ClassEnergy
    return [held(part, label) for label in sorted({0, part.num_classes - 1})]


def _check_labels(kind: str, part: Any, rows: Tensor) -> None:
    """Check the classes that a part states, and that each row of a mixed batch gets what its class gives it."""
    classes_of(*[part if kind == one else nn.Identity() for one in ("base", "energy")])
    contracts.check_takes_labels(kind, part, "forward")
    labels = torch.arange(len(rows)) % part.num_classes
    with torch.no_grad():
        mixed = part(rows.clone(), labels.clone())
        alone = torch.cat([part(row.clone(), label) for row, label in zip(rows.split(1), labels.split(1), strict=True)])
    contracts.check_rows_independent(kind, part, mixed, alone, TOLERANCE.get(mixed.dtype, TOLERANCE[torch.float32]))


def _check_rows(kind: str, module: nn.Module, rows: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Check that ``module`` maps each row on its own to ``shape``, differentiably, in ``dtype``."""
    given = rows.clone()
    with torch.no_grad():
        first: Any = module(given)
    if not torch.equal(given, rows):
        contracts.refuse_changed(kind, module, "its input")
    if kind == "base":
        contracts.check_base_output(module, first, CHECKED_ROWS, shape)
    else:
        contracts.check_energy_output(module, first, CHECKED_ROWS)
        contracts.check_finite(kind, module, "normal draws", first)
    assert first.dtype == dtype, f"{dtype} input must give {dtype} output, but it gives {first.dtype}"
    points = rows.clone().requires_grad_()
    result = module(points)
    contracts.check_gradient(kind, module, result, points, "z" if kind == "base" else "x")
    with torch.no_grad():
        contracts.check_repeatable(kind, module, first, module(rows.clone()), 0.0)
        alone = torch.cat([module(row.clone()) for row in rows.split(1)])
        contracts.check_rows_independent(kind, module, first, alone, TOLERANCE[dtype])
        some = module(rows[1:3].clone())
        contracts.check_rows_independent(kind, module, first[1:3], some, TOLERANCE[dtype])


def _check_learns(kind: str, module: nn.Module, rows: Tensor) -> None:
    """Check that the gradient reaches the module's parameters in training mode, if it has any that are learned."""
    learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
    twin = copy.deepcopy(module).train()
    output = twin(rows.clone())
    assert not learned or output.requires_grad, (
        "it has no gradient with respect to its own parameters: it is cut off (no_grad, detach or numpy)"
    )
    assert kind != "energy" or tuple(output.shape) == (len(rows),), "in training mode it must return (B,) too"


def _check_state(kind: str, module: nn.Module, rows: Tensor) -> None:
    """Check that a copy with overwritten weights gives the same results once the state is loaded back."""
    contracts.check_state(kind, module)
    twin = copy.deepcopy(module)
    with torch.no_grad():
        for tensor in twin.parameters():
            tensor.zero_()
        twin.load_state_dict(module.state_dict())
        assert torch.equal(twin(rows.clone()), module(rows.clone())), (
            "state_dict does not hold everything that the result depends on"
        )
