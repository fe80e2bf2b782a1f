"""Kernel inception distance: unbiased squared maximum mean discrepancy with a cubic kernel."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.interfaces import Dataset, EvalContext, Metric
from gebm_kit.metrics.feature_space import Doubts, OfReference, check_features, check_num_rows, feature_space

KERNEL_ROWS = 1024
"""Rows of a kernel matrix that are held at a time: more take more memory, fewer make more calls."""

FEW_ROWS = 100
"""Rows of a subset below which the value is mostly noise."""


class Kid(Metric):
    """``KID = mean k(x, x') + mean k(y, y') - 2 mean k(x, y)``, x != x' and y != y', ``k(a, b) = (a.b / F + 1)^3``.

    The value is the mean over ``subsets`` random subsets of ``subset_size`` draws and as many reference rows (fewer if there
    are not as many), as published. With the same features, seed and sizes it equals torch-fidelity's. It is unbiased at any
    size: it may be negative, and values at different N estimate the same quantity. The spread over subsets of one set of
    draws says nothing about another set, so the interval is over independent sets of draws.

    Draws are scored against held-out data (``kid``) and against training data (``kid.train``).

    Args:
        features: feature map; ``auto`` is ``classifier`` for labelled data, else ``pixels``.
        subsets: number of subsets; one is enough when a subset is everything.
        subset_size: rows in each subset.
        seed: seed of the subsets, by numpy's legacy generator (``RandomState``), as in torch-fidelity; 2020 is its default.

    References:
        Demystifying MMD GANs. M. Binkowski, D. J. Sutherland, M. Arbel, A. Gretton, ICLR 2018.
        https://arxiv.org/abs/1801.01401
    """

    against_train: ClassVar[bool] = True

    least_rows = 2

    def __init__(
        self,
        features: str = "auto",
        subsets: Annotated[int, Range(1, None)] = 100,
        subset_size: Annotated[int, Range(2, None)] = 1000,
        seed: Annotated[int, Range(0, 2**32 - 1)] = 2020,
    ) -> None:
        check_arguments(self, subsets=subsets, subset_size=subset_size, seed=seed)
        self.features, self.subsets, self.subset_size, self.seed = features, subsets, subset_size, seed
        self._reference = OfReference(_Reference)
        self._doubts = Doubts()

    def __call__(self, context: EvalContext) -> dict[str, float]:
        check_num_rows(context, 2, "kid")
        space = feature_space(self.features, context)
        x, reference = space.of(context.samples, "the draws"), self._reference(space, context)
        y, size = reference.rows, self._size(context)
        if size < FEW_ROWS:
            self._doubts.warn(
                size,
                f"metric kid: subsets of {size} rows, as many as there are, are unbiased but noisy (at least {FEW_ROWS} are "
                "wanted, 1,000 are usual): trust the interval, not the value. Draw more, or hold more data out.",
            )
        count = 1 if size == len(x) == len(y) else self.subsets
        known = reference.within.setdefault(len(x), [])
        rng = np.random.RandomState(self.seed)
        total = 0.0
        for index in range(count):
            first = x[torch.from_numpy(rng.choice(len(x), size, replace=False)).to(x.device)]
            second = y[torch.from_numpy(rng.choice(len(y), size, replace=False)).to(y.device)]
            if index == len(known):
                known.append(mean_within(second))
            total += mean_within(first) + known[index] - 2.0 * kernel_sum(first, second) / size**2
        return {"kid": total / count}

    def check(self, dataset: Dataset) -> None:
        """Raise if the feature map does not exist or can't be used with the dataset."""
        check_features(self.features, dataset, "kid")

    def protocol(self, context: EvalContext) -> dict[str, Any]:
        space = feature_space(self.features, context)
        sizes = {"subsets": self.subsets, "subset_size": self._size(context), "subset_seed": self.seed}
        return {**super().protocol(context), **space.protocol(), **sizes}

    def _size(self, context: EvalContext) -> int:
        return min(self.subset_size, len(context.samples), len(context.reference))


class _Reference:
    """Features of the reference, (M, F), and mean k(y, y') of its subsets, which depend on the number N of draws, by N."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self.within: dict[int, list[float]] = {}


def mean_within(x: Tensor) -> float:
    """Return the mean of k over pairs of different rows, (N, F)."""
    diagonal = float((x.square().sum(1) / x.shape[1] + 1.0).pow(3).sum())
    return (kernel_sum(x, x) - diagonal) / (len(x) * (len(x) - 1))


def kernel_sum(x: Tensor, y: Tensor) -> float:
    """Return ``sum_ij (x_i.y_j / F + 1)^3``, computed in blocks of rows; (N, F), (M, F)."""
    parts = [(block @ y.T).div_(x.shape[1]).add_(1.0).pow_(3).sum() for block in x.split(KERNEL_ROWS)]
    return float(torch.stack(parts).sum())
