"""Points along a noisy spiral."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.interfaces import Dataset, Split, SplitName

Count = Annotated[int, Range(1, None)]


class Points(Split):
    """One part of the data, held in memory; points: (N, 2)."""

    def __init__(self, points: Tensor) -> None:
        self.points = points

    def __len__(self) -> int:
        return len(self.points)

    def batch(self, indices: Tensor) -> Tensor:
        """Return rows ``indices``; (B,) int64 -> (B, 2)."""
        return self.points[indices]


class Example(Dataset):
    """Points along a noisy spiral.

    With an angle t² ~ U(0, (2 pi turns)²) and noise xi ~ N(0, I),

        x = t / (2 pi turns) (cos t, sin t) + std xi.

    Each part has random numbers of its own, so that no two parts share a row.

    Args:
        num_train, num_valid, num_test: number of points in each part.
        turns: turns of the spiral.
        std: standard deviation of the noise.
        seed: seed of the draws.
    """

    def __init__(
        self,
        num_train: Count = 5000,
        num_valid: Count = 1000,
        num_test: Count = 1000,
        turns: Annotated[float, Range(0, None, low_open=True)] = 1.5,
        std: Annotated[float, Range(0, None)] = 0.02,
        seed: Annotated[int, Range(0, 2**31 - 1)] = 0,
    ) -> None:
        check_arguments(self, num_train=num_train, num_valid=num_valid, num_test=num_test, turns=turns, std=std)
        check_arguments(self, seed=seed)
        self.data_shape, self.value_range = (2,), None
        sizes: dict[SplitName, int] = {"train": num_train, "valid": num_valid, "test": num_test}
        self.parts = {
            name: Points(spiral(size, turns, std, 3 * seed + part)) for part, (name, size) in enumerate(sizes.items())
        }

    def split(self, name: SplitName) -> Split:
        """Return one of the parts train, valid and test."""
        return self.parts[name]


def spiral(num: int, turns: float, std: float, seed: int) -> Tensor:
    """Draw points; (num, 2)."""
    generator = torch.Generator().manual_seed(seed)
    reach = torch.rand(num, generator=generator).sqrt()
    angle = 2 * math.pi * turns * reach
    noise = torch.randn(num, 2, generator=generator)
    return reach.unsqueeze(1) * torch.stack([angle.cos(), angle.sin()], dim=1) + std * noise
