"""What every sampler must do, checked one fact at a time; see `gebm_kit.core.contracts`.

Shapes: C chains, Z latent size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gebm_kit.core.model_contracts import broken, said
from gebm_kit.core.sampling import Info, Sampler


def check_sampler_state(sampler: object, state: Any, num_chains: int, latent_dim: int) -> None:
    """Check a sampler's state: a NamedTuple of tensors with ``position`` (C, Z) and ``value`` (C,).

    Raises:
        PluginError: it is something else.
    """
    if not isinstance(state, tuple) or not {"position", "value"} <= set(getattr(state, "_fields", ())):
        raise broken(
            "sampler", sampler, f"has a {type(state).__name__} as state; it must be a NamedTuple with position, value"
        )
    for name, entry in zip(state._fields, state, strict=True):  # type: ignore[attr-defined]  # a NamedTuple
        if not isinstance(entry, Tensor):
            raise broken("sampler", sampler, f"has {said(entry)} as state.{name}; it must be a tensor")
        if entry.requires_grad:
            raise broken("sampler", sampler, f"keeps an autograd graph in state.{name}; detach it")
    for name, shape in {"position": (num_chains, latent_dim), "value": (num_chains,)}.items():
        found = getattr(state, name)
        if tuple(found.shape) != shape:
            raise broken("sampler", sampler, f"has state.{name} of shape {tuple(found.shape)}; it must be {shape}")


def check_sampler_step(sampler: object, before: Any, after: Any) -> None:
    """Check that a step keeps the type, shapes and dtypes of the state.

    Raises:
        PluginError: it does not.
    """
    if type(before) is not type(after):
        names = f"{type(before).__name__} into {type(after).__name__}"
        raise broken("sampler", sampler, f"turns its state from {names} in a step; init and step must return one type")
    for name, old, new in zip(before._fields, before, after, strict=True):
        if old.shape != new.shape or old.dtype != new.dtype:
            raise broken("sampler", sampler, f"turns state.{name} from {said(old)} into {said(new)} in a step")


def check_sampler_info(sampler: object, info: Any, num_chains: int) -> None:
    """Check what a step reports about each chain: an `Info` whose fields have one entry for each chain.

    Raises:
        PluginError: it is something else.
    """
    if not isinstance(info, Info):
        raise broken("sampler", sampler, f"returns {said(info)} beside the state; it must return Info")
    for name in ("acceptance", "accepted", "diverged"):
        entry = getattr(info, name)
        if not isinstance(entry, Tensor) or tuple(entry.shape) != (num_chains,):
            raise broken("sampler", sampler, f"returns info.{name} as {said(entry)}; its shape must be ({num_chains},)")
    if not info.acceptance.is_floating_point():
        raise broken(
            "sampler", sampler, f"returns info.acceptance as {info.acceptance.dtype}; it must be floating point"
        )
    for name in ("accepted", "diverged"):
        if getattr(info, name).dtype != torch.bool:
            raise broken("sampler", sampler, f"returns info.{name} as {getattr(info, name).dtype}; it must be bool")
    if not bool(((info.acceptance >= 0) & (info.acceptance <= 1)).all()):
        raise broken("sampler", sampler, "returns an info.acceptance outside [0, 1]; it is a probability")
    for name in ("grad_evals", "forward_evals"):
        if type(getattr(info, name)) is not int:
            raise broken(
                "sampler", sampler, f"returns info.{name} as {said(getattr(info, name))}; it must be a Python int"
            )
        if getattr(info, name) < 0:
            raise broken("sampler", sampler, f"returns info.{name} = {getattr(info, name)}; a count is not negative")


def check_sampler_results(sampler: Sampler, state: Any) -> None:
    """Check what a sampler says of a state: whether it has finished, log-partition, weights, further numbers.

    Raises:
        PluginError: one of them is of another shape or type.
    """
    done = sampler.finished(state)
    if sampler.family == "kernel":
        if done is not None:
            raise broken("sampler", sampler, f"is a kernel and returns {said(done)} from finished; it must return None")
    elif not isinstance(done, Tensor) or done.shape != () or done.dtype != torch.bool:
        raise broken("sampler", sampler, f"returns {said(done)} from finished; it must return a bool tensor, ()")
    value, weights = sampler.log_partition(state), sampler.log_weights(state)
    if value is not None and (not isinstance(value, Tensor) or value.shape != ()):
        raise broken(
            "sampler", sampler, f"returns {said(value)} from log_partition; it must return a scalar tensor or None"
        )
    if weights is not None and (not isinstance(weights, Tensor) or weights.ndim != 1):
        raise broken("sampler", sampler, f"returns {said(weights)} from log_weights; it must return (N,) or None")
    summary = sampler.summary(state)
    if not isinstance(summary, Mapping):
        raise broken("sampler", sampler, f"returns {said(summary)} from summary; it must return named scalar tensors")
    for name, entry in summary.items():
        if not isinstance(entry, Tensor) or entry.shape != ():
            raise broken(
                "sampler", sampler, f"returns {name!r} as {said(entry)} in summary; it must be a scalar tensor, ()"
            )
