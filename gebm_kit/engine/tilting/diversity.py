"""How different draws are from each other, and how they lie among the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gebm_kit.config.build import build
from gebm_kit.config.schema import ComponentNode
from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Dataset, EvalContext, FeatureMap, HasLabels, Metric
from gebm_kit.core.progress import OnProgress, ignore, warn
from gebm_kit.engine.evaluation.feature_maps import FeatureMaps
from gebm_kit.engine.tilting.result import Estimate

MOST_ROWS = 1000
"""Most draws whose distances are computed."""


@dataclass(frozen=True)
class Looks:
    """A feature map, and held-out data to compare with where there are any.

    Attributes:
        name: the feature map's name.
        map: the feature map.
        dataset: the data, or None.
        maps: feature maps by name for metrics, or None.
        reference: held-out rows, or None.
    """

    name: str
    map: FeatureMap
    dataset: Dataset | None = None
    maps: FeatureMaps | None = None
    reference: Tensor | None = None

    @classmethod
    def of(
        cls, name: str, dataset: Dataset | None, device: torch.device, rows: int, on_progress: OnProgress = ignore
    ) -> Looks:
        """Return the map called ``name``; ``auto`` is ``classifier`` for data with labels, else ``pixels``.

        Raises:
            UsageError: a map that learns from data has none.
        """
        if name == "auto":
            name = "classifier" if isinstance(dataset, HasLabels) else "pixels"
        if dataset is None:
            if name != "pixels":
                raise UsageError(
                    f"features {name!r} need data: name a dataset too", hint="features: pixels needs none."
                )
            return cls(name, build("features", ComponentNode(name), {"device": device}))
        split = dataset.split("test")
        reference = split.first(min(len(split), rows)).to(device)
        maps = FeatureMaps(dataset, device, constant=(reference,), on_progress=on_progress)
        return cls(name, maps(name), dataset, maps, reference)

    def diversity(self, x: Tensor) -> Estimate:
        """Return the mean distance between the features of two draws, (N, *D), with its standard error.

        It is a U-statistic; its error follows from each draw's mean distance to the others.
        """
        features = self.map(x[:MOST_ROWS]).double()
        num = len(features)
        if num < 3:
            return Estimate(math.nan, math.nan)
        each = torch.cdist(features, features).sum(1) / (num - 1)
        return Estimate(float(each.mean()), 2 * float(each.std()) / math.sqrt(num))

    def prdc(self, x: Tensor, seed: int) -> dict[str, float]:
        """Return precision, recall, density and coverage of draws against held-out data; {} without data."""
        if self.reference is None or self.maps is None:
            return {}
        metric: Metric = build("metric", ComponentNode("prdc", {"features": self.name}))
        if min(len(x), len(self.reference)) < 2 * metric.least_rows:
            warn(f"PRDC is left out: {len(x)} draws or {len(self.reference)} held-out rows are too few")
            return {}
        context: Any = EvalContext(x, self.reference, self.dataset, self.maps, torch.Generator().manual_seed(seed))
        return {name.removeprefix("prdc."): value for name, value in metric(context).items()}
