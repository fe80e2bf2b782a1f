"""The picture of runs side by side: overlaid training curves, and scores with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gebm_kit.engine.figures.plotting import (
    COLOURS,
    LINE_STYLES,
    draw_curve,
    finite_series,
    save_figure,
    series,
    stay_with_the_bulk,
)
from gebm_kit.engine.run_directory.record import RunRecord

RUN_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
"""Okabe and Ito's colours without the yellow; further runs reuse them with another line style."""


TRAINING_CURVES = {
    "energy_loss": "energy loss",
    "base_loss": "base loss",
    "kale": "KALE (nats)",
    "log_partition": "log-partition A (nats)",
}
"""Names in metrics.jsonl and the titles of their panels; a panel is drawn if any run has the name."""


SMOOTH_FROM = 250
"""Number of points from which a curve is drawn pale beneath its medians."""


PANELS_A_ROW = 4
"""Most panels side by side, each 4 inches wide."""


LEGEND_COLUMNS = 4
"""Entries in a row of the legend: one for each panel above it."""


MOST_METRICS = 4
"""Most values of metrics drawn, one row of panels; the table has all of them."""


COLUMN_LABELS = {
    "data": ("held-out data", COLOURS["data"]),
    "base": ("base", COLOURS["base"]),
    "gebm": ("GEBM", COLOURS["GEBM"]),
}


class Metric(Protocol):
    """One value of a metric for all runs; see `gebm_kit.engine.evaluation.comparison.ComparedMetric`."""

    @property
    def name(self) -> str: ...

    @property
    def columns(self) -> Mapping[str, Sequence[Mapping[str, Any] | None]]: ...

    @property
    def reasons(self) -> Sequence[str]: ...


class Runs(Protocol):
    """The runs to draw; see `gebm_kit.engine.evaluation.comparison.Comparison`."""

    @property
    def records(self) -> Sequence[RunRecord]: ...

    @property
    def labels(self) -> Sequence[str]: ...

    @property
    def differences(self) -> Mapping[str, Any]: ...

    @property
    def metrics(self) -> Sequence[Metric]: ...


def draw_comparison(path: Path, comparison: Runs) -> Path:
    """Write the picture as a PNG: training curves, the GEBM's scores during training if there are any, and final scores.

    Values that can't be compared are drawn too, under a title that says so.
    """
    looks, scores = _look_panels(comparison), _score_panels(comparison)
    below = [looks + scores] if len(looks) + len(scores) <= PANELS_A_ROW else [looks, scores]
    rows = [panels for panels in (_curve_panels(comparison), *below) if panels]
    columns = max((len(panels) for panels in rows), default=1)
    legend_lines = math.ceil((len(comparison.labels) + len(COLUMN_LABELS)) / LEGEND_COLUMNS)
    figure = Figure(
        figsize=(max(4.0 * columns, 8.0), 3.4 * max(len(rows), 1) + 0.28 * legend_lines), layout="constrained"
    )
    grid = figure.subplots(max(len(rows), 1), columns, squeeze=False)
    for axes, panels in zip(grid, rows, strict=False):
        for axis, panel in zip(axes, panels, strict=False):
            panel(axis)
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
    if not rows:
        grid[0, 0].text(0.5, 0.5, "no values yet", ha="center", va="center", color="grey")
        grid[0, 0].set_axis_off()
    first = figure.axes[0]
    # a list, since a run may be called "base"
    entries = [(first.plot([], [], **_style(index))[0], label) for index, label in enumerate(comparison.labels)]
    if scores:
        entries += [(first.plot([], [], "o", color=colour)[0], label) for label, colour in COLUMN_LABELS.values()]
    handles, labels = zip(*entries, strict=True)
    figure.legend(handles, labels, loc="outside lower center", ncols=LEGEND_COLUMNS, frameon=False, fontsize=9)
    return save_figure(figure, path)


