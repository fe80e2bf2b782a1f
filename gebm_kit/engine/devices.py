"""Which device to compute on."""

from __future__ import annotations

import torch

from gebm_kit.core.errors import UsageError


def resolve_device(device: str | torch.device) -> torch.device:
    """``auto`` (CUDA where there is one, else the CPU), or a device by torch's name for it.

    Raises:
        UsageError: torch knows no such device, or this machine has none.
    """
    if isinstance(device, str) and device == "auto":
        # Not Apple's MPS: it has no float64, in which energies and estimates are summed.
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"device {str(device)!r} can't be used: {reason}", hint="Allowed: auto, cpu, cuda, cuda:N."
        ) from error
    return found
