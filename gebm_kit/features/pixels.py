"""The data itself as features."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from gebm_kit.core.interfaces import Dataset, FeatureMap


class Pixels(FeatureMap):
    """``f(x) = x``, flattened: the coordinates of points, the pixels of images; (N, *D) -> (N, prod D)."""

    checksum = "identity"
    cached: ClassVar[bool] = False

    def fit(self, dataset: Dataset, device: torch.device) -> None:
        """Do nothing: there is nothing to prepare."""

    def __call__(self, x: Tensor) -> Tensor:
        return x.detach().flatten(1)
