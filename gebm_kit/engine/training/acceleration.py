"""What makes training steps faster and changes no result beyond rounding: compiled modules, and channels-last weights.

Channels last is the order of weights in memory with which convolutions are fastest. A convolution with channels-last weights
returns channels-last output, so the whole network follows. Numbers agree up to the rounding of sums. Weights in a
checkpoint are in the usual order.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from gebm_kit.core.model import GEBM
from gebm_kit.core.progress import warn
from gebm_kit.engine.training.non_finite import Guard


def compiled(model: GEBM, device: torch.device, rows: int) -> GEBM:
    """A model of the same modules whose ``base(z)`` and ``energy(x)`` are compiled when they are first called.

    Penalties differentiate the energy twice, which compiled functions can't, so they take the model itself. Both networks
    are tried out, forward and backward, on ``rows`` rows; where that fails, or torch has no compiler, a warning says so and
    the model itself comes back.
    """
    guard = Guard([model.base, model.energy], device)
    kept = guard.keep()
    try:
        options: dict[str, Any] = {"dynamic": False}
        base, energy = torch.compile(model.base, **options), torch.compile(model.energy, **options)
        made = GEBM(cast(Any, base), cast(Any, energy), log_ratio=model.log_ratio)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            z = torch.zeros(rows, model.latent_dim, device=device, dtype=model.dtype)
            made.energy(made.base(z)).sum().backward()
    except Exception as error:  # what a missing or failing compiler raises is of many types
        reason = str(error).strip().partition("\n")[0]
        warn(f"train.compile: the model can't be compiled here ({type(error).__name__}: {reason}); going on without")
        return model
    finally:
        guard.undo(kept, torch.ones((), device=device))
        model.zero_grad(set_to_none=True)
    return made


def channels_last(model: nn.Module) -> None:
    """Lay out the weights of a model's two-dimensional convolutions with the channels last; other models are left alone."""
    if any(isinstance(part, nn.Conv2d | nn.ConvTranspose2d) for part in model.modules()):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@torch.no_grad()
def lay_out_states(optimizer: torch.optim.Optimizer) -> None:
    """Give the optimiser's tensors the layout of their parameters: its fused kernels walk through both in memory order."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter).copy_(value)
