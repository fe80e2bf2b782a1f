"""Pictures of a table: marginals, pairs of columns and quantiles, in measured units and with the columns' names.

Every public function that draws writes one PNG, completely or not at all, and returns its path. Their cost is bounded: by
`MOST_ROWS` rows and by the number of panels, whatever the table's size.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from gebm_kit.core.files import make_directory
from gebm_kit.core.units import HasMeasured
from gebm_kit.engine.figures.plotting import COLOURS, Array, finite_values, save_figure
from gebm_kit.engine.figures.table_columns import (
    Columns,
    bin_edges,
    columns_of_table,
    ks_distances,
    limits_of,
)

MOST_MARGINALS = 24
"""Most columns with a histogram."""

MOST_PAIRED = 8
"""Most columns of the pair plot and of the quantiles."""

IN_A_LINE = 4
"""Panels side by side."""

NUM_BINS = 40
"""Most bins of a histogram."""

NUM_QUANTILES = 100
"""Most quantiles that are compared."""

NUM_POINTS = 1000
"""Most points of data in a panel of the pair plot."""

CELLS = 40
"""Cells along each axis behind the contours of a panel."""

MASSES = (0.9, 0.5)
"""Shares of the draws inside the contours."""

MOST_HIDDEN = 0.05
"""Share of draws outside the axes of a column from which the legend says so."""

CRITERION = "largest two-sample Kolmogorov-Smirnov distance (KS) of held-out data from base or GEBM"


def draw_table(directory: Path, data: Tensor, base: Tensor, gebm: Tensor, units: HasMeasured | None) -> list[Path]:
    """Draw ``marginals.png``, ``quantiles.png`` and, of two columns or more, ``pairs.png`` into ``directory``.

    Args:
        directory: made if missing.
        data, base, gebm: held-out rows and draws as the model sees them, (N, D) each.
        units: what turns them into measurements with names; None: they are drawn as they are.
    """
    make_directory(directory)
    columns = columns_of_table({"data": data, "base": base, "GEBM": gebm}, units)
    with warnings.catch_warnings():  # a name in a script that the font lacks is drawn with boxes
        warnings.filterwarnings("ignore", message="Glyph")
        paths = [marginals(directory / "marginals.png", columns), quantiles(directory / "quantiles.png", columns)]
        return [*paths, pairs(directory / "pairs.png", columns)] if len(columns.names) > 1 else paths


def marginals(path: Path, columns: Columns) -> Path:
    """Draw histograms of data, base and GEBM, one panel for each column, with the KS distances from the data.

    Of more than `MOST_MARGINALS` columns those with the largest distance are drawn. Columns on a grid have a bin for each
    point of it, if there are few.
    """
    chosen = columns.most_different(MOST_MARGINALS)
    figure, axes = _panels(len(chosen), 2.55, 2.3)
    for axis, column in zip(axes, chosen, strict=False):
        values = _column(columns.values, column)
        low, high = limits_of(list(values.values()))
        edges = bin_edges(low, high, float(columns.steps[column]), NUM_BINS)
        _histograms(axis, values, edges)
        far = [f"{label} {_ks(columns, column, label):.2f}" for label in columns.values if label != "data"]
        axis.set_title(f"KS {', '.join(far)}", fontsize=8, color="#333333")
        axis.set(yticks=[], xlim=(edges[0], edges[-1]))
        _name(axis, "x", columns.names[column])
    _finish(figure, columns, chosen)
    return save_figure(figure, path)


def quantiles(path: Path, columns: Columns) -> Path:
    """Draw quantiles of base and GEBM against those of held-out data, one panel for each of up to `MOST_PAIRED` columns.

    Points on the diagonal mean equal marginals.
    """
    chosen = columns.most_different(MOST_PAIRED)
    figure, axes = _panels(len(chosen), 2.75, 2.75)
    for axis, column in zip(axes, chosen, strict=False):
        values = {label: finite_values(found) for label, found in _column(columns.free, column).items()}
        low, high = limits_of(list(values.values()))
        axis.plot([low, high], [low, high], color=COLOURS["data"], linewidth=1.0, linestyle="--")
        count = min([NUM_QUANTILES, *(max(found.size, 1) for found in values.values())])
        levels = (np.arange(count) + 0.5) / count
        for label in values:
            if label != "data" and values[label].size and values["data"].size:
                style: dict[str, Any] = {"color": COLOURS[label], "markersize": 3, "markeredgewidth": 0, "alpha": 0.8}
                axis.plot(*(np.quantile(values[name], levels) for name in ("data", label)), "o", **style)
        axis.set(xlim=(low, high), ylim=(low, high))
        _ticks(axis)
        axis.yaxis.get_offset_text().set_fontsize(7.5)
        _name(axis, "x", f"{columns.names[column]}, data")
        axis.grid(alpha=0.25)
    for axis in axes[::IN_A_LINE]:
        axis.set_ylabel("quantile of draws", fontsize=9)
    _finish(figure, columns, chosen, data=Line2D([], [], color=COLOURS["data"], linestyle="--", label="equal to data"))
    return save_figure(figure, path)


def pairs(path: Path, columns: Columns) -> Path:
    """Draw up to `MOST_PAIRED` columns against each other: points of the data, contours of base and GEBM, marginals.

    The contours hold 50 % and 90 % of the draws. The columns are those with the largest KS distance.
    """
    chosen = columns.most_different(MOST_PAIRED)
    count = len(chosen)
    side = 1.45 if count > 4 else 2.1
    figure = Figure(figsize=(side * count + 1.2, side * count + 0.9), layout="constrained")
    axes = figure.subplots(count, count, squeeze=False)
    values = [_column(columns.free, column) for column in chosen]
    limits = [limits_of(list(found.values())) for found in values]
    for row in range(count):
        for place in range(count):
            axis = axes[row, place]
            if place > row:
                axis.set_axis_off()
                continue
            _ticks(axis, 3)
            axis.set_xlim(limits[place])
            if place == row:
                edges = bin_edges(*limits[row], float(columns.steps[chosen[row]]), NUM_BINS)
                _histograms(axis, values[row], edges)
                axis.set_yticks([])
            else:
                _pair(axis, values[place], values[row], limits[place], limits[row])
            if row < count - 1:
                axis.set_xticklabels([])
            else:
                _name(axis, "x", columns.names[chosen[place]])
                axis.tick_params(axis="x", labelrotation=30)
            if place == 0 and row > 0:
                _name(axis, "y", columns.names[chosen[row]])
            elif place != row:
                axis.set_yticklabels([])
    figure.align_labels()
    handles = _handles(columns, chosen)
    figure.legend(handles=handles, loc="upper right", frameon=False, fontsize=10, bbox_to_anchor=(0.985, 0.965))
    figure.suptitle(_title(columns, chosen) + "points: data; contours: 50 % and 90 % of draws", fontsize=9)
    return save_figure(figure, path)


# --- parts -----------------------------------------------------------------------------------------------------------
def _panels(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure and as many axes as panels, in lines of `IN_A_LINE`."""
    across = min(IN_A_LINE, count)
    lines = -(-count // across)
    figure = Figure(figsize=(max(width * across, 5.2), height * lines + 0.7), layout="constrained")
    axes = list(figure.subplots(lines, across, squeeze=False).flat)
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes[:count]


def _finish(figure: Figure, columns: Columns, chosen: Sequence[int], data: Line2D | None = None) -> None:
    """Add the legend, and a line about which columns are drawn where not all are."""
    handles = _handles(columns, chosen)
    handles[0] = data or handles[0]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=10)
    if title := _title(columns, chosen):
        figure.supxlabel(title.rstrip("; \n"), fontsize=8)


