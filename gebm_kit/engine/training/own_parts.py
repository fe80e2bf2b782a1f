"""The caller's own modules as base and energy: what they state, what can be inferred, and one trial of each.

Shapes: B batch, Z latent size, ``*D`` data shape.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gebm_kit.core.classes import decoded, scored
from gebm_kit.core.errors import GebmKitError, UsageError
from gebm_kit.core.interfaces import Base, Dataset, Energy, HasFitting, HasLabels, OnCodes
from gebm_kit.core.own_modules import ModuleBase, ModuleEnergy, named
from gebm_kit.core.preserved import preserved
from gebm_kit.core.priors import prior_sample
from gebm_kit.core.progress import note

TRIAL_ROWS = 2
"""Rows of a trial: more than one, so that a shape tells rows from what they hold."""

TRIED = (*range(1, 129), 200, 256, 500, 512, 1000, 1024)
"""Sizes of a latent code that are tried where no layer says more."""


def base_facts(base: nn.Module, dataset: Dataset, latent_dim: int | None) -> dict[str, Any]:
    """Return what the recipe says of the caller's base: its latent size and, where it takes labels, its classes.

    Args:
        base: a module, or a `Base`.
        dataset: the data.
        latent_dim: the caller's argument; None to find it out.

    Raises:
        UsageError: the latent size can't be found out, or the module can't make points of the data's shape from codes.
    """
    shape = tuple(dataset.data_shape)
    if isinstance(base, Base):
        if latent_dim is not None and latent_dim != getattr(base, "latent_dim", latent_dim):
            raise UsageError(f"latent_dim is {latent_dim}, and the base {named(base)} states {base.latent_dim}")
        _check_shape(base, shape)
        return {"latent_dim": getattr(base, "latent_dim", None)}
    _check_module("base", base)
    _check_shape(base, shape)
    classes = _classes("base", base, dataset)
    own = getattr(base, "latent_dim", None)
    if latent_dim is None and own is not None:
        if not isinstance(own, int) or isinstance(own, bool) or own < 1:
            raise UsageError(f"the base {named(base)} states latent_dim {own!r}; a whole number >= 1 is needed")
        latent_dim = own
    if latent_dim is None:
        latent_dim = _found_size(base, shape, classes)
        note(
            f"base: {type(base).__name__} takes codes of {latent_dim} numbers, as a trial shows (latent_dim={latent_dim})"
        )
    error = _trial(base, latent_dim, shape, classes)
    if error:
        raise UsageError(f"the base {named(base)} {error}", hint=_shape_hint(shape))
    return {"latent_dim": latent_dim, **classes}


def energy_facts(energy: nn.Module, dataset: Dataset, name: str = "energy") -> dict[str, Any]:
    """Return what the recipe says of the caller's energy: its classes, where it takes labels. A note tells of values (B, 1).

    Raises:
        UsageError: the module does not give one number for each point of the data.
    """
    if isinstance(energy, Energy) and (energy.conditional or isinstance(energy, OnCodes | HasFitting)):
        return {}  # the check before the first step looks at it, once it can be called
    _check_module(name, energy)
    own = isinstance(energy, Energy)
    classes = {} if own else _classes(name, energy, dataset)
    rows = dataset.split("train").first(TRIAL_ROWS)
    rows = rows.expand(TRIAL_ROWS, *rows.shape[1:]) if len(rows) < TRIAL_ROWS else rows
    wrapped: Energy = energy if isinstance(energy, Energy) else ModuleEnergy(energy, **classes)
    labels = torch.zeros(TRIAL_ROWS, dtype=torch.int64) if classes else None
    what = f"rows of shape {tuple(rows.shape)}"
    with preserved(energy, device=_device(energy)), torch.no_grad():
        energy.eval()
        raw: list[Any] = []
        hook = energy.register_forward_hook(lambda *call: raw.append(call[2]))
        try:
            values = _called(
                "energy", energy, lambda: scored(wrapped, _placed(rows, energy), _placed(labels, energy)), what
            )
        finally:
            hook.remove()
    if not isinstance(values, Tensor) or values.shape != (TRIAL_ROWS,):
        seen = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise UsageError(
            f"the energy {named(energy)} returns {seen} for {TRIAL_ROWS} rows of the data; one number a row is needed, "
            "shape (B,) or (B, 1)",
            hint="End its forward with .flatten(1).sum(1), or with a linear layer of one output.",
        )
    if not own and raw and isinstance(raw[-1], Tensor) and raw[-1].ndim > 1:
        note(f"energy: {type(energy).__name__} returns shape (B, 1); its values are taken as (B,)")
    return classes


def _check_shape(base: nn.Module, shape: tuple[int, ...]) -> None:
    stated = getattr(base, "data_shape", None)
    if isinstance(stated, tuple | list) and tuple(stated) != shape:
        raise UsageError(f"the base {named(base)} states data_shape {tuple(stated)}, and the data have shape {shape}")


def _check_module(kind: str, module: nn.Module) -> None:
    lazy = next((name for name, value in module.named_parameters() if is_lazy(value)), None)
    if lazy is not None:
        raise UsageError(
            f"the {kind} {named(module)} has a lazy weight, {lazy!r}, whose shape is unknown until its first call",
            hint="Call the module once on a few rows before gk.fit.",
        )


def _classes(kind: str, module: nn.Module, dataset: Dataset) -> dict[str, Any]:
    """Return ``conditional`` and ``num_classes`` of a module that takes labels; {} for another.

    A module takes labels if its attribute ``conditional`` says so, or if its forward has a second argument without default.
    """
    stated = getattr(module, "conditional", None)
    conditional = _needs_two(module) if stated is None else bool(stated)
    if not conditional:
        return {}
    count = dataset.num_classes if isinstance(dataset, HasLabels) else None
    own = getattr(module, "num_classes", None)
    if count is None:
        raise UsageError(
            f"the {kind} {named(module)} takes labels as its second argument, and the data have none",
            hint="Give the class of each row: gk.fit(..., labels=...).",
        )
    if own is not None and own != count:
        raise UsageError(f"the {kind} {named(module)} states {own} classes, and the data have {count}")
    return {"conditional": True, "num_classes": count}


def _needs_two(module: nn.Module) -> bool:
    try:
        given = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(one.kind in kinds and one.default is inspect.Parameter.empty for one in given) == 2


def _found_size(base: nn.Module, shape: tuple[int, ...], classes: dict[str, Any]) -> int:
    """Return the size of codes from which the module makes points of the data's shape: by its layers, else by trial.

    Raises:
        UsageError: no size that is tried works, or several do.
    """
    advice = "State it: gk.fit(..., latent_dim=N), or an attribute latent_dim of the module."
    inputs = list(dict.fromkeys(_layer_inputs(base)))
    for size in inputs:
        if not _trial(base, size, shape, classes):
            return size
    found = [size for size in TRIED if not _trial(base, size, shape, classes)]
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(map(str, found[:5])) + ", ..." * (len(found) > 5)
        raise UsageError(
            f"the base {named(base)} takes codes of several sizes ({listed}), so latent_dim is not known", hint=advice
        )
    first = (
        _trial(base, inputs[0], shape, classes) if inputs else "makes points of that shape from no code that was tried"
    )
    raise UsageError(
        f"the base {named(base)} does not state latent_dim, and no size that was tried gives points of shape {shape}: with "
        f"{inputs[0] if inputs else 'other'} numbers it {first}",
        hint=f"{advice} {_shape_hint(shape)}",
    )


def _layer_inputs(base: nn.Module) -> Iterator[int]:
    """Yield the input sizes of the module's layers, in their order."""
    for layer in base.modules():
        for name in ("in_features", "in_channels", "input_size"):
            size = getattr(layer, name, None)
            if isinstance(size, int) and size > 0:
                yield size
                break


