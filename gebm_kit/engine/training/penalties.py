"""The penalties of a phase: how they are built, and what those that are due add to the energy's loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gebm_kit.config.build import build
from gebm_kit.config.schema import ComponentNode
from gebm_kit.core.interfaces import Batch, Energy, Penalty


def build_penalties(nodes: Sequence[ComponentNode], facts: dict[str, Any], device: torch.device) -> list[Penalty]:
    """Build a phase's penalties.

    Raises:
        RecipeError, PluginError: as for `build`.
    """
    return [build("penalty", node, facts).to(device) for node in nodes]


def with_penalties(
    loss: Tensor, due: Sequence[Penalty], energy: Energy, batch: Batch, generator: torch.Generator
) -> Tensor:
    """Return the loss plus each penalty times its ``every``, so that a penalty's mean force does not depend on that; ()."""
    for penalty in due:
        loss = loss + penalty.every * penalty(energy, batch, generator)
    return loss
