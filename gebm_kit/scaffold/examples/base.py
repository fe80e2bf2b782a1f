"""Generator with one hidden layer."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor, nn

from gebm_kit.core.components import Injected, Range, check_arguments
from gebm_kit.core.interfaces import Base


class Example(Base):
    """Generator with one hidden layer.

    The prior of z is the standard normal. With a = SiLU and data in [l, u],

        G(z) = l + (u - l) sigmoid(W_2 a(W_1 z + b_1) + b_2),

    and without the sigmoid for data without a range; (B, Z) -> (B, *D).

    Args:
        latent_dim: Z.
        hidden: width of the hidden layer.
        data_shape: ``*D``, from the dataset.
        value_range: (l, u), or None for data without a range, from the dataset.
    """

    def __init__(
        self,
        latent_dim: Annotated[int, Range(1, None)] = 8,
        hidden: Annotated[int, Range(1, None)] = 64,
        *,
        data_shape: Annotated[tuple[int, ...], Injected],
        value_range: Annotated[tuple[float, float] | None, Injected] = None,
    ) -> None:
        super().__init__()
        check_arguments(self, latent_dim=latent_dim, hidden=hidden)
        self.latent_dim, self.data_shape, self.value_range = latent_dim, tuple(data_shape), value_range
        self.net = nn.Sequential(
            nn.Linear(latent_dim, hidden), nn.SiLU(), nn.Linear(hidden, math.prod(self.data_shape))
        )

    def forward(self, z: Tensor) -> Tensor:
        """Map codes to data points; (B, Z) -> (B, *D)."""
        x: Tensor = self.net(z).unflatten(1, self.data_shape)
        if self.value_range is None:
            return x
        low, high = self.value_range
        return low + (high - low) * torch.sigmoid(x)
