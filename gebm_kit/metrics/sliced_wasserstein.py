"""Sliced 2-Wasserstein distance."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.interfaces import Dataset, EvalContext, Metric
from gebm_kit.core.seeds import stream
from gebm_kit.metrics.feature_space import check_features, check_num_rows, feature_space

DIRECTIONS_AT_ONCE = 32
"""Directions whose projections are sorted at a time: more take more memory, fewer make more calls."""


class SlicedWasserstein(Metric):
    """``SW_2 = (mean over directions u of W_2^2(u.x, u.y))^{1/2}``, u uniform on the unit sphere.

    In one dimension ``W_2^2 = integral_0^1 (F^{-1}(q) - G^{-1}(q))^2 dq``, computed exactly for samples of any two
    sizes: both quantile functions are constant between the breaks i/N and j/M. The directions are fixed by ``seed``, so
    that values of different draws are comparable. Like every plug-in Wasserstein distance, the value is biased upwards at
    finite N: compare it with the value of held-out data of the same size.

    Args:
        num_directions: number of directions (in one dimension a single one is exact).
        features: feature map; ``auto`` is ``classifier`` for labelled data, else ``pixels``.
        seed: seed of the directions.

    References:
        Sliced and Radon Wasserstein Barycenters of Measures. N. Bonneel, J. Rabin, G. Peyré, H. Pfister, JMIV 51, 2015.
        https://doi.org/10.1007/s10851-014-0506-3
    """

    def __init__(
        self, num_directions: Annotated[int, Range(1, None)] = 256, features: str = "pixels", seed: int = 0
    ) -> None:
        check_arguments(self, num_directions=num_directions)
        self.num_directions, self.features, self.seed = num_directions, features, seed

    def __call__(self, context: EvalContext) -> dict[str, float]:
        check_num_rows(context, 1, "sliced-wasserstein")
        space = feature_space(self.features, context)
        x, y = space.of(context.samples, "the draws"), space.of(context.reference, "the reference rows")
        directions = self._directions(x.shape[1]).to(x)
        squared = torch.cat([wasserstein_squared(x @ u.T, y @ u.T) for u in directions.split(DIRECTIONS_AT_ONCE)])
        return {"sliced-wasserstein": float(squared.mean().sqrt())}

    def check(self, dataset: Dataset) -> None:
        """Raise if the feature map does not exist or can't be used with the dataset."""
        check_features(self.features, dataset, "sliced-wasserstein")

    def protocol(self, context: EvalContext) -> dict[str, Any]:
        space = feature_space(self.features, context)
        return {**super().protocol(context), **space.protocol(), "directions": self.num_directions}

    def _directions(self, dim: int) -> Tensor:
        if dim == 1:
            return torch.ones(1, 1)
        normal = torch.randn(self.num_directions, dim, generator=stream(self.seed, "directions"), dtype=torch.float64)
        return normal / normal.norm(dim=1, keepdim=True)


def wasserstein_squared(x: Tensor, y: Tensor) -> Tensor:
    """Return the squared 2-Wasserstein distance of each column's empirical laws; (N, P), (M, P) -> (P,)."""
    x, y = x.sort(0).values, y.sort(0).values
    num, other = len(x), len(y)
    # In units of 1/(N M) all breaks are whole numbers, so that rounding can't split one in two.
    breaks = torch.cat([torch.arange(0, num + 1) * other, torch.arange(1, other) * num]).unique()
    left = breaks[:-1]
    width = (breaks[1:] - left).to(x) / (num * other)
    gap = x[(left // other).to(x.device)] - y[(left // num).to(x.device)]
    return (width[:, None] * gap.square()).sum(0)
