"""What every base and energy must do, checked one fact at a time, and how an error names a component.

`gebm_kit.core.contracts` has the same for the other kinds, and says how these functions are used.

Shapes: B rows, Z latent size, ``*D`` data shape.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any, NoReturn

import torch
from torch import Tensor

from gebm_kit.core.attribution import describe
from gebm_kit.core.errors import GebmKitError, PluginError, UsageError
from gebm_kit.core.networks import HasSource
from gebm_kit.core.priors import Prior

GRADIENT_FREE = "pcn, elliptical, rwm or imh"
"""Samplers for an energy without gradient."""


def broken(kind: str, component: object, what: str, *, hint: str = "") -> GebmKitError:
    """Return the error for a component that does not do what it must: ``what`` follows its name, package, file and line.

    A part held at one class stands for the whole component. The error is a `PluginError`, or a UsageError where the
    fault is in a file that the component was read from, or in a function of the user's, which ``described`` names.
    """
    component = getattr(component, "whole", component)
    if isinstance(described := getattr(component, "described", None), str):  # a user's own function
        return UsageError(f"{described} {what}", hint=hint)
    if isinstance(component, HasSource) and getattr(component, "source_file", None) is not None:
        return UsageError(f"the {kind} read from {component.source_file} {what}", hint=hint)
    return PluginError(f"{describe(component, kind)} {what}", hint=hint)


def said(value: object) -> str:
    """Describe a returned value in a few words."""
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}".removeprefix("torch.")
    text = " ".join(repr(value).split())
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def versions(*rows: Tensor | None) -> tuple[int, ...]:
    """Return the version counters of tensors, which every change in place raises; nothing waits for the device."""
    return tuple(-1 if row is None or row.is_inference() else row._version for row in rows)


def refuse_changed(kind: str, component: object, what: str) -> NoReturn:
    """Raise the error for a component that changed its input in place; ``what`` names the input."""
    raise broken(
        kind,
        component,
        f"changes {what} in place; it must leave its input as it is",
        hint="Write x = x + 1 rather than x += 1, and clone before a call that ends in an underscore.",
    )


def same(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors hold the same values, NaN at the same places included; waits for the device."""
    if torch.equal(first, second):
        return True
    return torch.equal(first.nan_to_num(), second.nan_to_num()) and torch.equal(first.isnan(), second.isnan())


@contextlib.contextmanager
def untouched(kind: str, component: object, what: str, *rows: Tensor | None) -> Iterator[None]:
    """Raise if ``rows`` are changed in place inside the block, by their version counters.

    Raises:
        PluginError: they were.
    """
    before = versions(*rows)
    yield
    if versions(*rows) != before:
        refuse_changed(kind, component, what)


def check_takes_labels(kind: str, component: object, method: str) -> None:
    """Check that a method of a conditional component can be called with rows and their labels.

    Raises:
        PluginError: its signature does not allow it.
    """
    try:
        inspect.signature(getattr(component, method)).bind(None, None)
    except ValueError:  # a signature that can't be read
        return
    except TypeError as error:
        what = f"is conditional, and its {method} does not take the labels of the rows as second argument"
        raise broken(kind, component, what) from error


# --- base and energy -------------------------------------------------------------------------------------------------


def check_base_facts(base: object, data_shape: tuple[int, ...] | None = None) -> None:
    """Check what a base states: ``latent_dim``, ``data_shape`` and ``prior``.

    Args:
        base: the base.
        data_shape: shape of the data that it must make; None: any.

    Raises:
        PluginError: a fact is missing, of the wrong type, or contradicts another.
    """
    latent_dim, shape = getattr(base, "latent_dim", None), getattr(base, "data_shape", None)
    if not isinstance(latent_dim, int) or isinstance(latent_dim, bool) or latent_dim < 1:
        raise broken("base", base, f"must set latent_dim to a whole number >= 1, and it is {latent_dim!r}")
    if not isinstance(shape, tuple | list | torch.Size) or not all(isinstance(n, int) and n > 0 for n in shape):
        raise broken("base", base, f"must set data_shape to a tuple of whole numbers, and it is {shape!r}")
    prior = getattr(base, "prior", None)
    if not isinstance(prior, Prior):
        raise broken("base", base, f"must have a prior with name, dim and from_normal, and it has {said(prior)}")
    if prior.dim != latent_dim:
        raise broken("base", base, f"has a prior of {prior.dim} dimensions, but its latent_dim is {latent_dim}")
    if data_shape is not None and tuple(shape) != tuple(data_shape):
        raise broken("base", base, f"states data_shape {tuple(shape)}, but the data have shape {tuple(data_shape)}")


