"""Random rectified projections."""

from __future__ import annotations

import hashlib
import math
from typing import Annotated

import torch
from torch import Tensor

from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.interfaces import Dataset, FeatureMap

ROWS_AT_ONCE = 4096
"""Rows whose features are computed at a time."""


class Example(FeatureMap):
    """Random rectified projections.

        f(x) = max(0, W x + b) / sqrt(F), (N, *D) -> (N, F),

    with entries of W from N(0, 1 / prod D) and of b from N(0, 1), fixed by ``seed``.

    Args:
        num_features: F.
        seed: seed of W and b.
    """

    def __init__(
        self, num_features: Annotated[int, Range(1, None)] = 64, seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    ) -> None:
        check_arguments(self, num_features=num_features, seed=seed)
        self.num_features, self.seed = num_features, seed

    def fit(self, dataset: Dataset, device: torch.device) -> None:
        """Draw W and b for the shape of the data; called once, before the first use."""
        size, generator = math.prod(dataset.data_shape), torch.Generator().manual_seed(self.seed)
        weight = torch.randn(size, self.num_features, generator=generator) / math.sqrt(size)
        offset = torch.randn(self.num_features, generator=generator)
        self.checksum = hashlib.sha256(torch.cat([weight, offset[None]]).numpy().tobytes()).hexdigest()[:16]
        self.weight, self.offset = weight.to(device), offset.to(device)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Compute the features; (N, *D) -> (N, F)."""
        rows, scale = x.to(self.weight).flatten(1), 1 / math.sqrt(self.num_features)
        blocks = (rows[start : start + ROWS_AT_ONCE] for start in range(0, len(rows), ROWS_AT_ONCE))
        return torch.cat([scale * (block @ self.weight + self.offset).relu() for block in blocks])
