"""The picture of quality along the chain: a metric against the evaluations spent per chain, one curve for each beta."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from gebm_kit.engine.along_result import SHARE
from gebm_kit.engine.figures.plotting import COLOURS, save_figure

if TYPE_CHECKING:
    from gebm_kit.core.intervals import Estimate
    from gebm_kit.engine.along_result import Curve, Trace


CURVES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#f0e442")
"""Okabe and Ito's colours without the base's; further curves begin again with another line style."""


STYLES = ("-", "--", "-.", ":")

RING: dict[str, Any] = {"markersize": 10, "markeredgewidth": 1.4, "fillstyle": "none"}
"""Around the first point that has made 95 % of the improvement."""


PANELS_A_ROW = 3
"""Panels of a metric with several values."""


def draw_along(path: Path, trace: Trace) -> Path:
    """Write the picture of ``trace`` as a PNG: one panel for each of the metric's values.

    The axis is logarithmic from 1 on; the base, which costs nothing, stands at 0. Bands are 95 % intervals.
    """
    names = trace.names
    columns = min(len(names), PANELS_A_ROW)
    lines = math.ceil(len(names) / columns)
    figure = Figure(figsize=(0.9 + 5.6 * columns, 1.1 + 0.1 * len(trace.curves) + 3.6 * lines), layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes, name in zip(panels, names, strict=False):
        _panel(axes, trace, name)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    sets = trace.protocol["sets"]
    bands = "" if sets < 2 else f" (bands: 95 % intervals over {sets} groups of chains)"
    figure.suptitle(f"{trace.metric} along the chain of {trace.sampler}{bands}", fontsize=11)
    return save_figure(figure, path)


def _panel(axes: Axes, trace: Trace, name: str) -> None:
    """One value of the metric: every curve, the base's level and the floor."""
    for index, curve in enumerate(trace.curves):
        _curve(axes, trace, curve, name, CURVES[index % len(CURVES)], STYLES[index // len(CURVES) % len(STYLES)])
    if any(trace.evals_to_95(curve, name) is not None for curve in trace.curves):
        axes.plot([], [], "o", color="#4d4d4d", **RING, label=f"{100 * SHARE:.0f} % of the improvement")
    base, floor = trace.base[name], trace.floor[name]
    axes.axhline(base.value, color=COLOURS["base"], linestyle="--", linewidth=1.3, label="base", zorder=1)
    axes.plot([0], [base.value], "o", color=COLOURS["base"], markersize=6, zorder=4)
    axes.axhline(floor.value, color=COLOURS["data"], linestyle=":", linewidth=1.3, label="held-out data", zorder=1)
    _axis(axes, max(trace.evals(curve.points[-1]) for curve in trace.curves))
    kind = "gradient evaluations" if trace.axis == "grad_evals" else "evaluations (no gradients)"
    axes.set_xlabel(f"{kind} per chain{_besides(trace)}")
    better = {True: " (lower is better)", False: " (higher is better)", None: ""}[trace.lower_is_better]
    axes.set_ylabel(f"{name}{better}")
    axes.grid(alpha=0.25)


def _curve(axes: Axes, trace: Trace, curve: Curve, name: str, colour: str, style: str) -> None:
    x = [trace.evals(point) for point in curve.points]
    estimates = [point.values[name] for point in curve.points]
    y = [estimate.value for estimate in estimates]
    axes.plot(
        x, y, style, color=colour, marker="o", markersize=3.5, linewidth=1.5, label=_label(trace, curve), zorder=3
    )
    lows, highs = (
        [math.nan if end is None else end for end in ends] for ends in zip(*map(_ends, estimates), strict=True)
    )
    axes.fill_between(x, lows, highs, color=colour, alpha=0.15, linewidth=0)
    reached = trace.evals_to_95(curve, name)
    if reached is not None:
        first = x.index(reached)
        axes.plot([x[first]], [y[first]], "o", color=colour, zorder=5, **RING)


def _ends(estimate: Estimate) -> tuple[float | None, float | None]:
    return estimate.low, estimate.high


def _label(trace: Trace, curve: Curve) -> str:
    """Beta, and what tuning had cost before."""
    gradients = trace.axis == "grad_evals"
    spent = curve.tuning.grad_evals if gradients else curve.tuning.forward_evals
    warmup = f", after a warm-up of {spent:,} {'gradients' if gradients else 'evaluations'}" if spent else ""
    return f"β = {curve.inverse_temperature:g}{warmup}"


def _besides(trace: Trace) -> str:
    """What a gradient sampler spends without gradient, which the axis does not show."""
    last = trace.curves[0].points[-1]
    if trace.axis == "forward_evals" or not last.forward_evals:
        return ""
    return f",\nand {last.forward_evals / last.grad_evals:.2g} without gradient for each"


def _axis(axes: Axes, largest: int) -> None:
    """0, then powers of ten, up to the ``largest`` cost."""
    axes.set_xscale("symlog", linthresh=1.0, linscale=0.35)
    powers = range(math.ceil(math.log10(max(largest, 1))) + 1)
    axes.xaxis.set_major_locator(FixedLocator([0.0, *(10.0**power for power in powers)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlim(-0.25, max(largest, 1) * 1.25)