def check_base_output(base: object, x: Any, rows: int, data_shape: tuple[int, ...]) -> None:
    """Check ``x = G(z)`` for ``rows`` codes: floating-point rows (B, *D) that are finite.

    Raises:
        PluginError: it is something else.
    """
    expected = (rows, *data_shape)
    if not isinstance(x, Tensor):
        raise broken("base", base, f"returns {said(x)} for {rows} codes; it must return a tensor of shape {expected}")
    if tuple(x.shape) != expected:
        hint = "Its data_shape and what its forward returns must agree."
        raise broken("base", base, f"returns shape {tuple(x.shape)} for {rows} codes; it must be {expected}", hint=hint)
    if not x.is_floating_point():
        raise broken("base", base, f"returns {x.dtype}; it must return floating-point numbers")
    if not bool(torch.isfinite(x).all()):
        raise broken("base", base, "returns values that are not finite (NaN or infinity)")


def check_energy_output(energy: object, values: Any, rows: int) -> None:
    """Check the shape and type of ``E(x)`` for ``rows`` points: floating-point, one number a row; no waiting for a device.

    Raises:
        PluginError: it is something else.
    """
    if isinstance(values, Tensor) and values.shape == (rows,) and values.is_floating_point():
        return
    floating = isinstance(values, Tensor) and values.is_floating_point()
    raise broken(
        "energy",
        energy,
        f"must return one number per row, shape ({rows},), but returned {tuple(values.shape) if floating else said(values)}",
        hint="End the energy's forward with .flatten(1).sum(1) or .squeeze(-1).",
    )


def check_finite(kind: str, component: object, what: str, values: Tensor) -> None:
    """Check that all ``values`` are finite; ``what`` says what they are, such as "the energy of data".

    Raises:
        PluginError: one is NaN or infinite.
    """
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise broken(kind, component, f"returns {bad} of {values.numel()} numbers that are not finite for {what}")


def check_rows_independent(kind: str, component: object, together: Tensor, alone: Tensor, tolerance: float) -> None:
    """Check that rows evaluated alone give what they give among others, in eval mode.

    Args:
        kind: kind of the component.
        component: the component.
        together, alone: results for the same rows, evaluated at once and one by one.
        tolerance: largest difference, relative to the largest value.

    Raises:
        PluginError: they differ by more.
    """
    _check_same(
        kind,
        component,
        together,
        alone,
        tolerance,
        "gives a row another result in eval mode if other rows come with it; a row's result must depend on the row alone",
        "Chains share a batch: normalise with running statistics (batch norm in eval mode) or within a row.",
    )


def check_repeatable(kind: str, component: object, first: Tensor, second: Tensor, tolerance: float) -> None:
    """Check that two evaluations of the same rows agree, in eval mode.

    Raises:
        PluginError: they differ by more than ``tolerance``, relative to the largest value.
    """
    _check_same(
        kind,
        component,
        first,
        second,
        tolerance,
        "gives other results for the same rows when called again in eval mode; it must be a function of its input",
        "Dropout and noise belong to training mode: ask self.training.",
    )


def _check_same(
    kind: str, component: object, one: Tensor, other: Tensor, tolerance: float, what: str, hint: str
) -> None:
    one, other = one.detach().double(), other.detach().double()
    both = torch.isfinite(one) & torch.isfinite(other)
    same_holes = torch.equal(torch.isfinite(one), torch.isfinite(other))
    scale = torch.where(both, one, 0.0).abs().max() if one.numel() else one.new_zeros(())
    gap = torch.where(both, one - other, 0.0).abs().max() if one.numel() else one.new_zeros(())
    if not same_holes or bool(gap > tolerance * (1.0 + scale)):
        raise broken(kind, component, what, hint=hint)


def check_gradient(kind: str, component: object, output: Tensor, rows: Tensor, name: str) -> None:
    """Check that the gradient of ``output`` reaches ``rows``, unless the output is the same for all rows.

    Args:
        kind: kind of the component.
        component: the component.
        output: what it returned for the rows, (B, ...).
        rows: its input, which requires a gradient.
        name: name of the input, ``x`` or ``z``.

    Raises:
        PluginError: the output changes with the rows, and its gradient is cut off or zero, or not finite.
    """
    values = output.detach()
    known = values[torch.isfinite(values).flatten(1).all(1) if values.ndim > 1 else torch.isfinite(values)]
    if not bool((known != known[:1]).any()):
        return  # a constant has none, nor has one beside a wall
    grad = torch.autograd.grad(output.sum(), rows, allow_unused=True)[0] if output.requires_grad else None
    if grad is None or not bool((grad != 0).any()):
        cut = (
            "is cut off (no_grad, detach or numpy)" if grad is None else "is zero for every row (rounding or clamping)"
        )
        hint = f"Samplers without gradients can draw from it: {GRADIENT_FREE}." if kind == "energy" else ""
        raise broken(kind, component, f"has no gradient with respect to {name}: it {cut}", hint=hint)
    if bool(torch.isfinite(values).all()) and not bool(torch.isfinite(grad).all()):
        raise broken(kind, component, f"has a gradient with respect to {name} that is not finite where its value is")
