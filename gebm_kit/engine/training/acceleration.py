"""Faster training steps with the same results up to rounding: compiled modules and channels-last weights.

Channels-last is the memory layout in which convolutions run fastest. A convolution with channels-last weights returns
channels-last output, so the whole network follows. Results agree up to the rounding of sums. Checkpoints store weights in
the usual layout.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from gebm_kit.core.errors import RecipeError
from gebm_kit.core.model import GEBM
from gebm_kit.core.progress import warn
from gebm_kit.engine.training.non_finite import Guard


def compiled(model: GEBM, device: torch.device, rows: int) -> GEBM:
    """Return a model of the same modules whose ``base(z)`` and ``energy(x)`` are compiled at their first call.

    Penalties differentiate the energy twice, which compiled functions do not support, so they use the uncompiled model.
    This function first tries both networks on ``rows`` rows, forward and backward. If that fails, or torch has no compiler,
    it warns and returns ``model`` itself.
    """
    guard = Guard([model.base, model.energy], device)
    kept = guard.keep()
    try:
        options: dict[str, Any] = {"dynamic": False}
        base, energy = torch.compile(model.base, **options), torch.compile(model.energy, **options)
        made = GEBM(cast(Any, base), cast(Any, energy), log_ratio=model.log_ratio)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            labels = torch.zeros(rows, dtype=torch.int64, device=device) if model.conditional else None
            z = torch.zeros(rows, model.latent_dim, device=device, dtype=model.dtype)
            made(z, labels).sum().backward()
    except Exception as error:  # a missing or failing compiler raises errors of many types
        reason = str(error).strip().partition("\n")[0]
        warn(
            f"train.compile: the model can't be compiled here ({type(error).__name__}: {reason}); continuing uncompiled"
        )
        return model
    finally:
        guard.undo(kept, torch.ones((), device=device))
        model.zero_grad(set_to_none=True)
    return made


def channels_last(model: nn.Module) -> None:
    """Put the weights of a model's two-dimensional convolutions in channels-last layout; leave other models unchanged."""
    if any(isinstance(part, nn.Conv2d | nn.ConvTranspose2d) for part in model.modules()):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@torch.no_grad()
def lay_out_states(optimizer: torch.optim.Optimizer) -> None:
    """Give the optimiser's state tensors the memory layout of their parameters.

    Fused kernels walk through both in memory order.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter).copy_(value)


def check_precision(precision: str, device: torch.device) -> None:
    """Raise RecipeError where the device has no bfloat16."""
    if precision == "bfloat16" and device.type != "cuda":
        raise RecipeError(f"precision: bfloat16 is for CUDA devices, this run is on {device.type}; use float32")