def _shape_hint(shape: tuple[int, ...]) -> str:
    end = f" It may end with nn.Unflatten(1, {shape})." if len(shape) > 1 else ""
    return f"A base maps codes (B, latent_dim) to points (B, {', '.join(map(str, shape))}).{end}"


def _trial(base: nn.Module, size: int, shape: tuple[int, ...], classes: dict[str, Any]) -> str:
    """Return what is wrong with the module on codes of a size; "" if it makes points of the shape."""
    wrapped = ModuleBase(base, size, shape, **classes)
    labels = torch.zeros(TRIAL_ROWS, dtype=torch.int64) if classes else None
    with preserved(base, device=_device(base)), torch.no_grad():
        base.eval()
        try:
            z = prior_sample(wrapped.prior, TRIAL_ROWS, torch.Generator().manual_seed(0), torch.float32)
            x: Any = decoded(wrapped, _placed(z, base), _placed(labels, base))
        except GebmKitError:
            raise
        except Exception as error:
            return f"fails on codes of shape ({TRIAL_ROWS}, {size}): {_words(error)}"
    if not isinstance(x, Tensor):
        return f"returns {type(x).__name__} for codes of shape ({TRIAL_ROWS}, {size}); a tensor is needed"
    expected = (TRIAL_ROWS, *shape)
    return (
        "" if x.shape == expected else f"returns shape {tuple(x.shape)} for {TRIAL_ROWS} codes; it must be {expected}"
    )


def _device(module: nn.Module) -> torch.device:
    return next((tensor.device for tensor in (*module.parameters(), *module.buffers())), torch.device("cpu"))


def _placed(rows: Any, module: nn.Module) -> Any:
    """Return rows on the module's device and, if they are no labels, in its floating type."""
    example = next((p for p in (*module.parameters(), *module.buffers()) if p.is_floating_point()), None)
    if rows is None or example is None:
        return rows
    return rows.to(example.device, example.dtype if rows.is_floating_point() else rows.dtype)


def _called(kind: str, module: nn.Module, call: Any, what: str) -> Any:
    try:
        return call()
    except GebmKitError:
        raise
    except Exception as error:
        raise UsageError(f"the {kind} {named(module)} fails on {what}: {_words(error)}") from error


def _words(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 200 else text[:196] + " ..."
