"""Authenticity: the share of draws that are not suspiciously near to a training row."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Dataset, EvalContext, Metric
from gebm_kit.metrics.feature_space import OfReference, check_features, feature_space
from gebm_kit.metrics.neighbours import TrainingRows, nearest


class Authenticity(Metric):
    """Share of draws x with ``|x - y| > |y - y'|``: y is the nearest training row to x, and y' the nearest other one to y.

    A draw that is nearer to a training row than any other training row is may be a copy of it, so it does not count as
    authentic. The value is 0 for a model that returns its training data. It need not be 1 for a good model: fresh draws of
    the data's law often lie that near too. The value of held-out data (``metrics.data.authenticity``) shows how often, and
    a value clearly below it is a sign of copying. Noise lies far from all data and has the value 1, so neither direction
    is better.

    Draws are compared with training data: as many rows as ``eval.num_reference`` allows, evenly spaced. A copy of a row that
    is left out is not found, so look at all of them; a warning says how many there are. Distances to near neighbours mean
    most on features that keep what distinguishes one row from another: ``pixels``, or ``dinov2`` for images.

    The value follows the paper's definition, as later authors' code does (AuthPct, in percent). The code published with the
    paper itself takes the mean over training rows in place of draws, and looks up the radius of another row.

    Args:
        features: feature map; ``auto`` is ``classifier`` for labelled data, else ``pixels``.

    References:
        How Faithful is your Synthetic Data? Sample-level Metrics for Evaluating and Auditing Generative Models.
        A. M. Alaa, B. van Breugel, E. Saveliev, M. van der Schaar, ICML 2022. https://arxiv.org/abs/2102.08921
    """

    ratio: ClassVar[bool] = False
    lower_is_better: ClassVar[bool | None] = None
    needs_train: ClassVar[bool] = True

    def __init__(self, features: str = "auto") -> None:
        self.features = features
        self._rows = TrainingRows("authenticity", or_reference=True)
        self._train = OfReference(_Train)

    def __call__(self, context: EvalContext) -> dict[str, float]:
        if len(context.samples) < 1:
            raise UsageError("metric authenticity needs at least 1 draw, got 0")
        space, rows = feature_space(self.features, context), self._rows(context)
        self._rows.doubt(context)
        train = self._train.of(space, rows, "the training rows")
        return {"authenticity": authenticity(space.of(context.samples, "the draws"), train.rows, train.radii)}

    def check(self, dataset: Dataset) -> None:
        """Raise if the feature map does not exist or can't be used with the dataset, or there are too few training rows."""
        check_features(self.features, dataset, "authenticity")
        self._rows.check(dataset)

    def protocol(self, context: EvalContext) -> dict[str, Any]:
        space = feature_space(self.features, context)
        return {"samples": len(context.samples), **self._rows.protocol(context), **space.protocol()}


class _Train:
    """Features of the training rows, (L, F), and each one's distance to its nearest other, (L,)."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self.radii = nearest(rows, rows, others=True).distance


def authenticity(draws: Tensor, train: Tensor, radii: Tensor) -> float:
    """Return the share of draws outside the ball of their nearest training row; (N, F), (L, F), (L,)."""
    found = nearest(draws, train)
    return float((found.distance > radii[found.row]).double().mean())
