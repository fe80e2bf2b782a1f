"""What an evaluation computes: feature maps, metrics, and the context that a metric sees.

Shapes: N draws, M rows of reference data, F features, K classes, ``*D`` data shape.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from gebm_kit.core.datasets import Dataset

if TYPE_CHECKING:
    from gebm_kit.core.model import GEBM


class FeatureMap(ABC):
    """Features on which metrics compare sets of draws.

    Attributes:
        checksum: identifies the features exactly (weights included), part of every metric's protocol.
        resize: what is done to an image before its features are taken, in words; part of every metric's protocol too.
        cached: whether features of reference data are worth keeping on disk; False where they cost nothing.
    """

    checksum: str
    resize: str = "none"
    cached: ClassVar[bool] = True

    def check(self, dataset: Dataset) -> None:
        """Called before anything is trained or drawn; raises UsageError when the map can't serve ``dataset`` (or a file that
        it needs is missing), PluginError when a package that it needs is."""
        return

    @abstractmethod
    def fit(self, dataset: Dataset, device: torch.device) -> None:
        """Prepare for a dataset (train or load a classifier). Called once, before the first `__call__`."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """(N, *D) -> (N, F), evaluated in blocks, without gradient."""


@runtime_checkable
class HasLogits(Protocol):
    """A feature map of a classifier: its features determine the probabilities of classes."""

    def logits(self, features: Tensor) -> Tensor:
        """Logarithms of class probabilities, up to a constant of each row, of rows of features; (N, F) -> (N, K)."""
        ...


@dataclass(frozen=True, slots=True)
class EvalContext:
    """What a metric is computed from.

    Attributes:
        samples: the draws to score, (N, *D).
        reference: data to score them against, (M, *D).
        model: the GEBM, for metrics of the model itself (kale).
        dataset: where the data comes from, for toys with known modes.
        features: `FeatureMap` by name, fitted on first use.
        generator: for metrics that subsample.
    """

    samples: Tensor
    reference: Tensor
    dataset: Dataset | None
    features: Any
    generator: torch.Generator
    model: GEBM | None = None


class Metric(ABC):
    """A named figure of merit of a set of draws.

    Attributes:
        ratio: whether GEBM over base is meaningful (a distance that is zero at the truth).
        of_model: True when the metric is a property of the model and not of draws (kale): called once.
        lower_is_better: direction, for tables and for choosing the best checkpoint; None when there is none.
        least_rows: fewest draws, and rows of data to score them against, that a value can be computed from.
        against_train: True when draws are to be scored against training data too: what a model that memorises gains there
            it does not gain on held-out data.
    """

    ratio: ClassVar[bool] = True
    of_model: ClassVar[bool] = False
    lower_is_better: ClassVar[bool | None] = True
    against_train: ClassVar[bool] = False
    least_rows: int = 1

    @abstractmethod
    def __call__(self, context: EvalContext) -> dict[str, float]:
        """Named values; a metric with one value uses its own component name as the key."""

    def check(self, dataset: Dataset) -> None:
        """Called before anything is trained or drawn; raises UsageError when the metric can't serve ``dataset``, RecipeError
        or PluginError when it names a component that is not installed."""
        return

    def protocol(self, context: EvalContext) -> dict[str, Any]:
        """What the value depends on: N, features and their checksum, bandwidths."""
        return {"samples": len(context.samples), "reference": len(context.reference)}
