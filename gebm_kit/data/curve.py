"""A one-dimensional closed curve in a space of many dimensions: the low-dimensional support that GEBMs are made for."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.interfaces import SplitName
from gebm_kit.core.seeds import stream
from gebm_kit.data.tensors import TensorDataset

LOBES = 3
"""Number of maxima of the density along the curve: several, so that draws can miss one."""


class Curve(TensorDataset):
    """Points on a closed curve in R^D, unevenly spread along it.

    The position t in [0, 1) has density ``p(t) = 1 + contrast cos(2 pi LOBES t)`` and cumulative
    ``F(t) = t + contrast sin(2 pi LOBES t) / (2 pi LOBES)``. The point is
    ``x(t) = (cos 2 pi t, sin 2 pi t, cos(4 pi t) / 2, sin(4 pi t) / 2, cos(6 pi t) / 3, ...)``, cut to D coordinates.
    Any two or more leading coordinates keep the curve closed and determine t. With ``noise > 0`` an isotropic Gaussian is
    added. Without noise the law has no density in R^D: an energy-based model on R^D alone can't represent it, a base of the
    curve's dimension can.

    Args:
        num_train, num_valid, num_test: number of points in each part.
        dimension: D.
        contrast: how uneven the density along the curve is; 0 is even.
        noise: standard deviation of Gaussian noise around the curve.
        seed: seed of the draws.
    """

    how_to_label = "The curve is one piece and has no classes: use a dataset with labels, such as digits or rings."

    def __init__(
        self,
        num_train: Annotated[int, Range(1, None)] = 10_000,
        num_valid: Annotated[int, Range(1, None)] = 10_000,
        num_test: Annotated[int, Range(1, None)] = 10_000,
        dimension: Annotated[int, Range(2, None)] = 10,
        contrast: Annotated[float, Range(0, 1, high_open=True)] = 0.8,
        noise: Annotated[float, Range(0, None)] = 0.0,
        seed: int = 0,
    ) -> None:
        check_arguments(self, num_train=num_train, num_valid=num_valid, num_test=num_test)
        check_arguments(self, dimension=dimension, contrast=contrast, noise=noise)
        self.dimension, self.contrast, self.noise = dimension, contrast, noise
        sizes: dict[SplitName, int] = {"train": num_train, "valid": num_valid, "test": num_test}
        self._fill({part: self._draw(size, stream(seed, "curve", part)).float() for part, size in sizes.items()})

    def point(self, t: Tensor) -> Tensor:
        """Return ``x(t)``; (B,) -> (B, D)."""
        index = torch.arange(self.dimension, device=t.device)
        harmonic = (index // 2 + 1).to(t.dtype)
        # Even coordinates are cosines, odd ones sines: cos(a - pi/2) = sin(a).
        phase = 2 * math.pi * t[:, None] * harmonic - (index % 2).to(t.dtype) * (math.pi / 2)
        return phase.cos() / harmonic

    def position(self, x: Tensor) -> Tensor:
        """Return t from the points' first two coordinates, exact on the curve; (B, D) -> (B,) in [0, 1)."""
        return (torch.atan2(x[:, 1], x[:, 0]) / (2 * math.pi)) % 1.0

    def density(self, t: Tensor) -> Tensor:
        """Return ``p(t)``; (B,) -> (B,)."""
        return 1.0 + self.contrast * torch.cos(2 * math.pi * LOBES * t)

    def cumulative(self, t: Tensor) -> Tensor:
        """Return ``F(t)``; (B,) -> (B,)."""
        return t + self.contrast * torch.sin(2 * math.pi * LOBES * t) / (2 * math.pi * LOBES)

    def _draw(self, num: int, generator: torch.Generator) -> Tensor:
        uniform = torch.rand(num, generator=generator, dtype=torch.float64)
        low, high = torch.zeros_like(uniform), torch.ones_like(uniform)
        for _ in range(54):  # F has no inverse in closed form: bisection, down to the last bit of a double
            middle = 0.5 * (low + high)
            below = self.cumulative(middle) < uniform
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        points = self.point(0.5 * (low + high))
        noise = torch.randn(num, self.dimension, generator=generator, dtype=torch.float64)
        return points + self.noise * noise