def _title(columns: Columns, chosen: Sequence[int]) -> str:
    if len(chosen) == len(columns.names):
        return ""
    return f"{len(chosen)} of {len(columns.names)} columns, those with the {CRITERION}\n"


def _handles(columns: Columns, chosen: Sequence[int]) -> list[Line2D]:
    """Return the entries of the legend, which say how many draws lie outside the axes where those are many."""
    handles = [Line2D([], [], color=COLOURS["data"], linewidth=7, alpha=0.4, label="held-out data")]
    for label in columns.values:
        if label != "data":
            hidden = columns.hidden(label, chosen)
            more = f" (up to {hidden:.0%} of draws not shown)" if hidden > MOST_HIDDEN else ""
            handles.append(Line2D([], [], color=COLOURS[label], linewidth=2, label=label + more))
    return handles


def _column(sets: Mapping[str, Array], column: int) -> dict[str, Array]:
    return {label: values[:, column] for label, values in sets.items()}


def _ks(columns: Columns, column: int, label: str) -> float:
    one, other = (columns.free[name][:, column : column + 1] for name in ("data", label))
    return float(ks_distances(one, other)[0])


def _histograms(axis: Axes, values: Mapping[str, Array], edges: Array) -> None:
    """Draw densities on common bins: the data filled, the draws as lines."""
    for label, found in values.items():
        finite = finite_values(found)
        if not finite.size:
            continue
        density = np.histogram(finite, edges)[0] / (finite.size * np.diff(edges))
        if label == "data":
            axis.stairs(density, edges, fill=True, color=COLOURS[label], alpha=0.3)
        else:
            axis.stairs(density, edges, color=COLOURS[label], linewidth=1.4)
    axis.set_ylim(bottom=0)
    _ticks(axis)


