"""Rows of a table and points in the plane: marginals, pairs of columns, and clouds over the energy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from gebm_kit.core.classes import is_conditional
from gebm_kit.engine.figures.plotting import Array, finite_values
from gebm_kit.engine.figures.run_figures import cloud_limits
from gebm_kit.engine.figures.table_columns import Columns, bin_edges, columns_of_table, ks_distances, limits_of
from gebm_kit.engine.figures.table_figures import mass_levels, smoothed
from gebm_kit.engine.reporting.charts import INKS, chart, svg_of
from gebm_kit.engine.reporting.facts import RunFacts
from gebm_kit.engine.reporting.material import Material
from gebm_kit.engine.reporting.page import Block, Figure, Gallery, Section, Table, Text
from gebm_kit.engine.reporting.pictures import why_missing
from gebm_kit.engine.reporting.words import number, plain

MOST_MARGINALS, MOST_PAIRED, MOST_ROWS = 9, 4, 60
"""Most columns with a histogram, with a panel for each pair, and in the table."""

MOST_POINTS = 250
"""Most points of a set in a chart; each is an element of the page."""

BINS, CELLS, CONTOUR_CELLS = 30, 30, 60

NAMES = {"data": "held-out data", "base": "base", "GEBM": "GEBM"}
COLOURS = {"data": INKS["data"], "base": INKS["base"], "GEBM": INKS["gebm"]}


def table_section(facts: RunFacts, material: Material) -> Section | None:
    """Return marginals and pairs of columns; None where the data are no table."""
    if not material.is_table:
        return None
    title = "Columns, one by one and in pairs"
    if material.sets is None or "data" not in material.sets.x:
        return Section("columns", title, "", [why_missing(facts, material, "data")])
    columns = columns_of_table(material.sets.x, material.units)
    chosen = columns.most_different(MOST_MARGINALS)
    blocks: list[Block] = [Gallery([_marginal(columns, place, k) for k, place in enumerate(chosen)]), _summary(columns)]
    paired = columns.most_different(MOST_PAIRED)
    pairs = [(a, b) for k, a in enumerate(paired) for b in paired[k + 1 :]]
    if pairs:
        blocks.append(
            Text("Pairs: points are held-out data; lines hold 50 % and 90 % of the draws, of the base and of the GEBM.")
        )
        blocks.append(Gallery([_pair(columns, a, b, k) for k, (a, b) in enumerate(pairs)]))
    blocks.append(Text(material.sets_from))
    many = (
        f" The {len(chosen)} columns that differ most are drawn; the table has all."
        if len(chosen) < len(columns.names)
        else ""
    )
    lead = f"Grey is held-out data; the closer the lines of base and GEBM come to it, the better.{many}"
    return Section("columns", title, lead, blocks)


def clouds_section(facts: RunFacts, material: Material) -> Section | None:
    """Return point clouds of data in the plane; None for other data."""
    if material.data_shape != (2,):
        return None
    title = "What the draws look like"
    if material.sets is None:
        return Section("draws", title, "", [why_missing(facts, material, "sets")])
    clouds = {name: _finite_rows(x.double().numpy()) for name, x in material.sets.x.items()}
    ordered = {name: clouds[name] for name in ("data", "base", "GEBM") if name in clouds and len(clouds[name])}
    limits = [cloud_limits(ordered.values(), axis) for axis in (0, 1)]
    heights = _heights(material, limits)
    figures = [_cloud(name, points, limits, heights) for name, points in ordered.items()]
    lead = "Points over lines of equal energy. The GEBM's points should lie where the data's do, and as densely."
    return Section("draws", title, lead, [Gallery(figures), Text(material.sets_from)])


def _marginal(columns: Columns, place: int, k: int) -> Figure:
    """Draw the distribution of one column."""
    values = {label: finite_values(found[:, place]) for label, found in columns.free.items()}
    low, high = limits_of([values["data"], *(v for label, v in values.items() if label != "data")])
    fewest = min(len(found) for found in values.values())
    edges = bin_edges(low, high, float(columns.steps[place]), min(BINS, max(6, int(1.5 * fewest**0.5))))
    name = plain(columns.names[place], 40)
    with chart(height=2.5) as (figure, axes):
        for label in ("data", "base", "GEBM"):
            if label not in values or not len(values[label]):
                continue
            density = np.histogram(values[label], edges)[0] / (len(values[label]) * np.diff(edges))
            if label == "data":
                axes.stairs(density, edges, fill=True, color=COLOURS[label], alpha=0.35)
            else:
                axes.stairs(density, edges, color=COLOURS[label], linewidth=1.8)
        axes.set_ylim(bottom=0)
        axes.set_title(name)
        _few_ticks(axes)
        words = [
            f"{NAMES[label]} {number(float(v.mean()))} +- {number(float(v.std()), 2)}"
            for label, v in values.items()
            if len(v)
        ]
        apart = {label: _ks(columns, place, label) for label in values if label != "data"}
        distances = ", ".join(f"{NAMES[label]} {distance:.2f}" for label, distance in apart.items())
        spreads = f"Mean and spread: {'; '.join(words)}"
        text = f"Distribution of {name}. {spreads}. Kolmogorov-Smirnov distance to held-out data: {distances}."
        picture = svg_of(figure, text, f"marginal-{k}")
    return Figure(picture, f"{name}: distance to held-out data {distances}.")


def _summary(columns: Columns) -> Table:
    """Return mean, spread and distance of every column."""
    rows = []
    for place, name in list(enumerate(columns.names))[:MOST_ROWS]:
        cells = [plain(name, 60)]
        for label in ("data", "base", "GEBM"):
            values = finite_values(columns.values[label][:, place]) if label in columns.values else np.array([])
            cells.append(f"{number(float(values.mean()))} +- {number(float(values.std()), 3)}" if len(values) else "")
        cells += [f"{_ks(columns, place, label):.3f}" for label in ("base", "GEBM") if label in columns.free]
        rows.append(cells)
    headers = ["column", "held-out data", "base", "GEBM", "KS of base", "KS of GEBM"]
    note = (
        "Mean +- standard deviation, in the units of the data. KS is the largest difference of the distribution functions "
        "from those of held-out data: 0 is best."
    )
    more = f" {len(columns.names) - MOST_ROWS} more columns are left out." if len(columns.names) > MOST_ROWS else ""
    return Table("Columns of held-out data, base and GEBM", headers, rows, note + more)


def _pair(columns: Columns, a: int, b: int, k: int) -> Figure:
    """Draw two columns against each other: points of the data, contours of the draws."""
    names = [plain(columns.names[place], 40) for place in (a, b)]
    sets = {label: found[:, [a, b]] for label, found in columns.free.items()}
    limits = [
        limits_of([finite_values(sets[label][:, axis]) for label in sorted(sets, key=lambda n: n != "data")])
        for axis in (0, 1)
    ]
    words, rows = [], []
    for label, points in sets.items():
        points = _finite_rows(points)
        varies = len(points) > 2 and bool((np.std(points, axis=0) > 0).all())
        correlation = float(np.asarray(np.corrcoef(points.T))[0, 1]) if varies else float("nan")
        words.append(f"{NAMES[label]} {number(correlation, 2)}")
        rows.append([NAMES[label], number(correlation, 3)])
    with chart(height=3.2) as (figure, axes):
        axes.plot(
            *_finite_rows(sets["data"])[:MOST_POINTS].T,
            "o",
            color=INKS["data"],
            markersize=2.5,
            markeredgewidth=0,
            alpha=0.6,
        )
        edges = [np.linspace(*limit, CELLS + 1) for limit in limits]
        for label in ("base", "GEBM"):
            if label in sets:
                across, up = _finite_rows(sets[label]).T
                height = smoothed(np.histogram2d(across, up, edges)[0])
                if (levels := mass_levels(height)) is not None:
                    centres = [(edge[1:] + edge[:-1]) / 2 for edge in edges]
                    axes.contour(*centres, height.T, levels=levels, colors=COLOURS[label], linewidths=(1.1, 1.8))
        axes.set(xlim=limits[0], ylim=limits[1], xlabel=names[0], ylabel=names[1])
        _few_ticks(axes)
        picture = svg_of(figure, f"{names[1]} against {names[0]}. Correlation: {', '.join(words)}.", f"pair-{k}")
    caption = f"{names[1]} against {names[0]}. Correlation: {', '.join(words)}."
    return Figure(picture, caption, Table(f"Correlation of {names[0]} and {names[1]}", ["set", "correlation"], rows))


def _cloud(name: str, points: Array, limits: list[tuple[float, float]], heights: Any) -> Figure:
    with chart(4.2, 4.2 * min(max((limits[1][1] - limits[1][0]) / (limits[0][1] - limits[0][0]), 0.4), 1.6)) as (
        figure,
        axes,
    ):
        axes.grid(False)
        if heights is not None:
            xs, ys, values, levels = heights
            axes.contour(
                xs, ys, values, levels=levels, colors=INKS["energy"], linewidths=0.7, alpha=0.55, linestyles="solid"
            )
        axes.plot(*points[: 2 * MOST_POINTS].T, "o", color=COLOURS[name], markersize=2.6, markeredgewidth=0, alpha=0.75)
        axes.set(xlim=limits[0], ylim=limits[1], aspect="equal", title=NAMES[name])
        _few_ticks(axes)
        means, spreads = points.mean(0), points.std(0)
        where = ", ".join(
            f"x{k + 1} {number(float(m))} +- {number(float(s), 2)}"
            for k, (m, s) in enumerate(zip(means, spreads, strict=True))
        )
        picture = svg_of(
            figure, f"{len(points)} points of {NAMES[name]} in the plane. Mean and spread: {where}.", f"cloud-{name}"
        )
    rows = [
        [f"x{k + 1}", number(float(m)), number(float(s))] for k, (m, s) in enumerate(zip(means, spreads, strict=True))
    ]
    table = Table(f"Mean and spread of {NAMES[name]}", ["coordinate", "mean", "standard deviation"], rows)
    return Figure(picture, f"{NAMES[name]}: {min(len(points), 2 * MOST_POINTS)} of {len(points)} points.", table)


def _heights(material: Material, limits: list[tuple[float, float]]) -> Any:
    """Return a grid of energies and levels for its contours; None where there is no energy to draw."""
    model = material.model
    if model is None or is_conditional(model.energy):
        return None
    xs, ys = (np.linspace(*limit, CONTOUR_CELLS) for limit in limits)
    points = torch.from_numpy(np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)).to(model.device, model.dtype)
    try:
        with torch.no_grad():
            values = model.energy_at(points).double().cpu().numpy().reshape(CONTOUR_CELLS, CONTOUR_CELLS)
    except Exception:  # an energy on codes, or one that fails on points far out
        return None
    finite = finite_values(values)
    if not len(finite) or not np.quantile(finite, 0.9) - finite.min() > 1e-6:
        return None
    levels = MaxNLocator(9).tick_values(float(finite.min()), float(np.quantile(finite, 0.9)))
    return xs, ys, np.where(np.isfinite(values), values, np.nan), levels


def _ks(columns: Columns, place: int, label: str) -> float:
    sets: Mapping[str, Array] = columns.free
    return float(ks_distances(sets["data"][:, place : place + 1], sets[label][:, place : place + 1])[0])


def _finite_rows(points: Array) -> Array:
    return points[np.isfinite(points).all(axis=1)]


def _few_ticks(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(4))
