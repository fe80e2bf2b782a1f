"""The feature map that a metric compares draws on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gebm_kit.core.components import BUILTIN
from gebm_kit.core.errors import RunFailed, UsageError
from gebm_kit.core.interfaces import Dataset, EvalContext, FeatureMap, HasLabels
from gebm_kit.core.plugins import installed


@dataclass(frozen=True, slots=True)
class FeatureSpace:
    """A named, fitted feature map."""

    name: str
    map: FeatureMap

    def of(self, x: Tensor, what: str) -> Tensor:
        """Features in float64, (N, *D) -> (N, F).

        Raises:
            RunFailed: a feature is not finite, so some draw is not.
        """
        features = self.map(x).double()
        if not bool(torch.isfinite(features).all()):
            raise RunFailed(f"{what} contain values that are not finite (NaN or infinity), so they can't be scored")
        return features

    def protocol(self) -> dict[str, Any]:
        """Name and checksum, for the metric's protocol."""
        return {"features": self.name, "features_checksum": self.map.checksum}


def feature_space(name: str, context: EvalContext) -> FeatureSpace:
    """The map called ``name``; ``auto`` is ``classifier`` for a dataset with labels and ``pixels`` otherwise."""
    if name == "auto":
        name = "classifier" if isinstance(context.dataset, HasLabels) else "pixels"
    return FeatureSpace(name, context.features(name))


def check_features(name: str, dataset: Dataset, metric: str) -> None:
    """Refuse a feature map that does not exist or can't serve ``dataset``.

    Raises:
        RecipeError, PluginError: no installed feature map is called so.
        UsageError: it needs labels, and the dataset has none.
    """
    if name == "auto":
        return
    record = installed().registry.get("features", name)
    needs_labels = (record.distribution, record.component.name) == (BUILTIN, "classifier")
    if needs_labels and not isinstance(dataset, HasLabels):
        raise UsageError(
            f"metric {metric}: features {name!r} need a dataset with labels, and this one has none",
            hint="Use features: pixels.",
        )


def check_rows(context: EvalContext, least: int, metric: str) -> None:
    """Raise UsageError when there are fewer than ``least`` draws or reference rows."""
    for what, rows in (("draws", context.samples), ("reference rows", context.reference)):
        if len(rows) < least:
            raise UsageError(f"metric {metric} needs at least {least} {what}, got {len(rows)}")
