"""Nearest neighbours among rows of features, and the training data among which they are sought."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Dataset, EvalContext
from gebm_kit.metrics.feature_space import Doubts

DISTANCE_ROWS = 1024
"""Rows of a distance matrix that are held at a time: more take more memory, fewer make more calls."""

MAX_ROWS = 10_000
"""Most training rows that are read from a dataset for a metric that is called by hand; evaluations pass their own rows."""

LEAST_ROWS = 2
"""Fewest training rows among which a row has a neighbour."""


class Neighbours(NamedTuple):
    """Distance to the nearest row, (N,), and which row it is, (N,) int64."""

    distance: Tensor
    row: Tensor


def nearest(rows: Tensor, among: Tensor, *, others: bool = False) -> Neighbours:
    """Find the nearest of the rows ``among`` for each row; (N, F), (M, F).

    The neighbour is found by |a|^2 + |b|^2 - 2 ab in blocks. The distance to it is then computed from the difference, so
    that a copy has distance 0 exactly.

    Args:
        others: whether ``among`` is the same tensor as ``rows``, and a row is not its own neighbour.
    """
    centre = among.mean(0)  # distances by |a|^2 + |b|^2 - 2ab lose digits far from the origin
    shifted = among - centre
    squares = shifted.square().sum(1)
    found = []
    for start in range(0, len(rows), DISTANCE_ROWS):
        block = rows[start : start + DISTANCE_ROWS] - centre
        distances = torch.addmm(squares, block, shifted.T, alpha=-2.0)  # without |a|^2, which changes no order
        if others:
            own = torch.arange(len(block), device=rows.device)
            distances[own, own + start] = torch.inf
        found.append(distances.argmin(1))
    index = torch.cat(found)
    blocks = zip(rows.split(DISTANCE_ROWS), index.split(DISTANCE_ROWS), strict=True)
    return Neighbours(torch.cat([(part - among[near]).norm(dim=1) for part, near in blocks]), index)


class TrainingRows:
    """Training data of a context, for a metric that looks for copies of them.

    They are the context's own (`EvalContext.train`), or else rows of its dataset's training part.

    Args:
        metric: name of the metric, for messages.
        or_reference: whether the reference rows are the training data in a context without either.
    """

    def __init__(self, metric: str, or_reference: bool = False) -> None:
        self._metric, self._or_reference = metric, or_reference
        self._read: tuple[Dataset, Tensor] | None = None
        self._doubts = Doubts()

    def __call__(self, context: EvalContext) -> Tensor:
        """Return the rows, (L, *D); warn if they are not all of the training part.

        Raises:
            UsageError: there are none, or too few.
        """
        rows = context.train if context.train is not None else self._of(context)
        if len(rows) < LEAST_ROWS:
            raise UsageError(
                f"metric {self._metric} needs at least {LEAST_ROWS} rows of training data, got {len(rows)}"
            )
        return rows

    def protocol(self, context: EvalContext) -> dict[str, int]:
        """Return how many training rows are looked at, for the metric's protocol."""
        return {"train_rows": len(self(context))}

    def check(self, dataset: Dataset) -> None:
        """Raise if the dataset's training part is too small."""
        count = len(dataset.split("train"))
        if count < LEAST_ROWS:
            raise UsageError(f"metric {self._metric} needs at least {LEAST_ROWS} rows of training data, got {count}")

    def doubt(self, context: EvalContext) -> None:
        """Warn if the rows are only some of the dataset's training part: copies of the others are not found."""
        if context.dataset is None:
            return
        whole, rows = len(context.dataset.split("train")), len(self(context))
        if rows < whole:
            self._doubts.warn(
                rows,
                f"metric {self._metric} looks at {rows:,} of {whole:,} training rows, evenly spaced: copies of the others "
                f"are not found. Set eval.num_reference to {whole} to look at all.",
            )

    def _of(self, context: EvalContext) -> Tensor:
        if context.dataset is None and self._or_reference:
            return context.reference
        if context.dataset is None:
            raise UsageError(
                f"metric {self._metric} compares draws with training data, and there are none here",
                hint="Give the context's train, or a dataset with a training part.",
            )
        if self._read is None or self._read[0] is not context.dataset:
            split = context.dataset.split("train")
            count = min(len(split), MAX_ROWS)
            index = torch.arange(count) * len(split) // max(count, 1)
            parts = [split.batch(part).to(context.samples.device) for part in index.split(DISTANCE_ROWS)]
            self._read = (context.dataset, torch.cat(parts) if parts else context.samples[:0])
        return self._read[1]
