"""The metrics of a recipe: choosing them, building them by name, and checking them against the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Dataset, HasModes, Metric
from gebm_kit.core.plugins import component_name
from gebm_kit.engine.evaluation.data_rows import train_split
from gebm_kit.engine.evaluation.feature_maps import FeatureSettings
from gebm_kit.engine.likelihood.nll import check_space

if TYPE_CHECKING:
    from gebm_kit.config.schema import Recipe


DEFAULT_METRICS = ("frechet", "mmd", "sliced-wasserstein")
"""The metrics used when none are named. They apply to data of any kind."""

DEFAULT_MODE_METRICS = (*DEFAULT_METRICS, "modes")
"""The metrics used when none are named and the data has known modes."""


def check_metrics(recipe: Recipe, dataset: Dataset) -> dict[str, Metric]:
    """Build a recipe's metrics; raise, before training, if they do not work on its data.

    Raises:
        UsageError: a metric, or ``nll.space``, needs what the dataset does not have.
    """
    check_space(dataset, recipe.nll.space)
    metrics = build_metrics(metrics_of(recipe, dataset))
    check_data_serves(metrics, dataset, FeatureSettings.of(recipe))
    return metrics


def check_data_serves(metrics: Mapping[str, Metric], dataset: Dataset, features: FeatureSettings) -> None:
    """Raise UsageError where a metric, or a feature map that it names, needs what the dataset does not have."""
    for name, metric in metrics.items():
        check_has_train(name, metric, dataset)
        metric.check(dataset)
    features.check(metrics.values(), dataset)


def check_has_train(name: str, metric: Metric, dataset: Dataset) -> None:
    """Raise UsageError if the metric needs training data, and the rows to evaluate on came without any."""
    if metric.needs_train and train_split(dataset) is None:
        raise UsageError(
            f"metric {name} compares draws with training data, and these rows came without any",
            hint="Evaluate a run on its own data, or give a dataset with a training part in place of rows.",
        )


def metrics_of(recipe: Recipe | None, dataset: Dataset) -> list[Any]:
    """Return a recipe's metrics as nodes, or the default names where it lists none."""
    return [*(() if recipe is None else recipe.eval.metrics)] or default_metrics(dataset)


def build_metrics(chosen: Sequence[Any]) -> dict[str, Metric]:
    """Build metrics from names, recipe nodes or objects; returns name -> metric.

    Raises:
        UsageError: the same metric twice, or something that is not a metric.
        RecipeError, PluginError: no installed metric has this name.
    """
    from gebm_kit.config.build import build
    from gebm_kit.config.given_node import given_node
    from gebm_kit.config.schema import ComponentNode
    from gebm_kit.config.supplied import SuppliedNode

    if not isinstance(chosen, Sequence):
        raise UsageError(f"metrics must be a list of names, nodes or Metric objects, got {type(chosen).__name__}")
    built: dict[str, Metric] = {}
    for item in chosen:
        if isinstance(item, Metric):
            name, metric = component_name("metric", item), item
        elif isinstance(item, str | Mapping | ComponentNode):
            node = item if isinstance(item, ComponentNode) else given_node("metric", item, "metrics")
            metric = build("metric", node)
            name = component_name("metric", metric) if isinstance(node, SuppliedNode) else node.name
        else:
            what = f"the class {item.__name__}" if isinstance(item, type) else type(item).__name__
            raise UsageError(f"metrics must be names, nodes {{name: ...}} or Metric objects, got {what}")
        if name in built:
            raise UsageError(f"metric {name!r} is listed twice; evaluate once for each of its settings")
        built[name] = metric
    return built


def default_metrics(dataset: Dataset) -> list[str]:
    """Return the names of the metrics for a dataset when none are chosen."""
    known: object = dataset
    return [*(DEFAULT_MODE_METRICS if isinstance(known, HasModes) else DEFAULT_METRICS)]
