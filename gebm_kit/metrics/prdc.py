"""Precision, recall, density and coverage: how draws lie among the data, and how the data lie among draws."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.interfaces import Dataset, EvalContext, Metric
from gebm_kit.metrics.feature_space import Doubts, OfReference, check_features, check_num_rows, feature_space

DISTANCE_ROWS = 1024
"""Rows of a distance matrix that are held at a time: more take more memory, fewer make more calls."""

ROWS_PER_NEIGHBOUR = 10
"""Fewest rows for each neighbour that a ball reaches; with fewer, a ball covers more than a tenth of all rows."""


class Prdc(Metric):
    """``prdc.precision``, ``prdc.recall``, ``prdc.density`` and ``prdc.coverage``.

    With B(y) the open ball around a row that reaches its k-th nearest neighbour in its own set,

        precision = share of draws x that lie in some B(y) of the reference
        recall    = share of reference rows y that lie in some B(x) of the draws
        density   = mean over draws of (number of B(y) that hold x) / k
        coverage  = share of reference rows y whose B(y) holds a draw

    as in the published code. Precision and density say how real the draws look, recall and coverage how much of the data
    they reach. A single outlier has a large ball: outliers of the data raise precision and outliers of the draws raise
    recall, but they hardly change density and coverage. Density is 1 for equal laws and may exceed 1. All four depend on N
    and k: the values of held-out data (``metrics.data``) are those of equal laws. The distance matrices are computed in
    blocks and never stored.

    Draws are scored against held-out data (``prdc.recall``) and against training data (``prdc.recall.train``).

    Args:
        features: feature map; ``auto`` is ``classifier`` for labelled data, else ``pixels``.
        nearest_k: k, the neighbour that a ball reaches; 5 in the paper.

    References:
        Reliable Fidelity and Diversity Metrics for Generative Models. M. F. Naeem, S. J. Oh, Y. Uh, Y. Choi, J. Yoo, ICML
        2020. https://arxiv.org/abs/2002.09797
        Improved Precision and Recall Metric for Assessing Generative Models. T. Kynkäänniemi et al., NeurIPS 2019.
        https://arxiv.org/abs/1904.06991
    """

    ratio: ClassVar[bool] = False
    lower_is_better: ClassVar[bool | None] = False
    against_train: ClassVar[bool] = True

    def __init__(self, features: str = "auto", nearest_k: Annotated[int, Range(1, None)] = 5) -> None:
        check_arguments(self, nearest_k=nearest_k)
        self.features, self.nearest_k, self.least_rows = features, nearest_k, nearest_k + 1
        self._reference = OfReference(self._balls)
        self._doubts = Doubts()

    def __call__(self, context: EvalContext) -> dict[str, float]:
        check_num_rows(context, self.least_rows, "prdc")
        space = feature_space(self.features, context)
        rows = min(len(context.samples), len(context.reference))
        if rows < ROWS_PER_NEIGHBOUR * self.nearest_k:
            self._doubts.warn(
                rows,
                f"metric prdc: with {rows} rows (draws or reference), a ball that reaches neighbour {self.nearest_k} covers "
                "much of the whole set, so precision and recall are near 1 for draws of any kind. At least "
                f"{ROWS_PER_NEIGHBOUR * self.nearest_k} rows are wanted: draw more, or lower nearest_k.",
            )
        reference = self._reference(space, context)
        found = prdc(reference, space.of(context.samples, "the draws"), self.nearest_k)
        return {f"prdc.{name}": value for name, value in found.items()}

    def check(self, dataset: Dataset) -> None:
        """Raise if the feature map does not exist or can't be used with the dataset."""
        check_features(self.features, dataset, "prdc")

    def protocol(self, context: EvalContext) -> dict[str, Any]:
        space = feature_space(self.features, context)
        return {**super().protocol(context), **space.protocol(), "nearest_k": self.nearest_k}

    def _balls(self, reference: Tensor) -> Balls:
        return balls(reference, reference.mean(0), self.nearest_k)


class Balls(NamedTuple):
    """Rows minus a common centre, (N, F), the squared radii of their balls, (N,), and the centre, (F,)."""

    rows: Tensor
    squared_radii: Tensor
    centre: Tensor


def balls(rows: Tensor, centre: Tensor, nearest_k: int) -> Balls:
    """Return for every row the ball that reaches its k-th nearest neighbour among the others; (N, F)."""
    rows = rows - centre  # distances by |a|^2 + |b|^2 - 2ab lose digits far from the origin
    radii = [
        # the row itself, at distance zero, is one of the k + 1
        squared_distances(block, rows).topk(nearest_k + 1, dim=1, largest=False, sorted=False).values.amax(1)
        for block in rows.split(DISTANCE_ROWS)
    ]
    return Balls(rows, torch.cat(radii), centre)


def prdc(reference: Balls, samples: Tensor, nearest_k: int) -> dict[str, float]:
    """Return the four values; samples: (N, F)."""
    draws = balls(samples, reference.centre, nearest_k)
    holding = torch.zeros(len(samples), dtype=torch.int64, device=samples.device)
    recalled = covered = torch.zeros((), dtype=torch.int64, device=samples.device)
    for rows, radii in zip(
        reference.rows.split(DISTANCE_ROWS), reference.squared_radii.split(DISTANCE_ROWS), strict=True
    ):
        distances = squared_distances(rows, draws.rows)
        inside = distances < radii[:, None]
        holding += inside.sum(0)
        covered = covered + inside.any(1).sum()
        recalled = recalled + (distances < draws.squared_radii).any(1).sum()
    return {
        "precision": float((holding > 0).double().mean()),
        "recall": float(recalled) / len(reference.rows),
        "density": float(holding.double().mean()) / nearest_k,
        "coverage": float(covered) / len(reference.rows),
    }


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return ``|x_i - y_j|^2``; (N, F), (M, F) -> (N, M)."""
    squared = x.square().sum(1, keepdim=True) + y.square().sum(1)
    return squared.addmm_(x, y.T, alpha=-2.0).clamp_min_(0.0)
