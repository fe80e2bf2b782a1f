"""Checks of what every feature map and every metric must do, which plugin authors run on their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gebm_kit.config.build import build
from gebm_kit.config.schema import ComponentNode
from gebm_kit.core import contracts
from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Dataset, EvalContext, FeatureMap, HasLogits, Metric
from gebm_kit.core.model import GEBM
from gebm_kit.engine.evaluation.feature_maps import FeatureMaps
from gebm_kit.testing.conformance import conformance

ROWS = 16
"""Rows whose features are computed."""

DRAWS = 200
"""Draws, and rows of reference data, that a metric is computed from."""

TOLERANCE = 1e-4
"""Largest difference between a row's features alone and among others, relative to the largest value."""


@conformance("features")
def check_features(features: FeatureMap, dataset: Dataset | None = None) -> None:
    """Check a feature map ``f(x)``: (N, F) finite features, the same for a row alone, without gradient, with a checksum.

    Args:
        features: the feature map, not fitted yet. It is fitted to ``dataset`` on the CPU.
        dataset: data that it serves; None: the dataset ``digits``, (1, 8, 8).

    Raises:
        AssertionError: a check failed, or the signature is not valid; the message names map, package, file and line.
        UsageError: the map does not serve the dataset (``features.check``): give one that it serves.

    Example:
        >>> from gebm_kit.features.pixels import Pixels
        >>> check_features(Pixels())
    """
    dataset = build("dataset", ComponentNode("digits")) if dataset is None else dataset
    assert dataset is not None
    features.check(dataset)
    features.fit(dataset, torch.device("cpu"))
    x = dataset.split("test").first(ROWS)
    given = x.clone().requires_grad_()
    found: Any = features(given)
    contracts.check_features(features, found, len(x))
    if not torch.equal(given.detach(), x):
        contracts.refuse_changed("features", features, "its input x")
    assert not found.requires_grad, "it returns features with an autograd graph; compute them under torch.no_grad()"
    contracts.check_finite("features", features, "rows of the test part", found)
    contracts.check_repeatable("features", features, found, features(x.clone()), 0.0)
    alone = torch.cat([features(row.clone()) for row in x.split(1)])
    contracts.check_rows_independent("features", features, found, alone, TOLERANCE)
    assert found.shape[1] == features(x[:1]).shape[1], "the number of features depends on the number of rows"
    for name in ("checksum", "resize"):
        value: object = getattr(features, name, None)
        assert isinstance(value, str) and value, f"{name} must be a text that identifies it, but it is {value!r}"
    assert isinstance(features.cached, bool), f"cached must be a bool, but it is {features.cached!r}"
    if isinstance(features, HasLogits):
        logits: Any = features.logits(found)
        assert isinstance(logits, Tensor) and logits.ndim == 2 and len(logits) == len(x), (
            f"logits must return (N, K), but it returns {contracts.said(logits)}"
        )


@conformance("metric")
def check_metric(
    metric: Metric,
    dataset: Dataset | None = None,
    model: GEBM | None = None,
    features: Callable[[str], FeatureMap] | None = None,
) -> None:
    """Check a metric: floats by name, the same for the same seed, draws left alone, its direction and its protocol.

    A metric with a direction is computed for held-out data and for noise: the value of noise must be the worse.

    Args:
        metric: the metric.
        dataset: data that it serves; None: the dataset ``digits``, (1, 8, 8).
        model: the model, which metrics of the model itself need.
        features: feature maps by name; None: the registered ones, fitted when they are asked for.

    Raises:
        AssertionError: a check failed, or the signature is not valid; the message names metric, package, file and line.
        UsageError: the metric does not serve the dataset (``metric.check``), or needs a model.

    Example:
        >>> from gebm_kit.metrics.sliced_wasserstein import SlicedWasserstein
        >>> check_metric(SlicedWasserstein())
    """
    dataset = build("dataset", ComponentNode("digits")) if dataset is None else dataset
    assert dataset is not None
    metric.check(dataset)
    for name in ("ratio", "of_model", "against_train", "needs_train"):
        assert isinstance(getattr(metric, name), bool), f"{name} must be a bool, but it is {getattr(metric, name)!r}"
    lower: object = metric.lower_is_better
    assert lower is None or isinstance(lower, bool), f"lower_is_better must be a bool or None, but it is {lower!r}"
    least: object = metric.least_rows
    assert isinstance(least, int) and least >= 1, f"least_rows must be a whole number >= 1, but it is {least!r}"
    if metric.of_model and model is None:
        raise UsageError(
            "it is a metric of the model itself", hint="Give check_metric a model: model=GEBM(base, energy)."
        )
    num = max(DRAWS, metric.least_rows)
    reference, held_out = dataset.split("train").first(num).float(), dataset.split("test").first(num).float()
    assert min(len(reference), len(held_out)) >= metric.least_rows, f"it needs {least} rows, and the dataset has fewer"
    maps = features or FeatureMaps(dataset, torch.device("cpu"))
    noise = torch.randn(held_out.shape, generator=torch.Generator().manual_seed(0)) * (1 + held_out.std())
    good = [_values(metric, held_out, reference, dataset, maps, model, seed) for seed in (1, 2)]
    _check_same(good)
    bad = _values(metric, noise, reference, dataset, maps, model, 1)
    assert set(bad) == set(good[0]), f"its values have other names for other draws: {sorted(good[0])} and {sorted(bad)}"
    first = next(iter(good[0]))
    if (
        isinstance(lower, bool)
        and not metric.of_model
        and good[0][first] == good[0][first]
        and bad[first] == bad[first]
    ):
        worse = bad[first] >= good[0][first] if lower else bad[first] <= good[0][first]
        assert worse, (
            f"lower_is_better is {lower}, but noise scores {bad[first]:.6g} in {first!r}, "
            f"and held-out data {good[0][first]:.6g}"
        )


def _values(
    metric: Metric,
    samples: Tensor,
    reference: Tensor,
    dataset: Dataset,
    maps: Callable[[str], FeatureMap],
    model: GEBM | None,
    default_seed: int,
) -> dict[str, float]:
    """Return the metric's values once they are checked; its random numbers must come from the context's generator."""
    kept = samples.clone(), reference.clone()
    train = dataset.split("train").first(len(reference)).float() if metric.needs_train else None
    context = EvalContext(samples, reference, dataset, maps, torch.Generator().manual_seed(0), model, train)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(default_seed)
        values: Any = metric(context)
    contracts.check_metric_values(metric, values)
    assert values, "it returns no value"
    if not (torch.equal(samples, kept[0]) and torch.equal(reference, kept[1])):
        contracts.refuse_changed("metric", metric, "the draws or the data that it scores")
    protocol: Any = metric.protocol(context)
    try:
        assert isinstance(protocol, dict), f"protocol must return a dict, but it returns {contracts.said(protocol)}"
        json.dumps(protocol)
    except (TypeError, ValueError) as error:
        raise AssertionError(f"its protocol can't be written as JSON: {error}") from error
    return {name: float(value) for name, value in values.items()}


def _check_same(results: list[dict[str, float]]) -> None:
    first, second = results
    assert list(first) == list(second), (
        f"its values have other names at the second call: {list(first)} and {list(second)}"
    )
    for name, value in first.items():
        same = value == second[name] or (value != value and second[name] != second[name])
        assert same, (
            f"{name!r} differs for the same draws and seed; every random number must come from context.generator"
        )
