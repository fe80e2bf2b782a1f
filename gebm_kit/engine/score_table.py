"""Every metric of every draw set, as a table of estimates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gebm_kit.core.interfaces import Metric
from gebm_kit.engine.intervals import Estimate, mean_interval, paired_ratio
from gebm_kit.engine.progress import OnProgress, Progress

if TYPE_CHECKING:
    from gebm_kit.engine.evaluate import Scorer


def score_table(
    metrics: Mapping[str, Metric], columns: Mapping[str, list[Tensor]], scorer: Scorer, on_progress: OnProgress
) -> tuple[dict[str, dict[str, Estimate]], dict[str, dict[str, Any]]]:
    """Estimates by column and value name, and protocols by metric."""
    table: dict[str, dict[str, Estimate]] = {column: {} for column in (*columns, "ratio")}
    protocol: dict[str, dict[str, Any]] = {}
    total = sum(1 if metric.of_model else sum(map(len, columns.values())) for metric in metrics.values())
    done = 0
    for name, metric in metrics.items():
        protocol[name] = dict(metric.protocol(scorer.context(name, columns["gebm"][0], 0)))
        protocol[name]["lower_is_better"] = metric.lower_is_better
        if metric.of_model:
            for key, value in metric(scorer.context(name, columns["base"][0], 0)).items():
                table["gebm"][key] = Estimate(value, None, None, 1)
            done += 1
            on_progress(Progress("evaluate", done, total))
            continue
        rows: dict[str, list[dict[str, float]]] = {column: [] for column in columns}
        for column, sets in columns.items():
            for index, samples in enumerate(sets):
                rows[column].append(metric(scorer.context(name, samples, index)))
                done += 1
                on_progress(Progress("evaluate", done, total))
            for key in rows[column][0]:
                table[column][key] = mean_interval([row[key] for row in rows[column]])
        protocol[name] |= {"sets": len(columns["gebm"]), "interval": "95 %, Student's t over sets"}
        protocol[name] |= {"held_out": len(columns["data"][0]), "held_out_sets": len(columns["data"])}
        if metric.ratio:
            for key in rows["gebm"][0]:
                ratio = paired_ratio([row[key] for row in rows["gebm"]], [row[key] for row in rows["base"]])
                table["ratio"][key] = ratio.estimate
                protocol[name]["ratio_interval"] = ratio.method
    return table, protocol
