"""What torchrun's environment says about this process: its rank, its GPU, and the command that started it."""

from __future__ import annotations

import os
from typing import overload

import torch
import torch.distributed as dist

from gebm_kit.core.errors import UsageError, shown


def restarted() -> bool:
    """Return whether torchrun has started this process to replace one that failed."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0) > 0


def launcher() -> list[str]:
    """Return the shell words that start this program as it was started: gebm-kit, or torchrun with its processes."""
    if not under_torchrun():
        return ["gebm-kit"]
    nodes = _number("GROUP_WORLD_SIZE", 1)
    words = ["torchrun", *(["--nnodes", str(nodes)] if nodes > 1 else [])]
    return [*words, "--nproc-per-node", os.environ.get("LOCAL_WORLD_SIZE", "1"), "-m", "gebm_kit"]


def under_torchrun() -> bool:
    """Return whether the environment says that this process is one of several."""
    return "RANK" in os.environ and _number("WORLD_SIZE", 1) > 1


def first_rank() -> bool:
    """Return whether this process is rank 0, the one that writes and prints for all."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return not under_torchrun() or os.environ["RANK"] == "0"


def _number(name: str, default: int) -> int:
    """Return a whole number from the environment.

    Raises:
        UsageError: the variable holds something else.
    """
    text = os.environ.get(name) or str(default)
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UsageError(f"the environment variable {name} is {shown(text)}, not a whole number", hint=f"Unset {name}.")
    return int(text)


@overload
def local_device(device: None) -> None: ...


@overload
def local_device(device: torch.device | str) -> torch.device | str: ...


@overload
def local_device(device: torch.device | str | None) -> torch.device | str | None: ...


def local_device(device: torch.device | str | None) -> torch.device | str | None:
    """Return ``device``; when that does not name a GPU (``auto``, ``cuda``) under torchrun, return this rank's GPU."""
    if under_torchrun() and str(device) in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return device
