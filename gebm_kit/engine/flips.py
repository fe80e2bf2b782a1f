"""Images mirrored at random, on the device that trains: each is seen both ways, and no second copy is stored."""

from __future__ import annotations

import torch
from torch import Tensor

from gebm_kit.core import reduce
from gebm_kit.core.errors import RecipeError


def check_flips(data_shape: tuple[int, ...]) -> None:
    """Raise RecipeError unless data points are images."""
    if len(data_shape) != 3:
        raise RecipeError(
            f"train.flip mirrors images, of shape (channels, height, width), but the data has shape {tuple(data_shape)}"
        )


def flipped(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image mirrored left to right with probability 1/2; (B, C, H, W) -> (B, C, H, W)."""
    return torch.where(reduce.rand_rows(images, generator) < 0.5, images.flip(-1), images)
