"""The check of metrics that are not the kit's own, and of cheap feature maps, on a few rows before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

import torch
from torch import Tensor

from gebm_kit.core import contracts
from gebm_kit.core.attribution import is_foreign
from gebm_kit.core.interfaces import Dataset, EvalContext, FeatureMap, Metric
from gebm_kit.core.model import GEBM
from gebm_kit.core.preserved import preserved
from gebm_kit.engine.evaluation.feature_maps import FeatureSettings
from gebm_kit.engine.evaluation.score_table import check_rows

ROWS = 64
"""Draws and rows of reference data of the check, unless a metric needs more."""


class _TooDear(Exception):
    """A metric asked for features whose fitting may take long: it is not checked beforehand."""


def check_values(
    metrics: Mapping[str, Metric], model: GEBM, dataset: Dataset, features: FeatureSettings, device: torch.device
) -> None:
    """Check what metrics return, and that they leave draws and data as they are; the kit's own metrics are not tried.

    Raises:
        PluginError: a check failed; the message names the metric, its package, file and line.
        UsageError: the test part has too few rows for a metric.
    """
    check_rows(metrics, {"rows in the test part": len(dataset.split("test"))})
    for metric in metrics.values():
        if not is_foreign(metric) or metric.of_model:
            continue
        split = dataset.split("test")
        reference = split.first(max(ROWS, metric.least_rows)).float().cpu()
        generator = torch.Generator(device).manual_seed(0)
        with preserved(model, device=device), torch.no_grad():
            model.eval()
            z = model.base.sample_prior(len(reference), generator, model.dtype)
            labels = torch.zeros(len(z), dtype=torch.int64, device=z.device) if model.conditional else None
            samples = model.decode(z, labels).float().cpu()
        if len(reference) < metric.least_rows:
            continue  # `check_rows` says so
        kept = samples.clone(), reference.clone()
        train = dataset.split("train").first(len(reference)).float().cpu() if metric.needs_train else None
        context = EvalContext(samples, reference, dataset, _Features(dataset, features), _generator(), model, train)
        with preserved(model, device=device):
            try:
                contracts.check_metric_values(metric, metric(context))
                contracts.check_protocol(metric, metric.protocol(context))
            except _TooDear:
                continue
        if not (contracts.same(samples, kept[0]) and contracts.same(reference, kept[1])):
            contracts.refuse_changed("metric", metric, "the draws or the data that it scores")


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


class _Features:
    """``features(name)`` of a metric's context, for maps that cost nothing to fit; others end the check."""

    def __init__(self, dataset: Dataset, settings: FeatureSettings) -> None:
        self._dataset, self._settings = dataset, settings

    def __call__(self, name: str) -> FeatureMap:
        built = self._settings.build(name, torch.device("cpu"))
        if built.cached:
            self._refuse()
        built.fit(self._dataset, torch.device("cpu"))
        return _Checked(built) if is_foreign(built) else built

    def _refuse(self) -> NoReturn:
        raise _TooDear


class _Checked(FeatureMap):
    """A feature map whose results are checked."""

    def __init__(self, inner: FeatureMap) -> None:
        self._inner, self.checksum, self.resize = inner, inner.checksum, inner.resize

    def fit(self, dataset: Dataset, device: torch.device) -> None:
        self._inner.fit(dataset, device)

    def __call__(self, x: Tensor) -> Tensor:
        kept, found = x.clone(), self._inner(x)
        if not contracts.same(x, kept):
            contracts.refuse_changed("features", self._inner, "its input x")
        contracts.check_features(self._inner, found, len(x))
        return found
