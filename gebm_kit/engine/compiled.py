"""`torch.compile` of the two networks in training steps, where a compiler is at hand."""

from __future__ import annotations

from typing import Any, cast

import torch

from gebm_kit.core.model import GEBM
from gebm_kit.core.progress import warn
from gebm_kit.engine.guard import Guard


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
            dtype = next(model.parameters()).dtype
            z = torch.zeros(rows, model.latent_dim, device=device, dtype=dtype)
            made.energy(made.base(z)).sum().backward()
    except Exception as error:  # what a missing or failing compiler raises is of many types
        reason = str(error).strip().partition("\n")[0]
        warn(f"train.compile: the model can't be compiled here ({type(error).__name__}: {reason}); going on without")
        return model
    finally:
        guard.undo(kept, torch.ones((), device=device))
        model.zero_grad(set_to_none=True)
    return made
