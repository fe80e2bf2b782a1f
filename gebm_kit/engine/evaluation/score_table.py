"""The table of estimates: every metric of every draw set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gebm_kit.core.contracts import check_metric_values, untouched
from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Dataset, EvalContext, Metric
from gebm_kit.core.model import GEBM
from gebm_kit.core.progress import OnProgress, Progress
from gebm_kit.core.seeds import stream
from gebm_kit.engine.evaluation.intervals import Estimate, mean_interval, paired_ratio

Known = dict[tuple[str, str, int], dict[str, float]]
"""Values that were computed already: (metric, column, index of the set) -> values."""

AGAINST_TRAIN = "train"
"""The suffix of values against training data (``fid.train``), and the key in the metric's protocol for what differs."""


@dataclass(frozen=True)
class Scorer:
    """The parts of an `EvalContext` that are the same for all sets.

    Attributes:
        train: training data, for metrics that ask for it (`Metric.against_train`, `Metric.needs_train`); or None.
        against_train: whether metrics that ask for it are scored against the training data too.
    """

    model: GEBM
    dataset: Dataset
    reference: Tensor
    features: Callable[[str], Any]
    seed: int
    train: Tensor | None = None
    against_train: bool = True

    def context(self, name: str, samples: Tensor, index: int, reference: Tensor | None = None) -> EvalContext:
        """Return a metric's context for one set. Sets of the same index are paired: they share reference and shuffles."""
        return EvalContext(
            samples=samples,
            reference=self.reference if reference is None else reference,
            dataset=self.dataset,
            features=self.features,
            generator=stream(self.seed, "metric", name, index),
            model=self.model,
            train=self.train,
        )

    def values(self, name: str, metric: Metric, samples: Tensor, index: int) -> dict[str, float]:
        """Score one set against the reference and, under names that end in ``.train``, against training data."""
        with untouched("metric", metric, "the draws or the data that it scores", samples, self.reference):
            values = metric(self.context(name, samples, index))
        check_metric_values(metric, values)
        if self.train is not None and self._twice(metric):
            beside = metric(self.context(name, samples, index, self.train))
            values = values | {f"{key}.{AGAINST_TRAIN}": value for key, value in beside.items()}
        return values

    def protocol(self, name: str, metric: Metric, samples: Tensor) -> dict[str, Any]:
        """Return what the values depend on, with what differs against training data under `AGAINST_TRAIN`."""
        found = dict(metric.protocol(self.context(name, samples, 0)))
        if self.train is not None and self._twice(metric):
            beside = metric.protocol(self.context(name, samples, 0, self.train))
            other = {key: value for key, value in beside.items() if value != found.get(key)}
            found[AGAINST_TRAIN] = {"reference_part": "train", "reference": len(self.train)} | other
        found["lower_is_better"] = metric.lower_is_better
        return found

    def _twice(self, metric: Metric) -> bool:
        return self.against_train and metric.against_train


def check_rows(metrics: Mapping[str, Metric], counts: Mapping[str, int]) -> None:
    """Raise if there are too few rows for a metric.

    Args:
        counts: number of rows by kind, such as "draws".

    Raises:
        UsageError: a metric needs more rows.
    """
    for name, metric in metrics.items():
        for what, count in counts.items():
            if count < metric.least_rows and not metric.of_model:
                raise UsageError(
                    f"metric {name} needs at least {metric.least_rows} {what}, and there are {count}",
                    hint="Draw more, hold more data out, or give the metric other parameters: fewer splits or neighbours.",
                )


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """Estimates by column and value name, protocols by metric, and the values behind the estimates.

    Attributes:
        values: metric -> column -> the values of every set, in order.
        differences: GEBM minus base, paired over the sets, by value name.
    """

    metrics: dict[str, dict[str, Estimate]]
    protocol: dict[str, dict[str, Any]]
    values: dict[str, dict[str, list[dict[str, float]]]]
    differences: dict[str, Estimate]


def score_table(
    metrics: Mapping[str, Metric],
    columns: Mapping[str, list[Tensor]],
    scorer: Scorer,
    on_progress: OnProgress,
    known: Known | None = None,
) -> ScoreTable:
    """Score every set of every column by every metric, but for values that are ``known`` already."""
    of_draws = {name: metric for name, metric in metrics.items() if not metric.of_model}
    done, total = 0, len(metrics) - len(of_draws) + len(of_draws) * sum(map(len, columns.values()))
    found: dict[str, dict[str, list[dict[str, float]]]] = {name: {key: [] for key in columns} for name in of_draws}
    # all metrics of one set before the next set, since they share its features
    for column, sets in columns.items():
        for index, samples in enumerate(sets):
            for name, metric in of_draws.items():
                values = (known or {}).get((name, column, index))
                found[name][column].append(scorer.values(name, metric, samples, index) if values is None else values)
                done += 1
                on_progress(Progress("evaluate", done, total))
    table: dict[str, dict[str, Estimate]] = {column: {} for column in (*columns, "ratio")}
    protocol: dict[str, dict[str, Any]] = {}
    differences: dict[str, Estimate] = {}
    for name, metric in metrics.items():
        protocol[name] = scorer.protocol(name, metric, columns["gebm"][0])
        if metric.of_model:
            for key, value in metric(scorer.context(name, columns["base"][0], 0)).items():
                table["gebm"][key] = Estimate(value, None, None, 1)
            done += 1
            on_progress(Progress("evaluate", done, total))
            continue
        rows = found[name]
        for column in columns:
            for key in rows[column][0]:
                table[column][key] = mean_interval([row[key] for row in rows[column]])
        protocol[name] |= {"sets": len(columns["gebm"]), "interval": "95 %, Student's t over sets"}
        protocol[name] |= {"held_out": len(columns["data"][0]), "held_out_sets": len(columns["data"])}
        pairs = list(zip(rows["gebm"], rows["base"], strict=True))
        for key in rows["gebm"][0]:
            differences[key] = mean_interval([gebm[key] - base[key] for gebm, base in pairs])
            if metric.ratio:
                ratio = paired_ratio([gebm[key] for gebm, _ in pairs], [base[key] for _, base in pairs])
                table["ratio"][key] = ratio.estimate
                protocol[name]["ratio_interval"] = ratio.method
    return ScoreTable(table, protocol, found, differences)
