"""Feature maps in whose space metrics compare draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from gebm_kit.core.components import BUILTIN
from gebm_kit.core.errors import RunFailed, UsageError
from gebm_kit.core.interfaces import Dataset, EvalContext, FeatureMap, HasLabels, HasLogits
from gebm_kit.core.plugins import component_name, installed
from gebm_kit.core.progress import warn

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FeatureSpace:
    """A named, fitted feature map."""

    name: str
    map: FeatureMap

    def of(self, x: Tensor, what: str) -> Tensor:
        """Return features in float64, (N, *D) -> (N, F).

        Raises:
            RunFailed: a feature is not finite, because a draw is not.
        """
        features = self.map(x).double()
        if not bool(torch.isfinite(features).all()):
            raise RunFailed(f"{what} contain values that are not finite (NaN or infinity), so they can't be scored")
        return features

    def logits(self, features: Tensor, metric: str) -> Tensor:
        """Return class logits of rows of features in float64, (N, F) -> (N, K).

        Raises:
            UsageError: the map has no logits.
        """
        if not isinstance(self.map, HasLogits):
            raise _no_classes(self.name, metric)
        return self.map.logits(features).double()

    def protocol(self) -> dict[str, Any]:
        """Return the map's name, its checksum and how it resizes images, for the metric's protocol."""
        return {"features": self.name, "features_checksum": self.map.checksum, "resize": self.map.resize}


def normalised(features: Tensor) -> Tensor:
    """Divide each row by its length; rows of zeros stay as they are. (N, F) -> (N, F)."""
    length = features.norm(dim=1, keepdim=True)
    return features / torch.where(length > 0, length, 1.0)


class OfReference(Generic[T]):
    """Cache of what a metric derives from the reference alone, for the last two references.

    Every set of draws is scored against the same two: held-out data and training data.
    """

    def __init__(self, derive: Callable[[Tensor], T]) -> None:
        self._derive = derive
        self._known: list[tuple[Tensor, str, T]] = []

    def __call__(self, space: FeatureSpace, context: EvalContext) -> T:
        """Return ``derive`` of the reference's features, computed only if it is not in the cache."""
        return self.of(space, context.reference, "the reference rows")

    def of(self, space: FeatureSpace, rows: Tensor, what: str) -> T:
        """Return ``derive`` of the features of rows that play the reference's part, such as training data."""
        for seen, checksum, value in self._known:
            if seen is rows and checksum == space.map.checksum:
                return value
        value = self._derive(space.of(rows, what))
        self._known = [*self._known[-1:], (rows, space.map.checksum, value)]
        return value


def feature_space(name: str | FeatureMap, context: EvalContext) -> FeatureSpace:
    """Return the map called ``name``, or the map itself; ``auto`` is ``classifier`` for a dataset with labels and ``pixels``
    otherwise."""
    if isinstance(name, FeatureMap):
        return FeatureSpace(component_name("features", name), context.features(name))
    if name == "auto":
        name = "classifier" if isinstance(context.dataset, HasLabels) else "pixels"
    return FeatureSpace(name, context.features(name))


def check_features(name: str | FeatureMap, dataset: Dataset, metric: str) -> None:
    """Raise if a feature map does not exist or can't be used with ``dataset``.

    Raises:
        RecipeError, PluginError: no installed feature map has this name.
        UsageError: the map needs labels, and the dataset has none.
    """
    if name == "auto" or isinstance(name, FeatureMap):  # an object says itself what it needs
        return
    record = installed().registry.get("features", name)
    needs_labels = (record.distribution, record.component.name) == (BUILTIN, "classifier")
    if needs_labels and not isinstance(dataset, HasLabels):
        raise UsageError(
            f"metric {metric}: features {name!r} need a dataset with labels, and this one has none",
            hint="Use features: pixels.",
        )


def check_classes(name: str | FeatureMap, dataset: Dataset, metric: str) -> None:
    """Raise as `check_features` does, and if the map has no class probabilities.

    Raises:
        RecipeError, PluginError, UsageError: as `check_features`; the map has no class probabilities.
    """
    check_features(name, dataset, metric)
    if name == "auto":
        if not isinstance(dataset, HasLabels):
            raise _no_classes("pixels", metric)
    elif isinstance(name, FeatureMap):
        if not isinstance(name, HasLogits):
            raise _no_classes(type(name).__name__, metric)
    elif not issubclass(installed().registry.get("features", name).load(), HasLogits):
        raise _no_classes(name, metric)


def _no_classes(name: str, metric: str) -> UsageError:
    return UsageError(
        f"metric {metric} needs class probabilities, which features {name!r} don't have",
        hint="Use features: classifier (data with labels), or inception from the plugin gebm-kit-inception.",
    )


class Doubts:
    """The warnings of one metric object about too few rows: each is given once, however many sets are scored."""

    def __init__(self) -> None:
        self._given: set[object] = set()

    def warn(self, key: object, text: str) -> None:
        """Warn, unless a warning with this key was given before."""
        if key not in self._given:
            self._given.add(key)
            warn(text)


def check_num_rows(context: EvalContext, least: int, metric: str) -> None:
    """Raise UsageError if there are fewer than ``least`` draws or reference rows."""
    for what, rows in (("draws", context.samples), ("reference rows", context.reference)):
        if len(rows) < least:
            raise UsageError(f"metric {metric} needs at least {least} {what}, got {len(rows)}")
