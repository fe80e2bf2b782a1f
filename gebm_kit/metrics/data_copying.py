"""Data-copying: whether draws lie nearer to training data than held-out data do, by a three-sample test in cells."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.interfaces import Dataset, EvalContext, Metric
from gebm_kit.metrics.cells import cell_of, centres
from gebm_kit.metrics.feature_space import Doubts, OfReference, check_features, check_num_rows, feature_space
from gebm_kit.metrics.neighbours import TrainingRows, nearest


class DataCopying(Metric):
    """``C_T = sum_c P(c) Z(c) / sum_c P(c)`` over cells c, with P(c) the share of held-out rows in the cell and

        Z(c) = (U - n m / 2 + 1/2) / sqrt(n m (n + m + 1) / 12),

    the Mann-Whitney statistic of two sets of distances to the nearest training row in the cell: U is the number of pairs
    of a draw (m of them) and a held-out row (n) in which the draw lies farther from training data. Ties count one half.

    For draws of the data's law every Z(c) is nearly standard normal. A value far below 0 means copying: draws lie nearer to
    training data than fresh data do. A value far above 0 means the opposite, draws that lie off the data. The best value is
    therefore 0, and neither direction is better. |C_T| grows with the numbers of rows, so compare values at the same
    numbers; Z below -5 is strong evidence in any case. The value of held-out data is ``metrics.data.data-copying``.

    The cells are k-means clusters of the training data, the same for all draws. A cell counts if it holds more than
    ``min_draws`` draws and at least one held-out row. The training data are as many rows as ``eval.num_reference`` allows,
    evenly spaced. A copy of a row that is left out is not found; a warning says how many there are.

    Args:
        features: feature map; ``auto`` is ``classifier`` for labelled data, else ``pixels``.
        cells: number of cells; 3 in later authors' code for this test.
        min_draws: a cell with this many draws or fewer does not count.
        seed: seed of the cells.

    References:
        A Non-Parametric Test to Detect Data-Copying in Generative Models. C. Meehan, K. Chaudhuri, S. Dasgupta, AISTATS
        2020. https://arxiv.org/abs/2004.05675
    """

    ratio: ClassVar[bool] = False
    lower_is_better: ClassVar[bool | None] = None
    needs_train: ClassVar[bool] = True

    def __init__(
        self,
        features: str = "auto",
        cells: Annotated[int, Range(1, None)] = 3,
        min_draws: Annotated[int, Range(0, None)] = 20,
        seed: int = 0,
    ) -> None:
        check_arguments(self, cells=cells, min_draws=min_draws)
        self.features, self.cells, self.min_draws, self.seed = features, cells, min_draws, seed
        self.least_rows = cells * min_draws + 1  # one cell at least then has more than min_draws
        self._rows = TrainingRows("data-copying")
        self._train = OfReference(self._partition)
        self._doubts = Doubts()

    def __call__(self, context: EvalContext) -> dict[str, float]:
        check_num_rows(context, self.least_rows, "data-copying")
        space, rows = feature_space(self.features, context), self._rows(context)
        self._rows.doubt(context)
        train = self._train.of(space, rows, "the training rows")
        held_out = train.known(context.reference, lambda rows: space.of(rows, "the reference rows"))
        draws = train.distances(space.of(context.samples, "the draws"))
        value = copying(draws, held_out, self.min_draws)
        if math.isnan(value):
            self._doubts.warn(
                "none",
                f"metric data-copying has no value: the cells with more than {self.min_draws} draws hold no held-out row, "
                "so the draws lie far from the data. Set fewer cells, or trust the other metrics.",
            )
        return {"data-copying": value}

    def check(self, dataset: Dataset) -> None:
        """Raise if the feature map does not exist or can't be used with the dataset, or there are too few training rows."""
        check_features(self.features, dataset, "data-copying")
        self._rows.check(dataset)

    def protocol(self, context: EvalContext) -> dict[str, Any]:
        settings = {"cells": self.cells, "min_draws": self.min_draws, "cell_seed": self.seed}
        space = feature_space(self.features, context)
        return {**super().protocol(context), **self._rows.protocol(context), **space.protocol(), **settings}

    def _partition(self, rows: Tensor) -> Partition:
        return Partition(rows, centres(rows, self.cells, self.seed))


class Partition:
    """Training rows (L, F), divided into the cells around K centres (K, F)."""

    def __init__(self, rows: Tensor, centres: Tensor) -> None:
        self._centres = centres
        cells = cell_of(rows, centres)
        self._rows = [rows[cells == index] for index in range(len(centres))]
        self._known: tuple[Tensor, list[Tensor]] | None = None

    def distances(self, rows: Tensor) -> list[Tensor]:
        """Return for each cell the distances of the given rows in it to the nearest training row in it; K times (n,)."""
        cells = cell_of(rows, self._centres)
        inside = [rows[cells == index] for index in range(len(self._rows))]
        return [
            nearest(own, train).distance if len(own) else own.new_zeros(0)
            for own, train in zip(inside, self._rows, strict=True)
        ]

    def known(self, reference: Tensor, features: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Return the distances of the reference's features; they are kept, since all draws have the same reference."""
        if self._known is None or self._known[0] is not reference:
            self._known = (reference, self.distances(features(reference)))
        return self._known[1]


def copying(draws: list[Tensor], held_out: list[Tensor], min_draws: int) -> float:
    """Return C_T from the distances of draws and of held-out rows in each cell; NaN if no cell counts."""
    pairs = [(x, y) for x, y in zip(draws, held_out, strict=True) if len(x) > min_draws and len(y) > 0]
    if not pairs:
        return math.nan
    weights = [len(y) for _, y in pairs]
    return sum(w * mann_whitney(x, y) for w, (x, y) in zip(weights, pairs, strict=True)) / sum(weights)


def mann_whitney(x: Tensor, y: Tensor) -> float:
    """Return the standardised number of pairs with x above y, continuity corrected as published; (m,), (n,)."""
    ordered, pairs = y.sort().values, len(x) * len(y)
    below, up_to = (torch.searchsorted(ordered, x, right=right) for right in (False, True))
    above = float((below + up_to).double().sum()) / 2
    return (above - pairs / 2 + 0.5) / math.sqrt(pairs * (len(x) + len(y) + 1) / 12)
