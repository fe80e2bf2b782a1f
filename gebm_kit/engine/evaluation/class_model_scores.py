"""Metrics of the energy (`Metric.of_model`) of a model with classes: of each class, and their mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from gebm_kit.core.contracts import check_metric_values
from gebm_kit.core.interfaces import Metric
from gebm_kit.core.model import GEBM
from gebm_kit.engine.evaluation.intervals import Estimate
from gebm_kit.engine.evaluation.score_table import Scorer, ScoreTable


@dataclass(frozen=True)
class ClassModelScores:
    """Values of the metrics of a model with classes.

    Attributes:
        of_classes: class -> name -> value, of the law of one class against its held-out rows.
        overall: their mean, weighted by how often the classes are drawn. For `kale` this is the KALE of the joint law of
            point and class, with a log-partition for each class.
        protocol: what the values depend on, by metric.
    """

    of_classes: Mapping[int, Mapping[str, Estimate]]
    overall: Mapping[str, Estimate]
    protocol: Mapping[str, Mapping[str, Any]]

    def join(self, table: ScoreTable) -> None:
        """Add the overall values and their protocol to a table."""
        table.metrics["gebm"].update(self.overall)
        table.protocol.update({name: dict(found) for name, found in self.protocol.items()})

    def joined(self, label: int, columns: Mapping[str, Any]) -> dict[str, Any]:
        """Return a class's columns, as JSON has them, with its own values in that of the GEBM."""
        own = {key: value.as_dict() for key, value in self.of_classes.get(label, {}).items()}
        return {**columns, "gebm": {**columns.get("gebm", {}), **own}} if own else dict(columns)


def model_scores(
    model: GEBM,
    metrics: Mapping[str, Metric],
    scorer: Scorer,
    reference: Callable[[int], Tensor | None],
    labels: Iterable[int],
) -> ClassModelScores:
    """Compute every metric of the energy for each class that has held-out rows.

    Args:
        reference: class -> its held-out rows (N, *D), or None.
        labels: the classes.
    """
    own = {name: metric for name, metric in metrics.items() if metric.of_model}
    values: dict[int, dict[str, Estimate]] = {}
    protocol: dict[str, Mapping[str, Any]] = {}
    for label in labels if own else ():
        if (rows := reference(label)) is None:
            continue
        of_class = replace(scorer, model=model.given(label), reference=rows, train=None)
        values[label] = {}
        for name, metric in own.items():
            found = metric(of_class.context(name, rows, 0))
            check_metric_values(metric, found)
            values[label] |= {key: Estimate(value, None, None, 1) for key, value in found.items()}
            protocol[name] = {**of_class.protocol(name, metric, rows), "mean": "over classes, by their weights"}
    weights = {label: float(model.class_weights[label]) for label in values}
    total = sum(weights.values())
    names = dict.fromkeys(key for found in values.values() for key in found) if total > 0 else {}
    overall = {
        key: Estimate(sum(weights[k] * found[key].value for k, found in values.items()) / total, None, None, 1)
        for key in names
    }
    return ClassModelScores(values, overall, protocol)
