"""Unbiased squared maximum mean discrepancy with a Gaussian kernel."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from torch import Tensor

from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Dataset, EvalContext, Metric
from gebm_kit.metrics.feature_space import check_features, check_num_rows, feature_space

KERNEL_ROWS = 1024
"""Rows of the kernel matrix that are held at a time: more take more memory, fewer make more calls."""

MEDIAN_ROWS = 2000
"""Most reference rows (evenly spaced) for the median distance: their two million pairs are enough, at little cost."""


class Mmd(Metric):
    """``MMD^2 = mean k(x, x') + mean k(y, y') - 2 mean k(x, y)``, x != x' and y != y', k(a, b) = exp(-|a - b|^2 / (2 s^2)).

    The value is a U-statistic: its expectation is the squared MMD itself, zero for equal laws, so it may be negative. The
    bandwidth s is the median distance between rows of the *reference*, times ``bandwidth_scale``. It does not depend on the
    draws, so that values of different models can be compared. The kernel matrix is summed in blocks and never stored.

    Args:
        features: feature map; ``auto`` is ``classifier`` for labelled data, else ``pixels``.
        bandwidth_scale: factor on the median distance.

    References:
        A Kernel Two-Sample Test. A. Gretton, K. Borgwardt, M. Rasch, B. Schölkopf, A. Smola, JMLR 13, 2012.
        https://jmlr.org/papers/v13/gretton12a.html
    """

    least_rows = 2

    def __init__(
        self, features: str = "pixels", bandwidth_scale: Annotated[float, Range(0, None, low_open=True)] = 1.0
    ) -> None:
        check_arguments(self, bandwidth_scale=bandwidth_scale)
        self.features = features
        self.bandwidth_scale = bandwidth_scale
        self._known: tuple[Tensor, float, float] | None = None  # reference features, bandwidth, mean k(y, y')

    def __call__(self, context: EvalContext) -> dict[str, float]:
        check_num_rows(context, 2, "mmd")
        space = feature_space(self.features, context)
        x = space.of(context.samples, "the draws")
        y, bandwidth, within_y = self._reference(context)
        within_x = kernel_sum(x, x, bandwidth) - len(x)
        across = kernel_sum(x, y, bandwidth) / (len(x) * len(y))
        return {"mmd": within_x / (len(x) * (len(x) - 1)) + within_y - 2.0 * across}

    def check(self, dataset: Dataset) -> None:
        """Raise if the feature map does not exist or can't be used with the dataset."""
        check_features(self.features, dataset, "mmd")

    def protocol(self, context: EvalContext) -> dict[str, Any]:
        space = feature_space(self.features, context)
        return {**super().protocol(context), **space.protocol(), "bandwidth": self._reference(context)[1]}

    def _reference(self, context: EvalContext) -> tuple[Tensor, float, float]:
        """Return the reference's features, bandwidth and mean k(y, y'), computed again only for another reference."""
        y = feature_space(self.features, context).of(context.reference, "the reference rows")
        if self._known is None or not torch.equal(self._known[0], y):
            bandwidth = self.bandwidth_scale * median_distance(y)
            within = (kernel_sum(y, y, bandwidth) - len(y)) / (len(y) * (len(y) - 1))
            self._known = (y, bandwidth, within)
        return self._known


def median_distance(y: Tensor) -> float:
    """Return the median distance between different rows, (N, F).

    Raises:
        UsageError: more than half of the pairs coincide.
    """
    step = max(1, math.ceil(len(y) / MEDIAN_ROWS))
    median = float(torch.pdist(y[::step]).median())
    if not median > 0:
        raise UsageError("metric mmd: the median distance between reference rows is 0: most of them are identical")
    return median


def kernel_sum(x: Tensor, y: Tensor, bandwidth: float) -> float:
    """Return ``sum_ij exp(-|x_i - y_j|^2 / (2 s^2))``, computed in blocks of rows; (N, F), (M, F)."""
    centre = y.mean(0)  # distances by |a|^2 + |b|^2 - 2ab lose digits far from the origin
    x, y = x - centre, y - centre
    y_squared = y.square().sum(1)
    total = torch.zeros((), dtype=x.dtype, device=x.device)
    for block in x.split(KERNEL_ROWS):
        squared = (block.square().sum(1, keepdim=True) + y_squared).addmm_(block, y.T, alpha=-2.0)
        total += squared.clamp_min_(0.0).mul_(-0.5 / bandwidth**2).exp_().sum()
    return float(total)