def _pair(
    axis: Axes,
    across: Mapping[str, Array],
    up: Mapping[str, Array],
    horizontal: tuple[float, float],
    vertical: tuple[float, float],
) -> None:
    """Draw points of the data and contours of the draws into one panel."""
    style: dict[str, Any] = {"markersize": 1.6, "markeredgewidth": 0, "color": COLOURS["data"], "alpha": 0.45}
    axis.plot(across["data"][:NUM_POINTS], up["data"][:NUM_POINTS], "o", **style)
    edges = [np.linspace(*limits, CELLS + 1) for limits in (horizontal, vertical)]
    centres = [(ends[1:] + ends[:-1]) / 2 for ends in edges]
    for label in across:
        if label == "data":
            continue
        both = np.isfinite(across[label]) & np.isfinite(up[label])
        height = smoothed(np.histogram2d(across[label][both], up[label][both], edges)[0])
        if (levels := mass_levels(height)) is not None:
            axis.contour(*centres, height.T, levels=levels, colors=COLOURS[label], linewidths=(0.9, 1.4))
    axis.set_ylim(vertical)


def smoothed(counts: Array, width: float = 1.3) -> Array:
    """Smooth counts on a grid by a Gaussian of some cells."""
    places = np.arange(len(counts))
    kernel = np.exp(-0.5 * ((places[:, None] - places) / width) ** 2)
    kernel /= kernel.sum(0, keepdims=True)
    return np.asarray(kernel @ counts @ kernel.T)


def mass_levels(height: Array) -> list[float] | None:
    """Return the heights whose contours hold `MASSES`; None where there is nothing to draw."""
    ordered = np.sort(height.ravel())[::-1]
    if not ordered[0] > 0:
        return None
    held = np.cumsum(ordered) / ordered.sum()
    levels = [float(ordered[min(int(np.searchsorted(held, mass)), ordered.size - 1)]) for mass in MASSES]
    return levels if 0 < levels[0] < levels[1] < ordered[0] else None


def _ticks(axis: Axes, most: int = 4) -> None:
    axis.xaxis.set_major_locator(MaxNLocator(most))
    axis.yaxis.set_major_locator(MaxNLocator(most))
    axis.tick_params(labelsize=7.5)


def _name(axis: Axes, which: Literal["x", "y"], name: str) -> None:
    """Write a column's name beside an axis, as it is: ``$`` and ``_`` mean nothing there.

    What all ticks have in common, such as +1.7e9, follows the name: matplotlib would write it across a long one.
    """
    side = axis.xaxis if which == "x" else axis.yaxis
    form = side.get_major_formatter()
    form.set_locs(side.get_majorticklocs().tolist())
    side.get_offset_text().set_visible(False)
    if offset := form.get_offset():
        name = f"{name} ({offset if offset.startswith(('+', '-', '−')) else f'x {offset}'})"
    side.set_label_text(name, fontsize=9 if len(name) < 18 else 7.5, parse_math=False)