def _style(index: int) -> dict[str, Any]:
    """Return the colour and line style of a run."""
    return {
        "color": RUN_COLOURS[index % len(RUN_COLOURS)],
        "linestyle": LINE_STYLES[index // len(RUN_COLOURS) % len(LINE_STYLES)],
    }


DrawPanel = Callable[[Axes], None]


def _curve_panels(comparison: Runs) -> list[DrawPanel]:
    """Return one panel for each of `TRAINING_CURVES` that any run logged."""
    other_losses = any(key == "loss" or key.startswith("loss.") for key in comparison.differences)
    panels: list[DrawPanel] = []
    logged = [record.series(TRAINING_CURVES) for record in comparison.records]
    for name, title in TRAINING_CURVES.items():
        drawn = [finite_series(*found[name]) for found in logged]
        if any(np.isfinite(values).any() for _, values in drawn):
            warning = "\n(the runs' losses differ)" if other_losses and name.endswith("_loss") else ""
            panels.append(_curves(drawn, title + warning))
    return panels


def _look_panels(comparison: Runs) -> list[DrawPanel]:
    """Return panels of the GEBM's values against the step, for metrics that any run evaluated more than once."""
    panels: list[DrawPanel] = []
    for metric in comparison.metrics[:MOST_METRICS]:
        drawn = [series(record.evaluated_rows, f"eval.gebm.{metric.name}") for record in comparison.records]
        if any(len(steps) > 1 for steps, _ in drawn):
            panels.append(_curves(drawn, f"{_title(metric)}, GEBM in training"))
    return panels


def _curves(drawn: Sequence[tuple[Any, Any]], title: str) -> DrawPanel:
    """Return a panel with one curve for each run."""

    def panel(axis: Axes) -> None:
        for index, (steps, values) in enumerate(drawn):
            if np.isfinite(values).any():
                draw_curve(axis, steps, values, smooth_from=SMOOTH_FROM, **_style(index))
        stay_with_the_bulk(axis, [values for _, values in drawn])
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("step")
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axis.grid(alpha=0.25)

    return panel


def _score_panels(comparison: Runs) -> list[DrawPanel]:
    """Return panels of the final values of held-out data, base and GEBM with their intervals, run by run."""
    return [_scores(metric, comparison.labels) for metric in comparison.metrics[:MOST_METRICS]]


def _scores(metric: Metric, labels: Sequence[str]) -> DrawPanel:
    """Return a panel with one metric's values and intervals for each run."""

    def panel(axis: Axes) -> None:
        for shift, (column, (_, colour)) in zip((-0.18, 0.0, 0.18), COLUMN_LABELS.items(), strict=True):
            found = [
                (index + shift, estimate)
                for index, estimate in enumerate(metric.columns[column])
                if estimate is not None and isinstance(estimate.get("value"), int | float)
            ]
            if not found:
                continue
            places = [place for place, _ in found]
            values = [estimate["value"] for _, estimate in found]
            below, above = ([abs(_end(e, end) - e["value"]) for _, e in found] for end in ("low", "high"))
            axis.errorbar(
                places,
                values,
                yerr=[below, above],
                fmt="o",
                color=colour,
                markersize=5,
                capsize=3,
                linewidth=1.4,
            )
        axis.set_title(_title(metric), fontsize=11)
        axis.set_xlim(-0.5, len(labels) - 0.5)
        long = max(len(label) for label in labels) * len(labels) > 28
        axis.set_xticks(
            range(len(labels)), labels, rotation=20 if long else 0, ha="right" if long else "center", fontsize=8
        )
        for index, tick in enumerate(axis.get_xticklabels()):
            tick.set_color(_style(index)["color"])
        axis.grid(alpha=0.25, axis="y")

    return panel


def _end(estimate: Any, end: str) -> float:
    """Return one end of the interval; the value itself without an interval."""
    found = estimate.get(end)
    return float(estimate["value"] if found is None else found)


def _title(metric: Metric) -> str:
    """Return the metric's name, marked where its values can't be compared."""
    return metric.name + (" (NOT comparable)" if metric.reasons else "")
