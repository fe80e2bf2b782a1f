"""The figure of quality along the chain: a metric against the evaluations spent per chain, one curve for each beta."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from gebm_kit.engine.figures.plotting import COLOURS, LINE_STYLES, save_figure
from gebm_kit.engine.figures.trace_series import Line, Panel

CURVE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#f0e442")
"""Okabe and Ito's colours without the base's; further curves reuse them with another line style."""


RING: dict[str, Any] = {"markersize": 10, "markeredgewidth": 1.4, "fillstyle": "none"}
"""The ring around the first point with 95 % of the improvement."""


TRACE_PANELS_A_ROW = 3
"""Most panels side by side: one for each value of a metric, 5.6 inches wide."""


def draw_trace(path: Path, title: str, cost: str, ring: str, panels: Sequence[Panel]) -> Path:
    """Write the figure as a PNG.

    The horizontal axis is logarithmic from 1; the base, which costs nothing, is at 0. Bands are 95 % intervals.

    Args:
        title: title of the figure.
        cost: label of the horizontal axes.
        ring: meaning of a ring around a point, for the legend.
        panels: one for each value of the metric.
    """
    columns = min(len(panels), TRACE_PANELS_A_ROW)
    rows = math.ceil(len(panels) / columns)
    height = 1.1 + 0.1 * len(panels[0].lines) + 3.6 * rows
    figure = Figure(figsize=(0.9 + 5.6 * columns, height), layout="constrained")
    places = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, panel in zip(places, panels, strict=False):
        _panel(axes, panel, cost, ring)
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    handles = {
        label: handle for axes in places for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11)
    return save_figure(figure, path)


def _panel(axes: Axes, panel: Panel, cost: str, ring: str) -> None:
    """Draw one value of the metric: every line, the base's level and the floor."""
    for index, line in enumerate(panel.lines):
        times, colour = divmod(index, len(CURVE_COLOURS))
        _line(axes, line, CURVE_COLOURS[colour], LINE_STYLES[times % len(LINE_STYLES)])
    if any(line.marked is not None for line in panel.lines):
        axes.plot([], [], "o", color="#4d4d4d", **RING, label=ring)
    axes.axhline(panel.base, color=COLOURS["base"], linestyle="--", linewidth=1.3, label="base", zorder=1)
    axes.plot([0], [panel.base], "o", color=COLOURS["base"], markersize=6, zorder=4)
    axes.axhline(panel.floor, color=COLOURS["data"], linestyle=":", linewidth=1.3, label="held-out data", zorder=1)
    _axis(axes, max(line.x[-1] for line in panel.lines))
    axes.set_xlabel(cost)
    axes.set_ylabel(panel.label)
    axes.grid(alpha=0.25)


def _line(axes: Axes, line: Line, colour: str, style: str) -> None:
    """Draw one line with its band and its ring."""
    axes.plot(
        line.x, line.y, style, color=colour, marker="o", markersize=3.5, linewidth=1.5, label=line.label, zorder=3
    )
    axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
    if line.marked is not None:
        axes.plot([line.marked], [line.y[line.x.index(line.marked)]], "o", color=colour, zorder=5, **RING)


def _axis(axes: Axes, largest: int) -> None:
    """Set ticks at 0 and powers of ten, up to the ``largest`` cost."""
    axes.set_xscale("symlog", linthresh=1.0, linscale=0.35)
    powers = range(math.ceil(math.log10(max(largest, 1))) + 1)
    axes.xaxis.set_major_locator(FixedLocator([0.0, *(10.0**power for power in powers)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlim(-0.25, max(largest, 1) * 1.25)
