"""The interfaces of evaluation: feature maps, metrics, and the context that a metric is computed from.

Shapes: N draws, M rows of reference data, F features, K classes, ``*D`` data shape.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from gebm_kit.core.datasets import Dataset

if TYPE_CHECKING:
    from gebm_kit.core.model import GEBM


class FeatureMap(ABC):
    """Features on which metrics compare sets of draws.

    Attributes:
        checksum: identifies the features exactly (weights included), part of every metric's protocol.
        resize: how an image is resized before its features are computed, in words; also part of every metric's
            protocol.
        cached: whether features of reference data are worth keeping on disk; False where they cost nothing.
    """

    checksum: str
    resize: str = "none"
    cached: ClassVar[bool] = True

    def check(self, dataset: Dataset) -> None:
        """Check that the map can serve ``dataset``. Called before anything is trained or drawn.

        Raises:
            UsageError: it can't, or a file that it needs is missing.
            PluginError: a package that it needs is missing.
        """
        return

    @abstractmethod
    def fit(self, dataset: Dataset, device: torch.device) -> None:
        """Prepare for a dataset (train or load a classifier). Called once, before the first `__call__`."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Compute the features in blocks, without gradient; (N, *D) -> (N, F)."""


@runtime_checkable
class ReportsFit(Protocol):
    """A feature map whose `FeatureMap.fit` takes long, and reports its steps."""

    on_step: Callable[[int, int], None] | None
    """Called with the number of steps done and the number of all steps; None: nothing is reported."""


@runtime_checkable
class HasLogits(Protocol):
    """A feature map from a classifier, whose features determine class probabilities."""

    def logits(self, features: Tensor) -> Tensor:
        """Return log class probabilities for rows of features, up to a constant for each row; (N, F) -> (N, K)."""
        ...


@runtime_checkable
class HasClassNetwork(Protocol):
    """A feature map whose classifier is a network that is differentiable with respect to x."""

    def class_network(self, data_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """Return the classifier with fresh weights, (N, *D) -> logits (N, K)."""
        ...

    def network_weights(self) -> Mapping[str, Tensor]:
        """Return the ``state_dict`` of the classifier, once the map is fitted."""
        ...


@dataclass(frozen=True, slots=True)
class EvalContext:
    """What a metric is computed from.

    Attributes:
        samples: the draws to score, (N, *D).
        reference: data to score them against, (M, *D).
        model: the GEBM, for metrics of the model itself (kale).
        train: training data, (L, *D), for metrics that look for copies of it (`Metric.needs_train`); or None.
        dataset: where the data comes from, for toys with known modes.
        features: `FeatureMap` by name, fitted on first use.
        generator: random numbers for metrics that subsample.
    """

    samples: Tensor
    reference: Tensor
    dataset: Dataset | None
    features: Any
    generator: torch.Generator
    model: GEBM | None = None
    train: Tensor | None = None


class Metric(ABC):
    """A named figure of merit for a set of draws.

    Attributes:
        ratio: whether GEBM over base is meaningful (a distance that is zero at the truth).
        of_model: True when the metric is a property of the model and not of draws (kale): called once.
        lower_is_better: direction, for tables and for choosing the best checkpoint; None for a metric without one.
        least_rows: fewest draws, and fewest rows of reference data, that a value can be computed from.
        against_train: True when draws are also scored against training data: a model that memorises scores better there
            than on held-out data.
        needs_train: True when the metric compares draws with training data (`EvalContext.train`), besides or instead of
            the reference. It then can't score models that come without their training data.
    """

    ratio: ClassVar[bool] = True
    of_model: ClassVar[bool] = False
    lower_is_better: ClassVar[bool | None] = True
    against_train: ClassVar[bool] = False
    needs_train: ClassVar[bool] = False
    least_rows: int = 1

    @abstractmethod
    def __call__(self, context: EvalContext) -> dict[str, float]:
        """Compute the metric's values by name; a metric with one value uses its own component name as the key."""

    def check(self, dataset: Dataset) -> None:
        """Check that the metric can serve ``dataset``. Called before anything is trained or drawn.

        Raises:
            UsageError: it can't.
            RecipeError, PluginError: it names a component that is not installed.
        """
        return

    def protocol(self, context: EvalContext) -> dict[str, Any]:
        """Return what the value depends on: N, features and their checksum, bandwidths."""
        return {"samples": len(context.samples), "reference": len(context.reference)}
