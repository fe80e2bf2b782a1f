"""From a device's name to a device that is there."""

from __future__ import annotations

import torch

from gebm_kit.core.errors import UsageError


def resolve_device(name: str | torch.device) -> torch.device:
    """``auto`` is the first CUDA device, else Apple's MPS, else the CPU; other names are checked.

    Raises:
        UsageError: no such device here.
    """
    if isinstance(name, torch.device):
        return name
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"{name!r} is no device; allowed: auto, cpu, cuda, cuda:N, mps") from error
    count = torch.cuda.device_count() if device.type == "cuda" else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UsageError(
            f"device {name!r} is not there: this machine has {count} CUDA devices", hint="Use --device cpu."
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("device 'mps' is not available on this machine", hint="Use --device cpu.")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"device {name!r} is not supported; allowed: auto, cpu, cuda, cuda:N, mps")
    return device
