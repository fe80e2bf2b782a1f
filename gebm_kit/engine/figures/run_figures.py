"""Pictures of a run: image grids, point clouds over the energy, training curves, histograms of energies.

Every public function that draws writes one PNG, completely or not at all, and returns its path. Figures are matplotlib
objects with the Agg canvas: no pyplot, no global state, no display.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from gebm_kit.core.classes import is_conditional
from gebm_kit.core.files import make_directory
from gebm_kit.core.interfaces import Energy, HasDensity, HasEncoder
from gebm_kit.core.model import GEBM, DataPotential, LatentPotential
from gebm_kit.core.mosaic import mosaic as mosaic
from gebm_kit.core.units import HasMeasured
from gebm_kit.engine.figures.density_figure import density_calibration
from gebm_kit.engine.figures.plotting import (
    COLOURS,
    Array,
    draw_curve,
    finite_values,
    robust_limits,
    save_figure,
    series,
    stay_with_the_bulk,
)
from gebm_kit.engine.figures.table_figures import draw_table

GRID_SIDE = 8
"""Images along each side of a panel: 64 of them still show details."""


MOST_POINTS = 5000
"""Most points drawn of each cloud; more would only fill the picture."""


CONTOUR_CELLS = 200
"""Points of the contours' grid along each axis; a panel is about 500 pixels wide."""

LANDSCAPE = LinearSegmentedColormap.from_list("landscape", ["#4d9bd0", "#a6cfe8", "#dcebf5", "#fcfcfc"])
"""Colours of the energy from low to high, pale enough for points to stand out."""


ENERGIES_AT_ONCE = 1024
"""Rows whose energies are computed at once, which bounds memory."""


PANELS_IN_A_LINE = 3
"""Panels of `curves` side by side."""

MOST_OWN = 6
"""Most of a loss's own values that are drawn: two more lines of panels. All of them are in metrics.jsonl."""

OF_TRAINING = frozenset(
    {
        "energy_std", "base_spread", "log_mean_weight", "skipped_updates", "weight_power", "base_best_step",
        "negatives_acceptance", "negatives_diverged", "negatives_replaced",
    }
)  # fmt: skip
"""Values of a log row that training adds to those of the loss; they are watched by `gebm-kit train`, and not drawn."""


MOST_DENSITIES = 2000
"""Most rows of data, base and GEBM whose log-densities are computed for a picture."""


@dataclass(frozen=True, slots=True)
class OfTable:
    """What the pictures of a table need besides its rows.

    Attributes:
        units: names and units of the columns; None: not known.
        inverse_temperature: beta of the GEBM's draws.
    """

    units: HasMeasured | None
    inverse_temperature: float = 1.0


def draw_all(
    directory: Path,
    *,
    model: GEBM,
    data: Tensor,
    base: Tensor,
    gebm: Tensor,
    value_range: tuple[float, float] | None = None,
    rows: Sequence[Mapping[str, Any]] = (),
    energies: Mapping[str, Tensor] | None = None,
    labels: Tensor | None = None,
    table: OfTable | None = None,
) -> list[Path]:
    """Draw every picture that fits the data into ``directory``, made if missing.

    - Images: ``samples.png`` and, if the base has an encoder, ``reconstructions.png`` (if conditional, with ``labels``).
    - Points in the plane: ``clouds.png``.
    - Rows of a table: ``marginals.png``, ``quantiles.png``, ``pairs.png``, and ``density.png`` if the base has a density.
    - Any data: ``energies.png``, and ``curves.png`` if there are ``rows``.

    Args:
        directory: the run's folder for figures.
        model: the model whose energy is drawn.
        data, base, gebm: data and draws, (N, *D), in comparable numbers.
        value_range: range of the images' values; None: taken from the data.
        rows: rows of metrics.jsonl.
        energies: energies that are known already, of ``data``, ``base`` and ``GEBM``; others are computed.
        labels: classes of ``data``, (N,), where the model has classes: its images are drawn by class elsewhere.
        table: rows are those of a table; None: they are not.
    """
    make_directory(directory)
    sets = {"data": data, "base": base, "GEBM": gebm}
    paths = []
    if len(model.data_shape) == 3:
        if labels is None:
            paths.append(image_grid(directory / "samples.png", sets, value_range))
        conditional = is_conditional(model.base)
        if isinstance(model.base, HasEncoder) and not (conditional and labels is None):
            some = data[: GRID_SIDE**2]
            rebuilt = {"data": some, "reconstructions": _rebuilt(model, some, labels if conditional else None)}
            paths.append(image_grid(directory / "reconstructions.png", rebuilt, value_range))
    elif model.data_shape == (2,):
        paths.append(point_clouds(directory / "clouds.png", data, base, gebm, model.energy))
    if table is not None and len(model.data_shape) == 1:
        paths += draw_table(directory, data, base, gebm, table.units)
        if isinstance(model.base, HasDensity) and not model.conditional:
            log_densities = _log_densities(model, sets, table.inverse_temperature)
            paths.append(density_calibration(directory / "density.png", log_densities))
    known = energies or {}
    found = [known[name] if name in known else _energies(model.energy, x, model.data_shape) for name, x in sets.items()]
    paths.append(energy_histogram(directory / "energies.png", *found))
    if rows:
        paths.append(curves(directory / "curves.png", rows))
    return paths


def image_grid(path: Path, rows: Mapping[str, Tensor], value_range: tuple[float, float] | None) -> Path:
    """Draw panels side by side, one for each of ``rows`` (label -> images (N, C, H, W)), of up to 8 x 8 images each.

    One channel is drawn in grey and three in colour; with any other number, only the first channel is drawn. Without
    ``value_range``, the scale covers the central 99 % of all values shown.
    """
    count = GRID_SIDE**2
    panels = {label: images[:count].detach().float().cpu().numpy() for label, images in rows.items()}
    if value_range is None:
        value_range = robust_limits(np.concatenate([p.ravel() for p in panels.values()]), 0.005)
    mosaics = {label: mosaic(images, value_range) for label, images in panels.items()}
    height, width = next(iter(mosaics.values())).shape[:2]
    side = 3.6
    figure = Figure(figsize=(side * len(mosaics), side * height / width + 0.4), layout=_layout(0.12))
    axes = figure.subplots(1, len(mosaics), squeeze=False)[0]
    for axis, (label, picture) in zip(axes, mosaics.items(), strict=True):
        axis.imshow(picture, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
        axis.set_title(label, fontsize=13)
        axis.set_axis_off()
        axis.set_anchor("N")
    return save_figure(figure, path, dots_per_inch=160)


def point_clouds(path: Path, data: Tensor, base: Tensor, gebm: Tensor, energy: Energy) -> Path:
    """Draw data, base draws and GEBM draws, (N, 2) each, on the same axes over the contours of ``energy`` (dark is low).

    A conditional energy has other contours for each class, so none are drawn.
    """
    clouds = {"data": _points(data), "base": _points(base), "GEBM": _points(gebm)}
    horizontal, vertical = (cloud_limits(clouds.values(), axis) for axis in (0, 1))
    xs, ys = (np.linspace(*limits, CONTOUR_CELLS) for limits in (horizontal, vertical))
    grid = torch.from_numpy(np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)).to(data.dtype)
    flat = torch.zeros(len(grid)) if is_conditional(energy) else _energies(energy, grid, (2,))
    heights = flat.numpy().reshape(len(ys), len(xs))
    heights = np.where(np.isfinite(heights), heights, np.nan)
    shape = (vertical[1] - vertical[0]) / (horizontal[1] - horizontal[0])
    panel = 3.9
    height = min(max(panel * shape, 1.5), 9.0)
    figure = Figure(figsize=(3 * panel + 1.1, height + 0.5), layout="constrained")
    axes = figure.subplots(1, 3, sharex=True, sharey=True)
    levels = _contour_levels(heights)
    for axis, (label, points) in zip(axes, clouds.items(), strict=True):
        if levels is not None:
            drawn = axis.contourf(xs, ys, heights, levels=levels, cmap=LANDSCAPE, extend="max")
        axis.plot(*points.T, ".", markersize=2.8, markeredgewidth=0, color="#b3001e", alpha=0.75)
        axis.set(xlim=horizontal, ylim=vertical, aspect="equal")
        axis.set_title(label, fontsize=13)
        axis.tick_params(labelsize=9)
    if levels is not None:
        figure.colorbar(drawn, ax=axes, label="energy", shrink=0.85, pad=0.015)
    return save_figure(figure, path)


def curves(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Draw losses, KALE, log-partition and the loss's own values against the step, from rows of metrics.jsonl.

    Each of the loss's own values (`LossTerms.metrics`) has a panel, up to `MOST_OWN`; panels without values are left out. A
    null value leaves a gap. With 50 points or more, the values are drawn pale beneath medians of blocks.
    """
    panels = curve_panels(rows)
    lines = -(-len(panels) // PANELS_IN_A_LINE)
    figure = Figure(figsize=(13, 3.6 * lines), layout=_layout(0.06))
    axes = figure.subplots(lines, min(PANELS_IN_A_LINE, len(panels)), squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, (title, members) in zip(axes, panels.items(), strict=False):
        _draw_series(axis, {name: series(rows, name) for name in members})
        axis.set_title(title, fontsize=12)
        axis.set_xlabel("step")
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.grid(alpha=0.25)
    return save_figure(figure, path)


def curve_panels(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the panels of `curves`: by title, the names of the values in it, those that have any."""
    names = list(dict.fromkeys(name for row in rows for name in row if name != "step"))
    panels = {
        "loss": [n for n in names if n == "loss" or n.endswith("_loss")],
        "KALE (nats)": [n for n in names if n.split(".")[-1].startswith("kale")],
        "log-partition A (nats)": [n for n in names if n.split(".")[-1].startswith("log_partition")],
    }
    drawn = {name for members in panels.values() for name in members}
    panels["log-partition A (nats)"] = [n for n in panels["log-partition A (nats)"] if "_se" not in n]
    own = [n for n in names if n not in drawn and n not in OF_TRAINING and not n.startswith("eval.")]
    panels |= {name: [name] for name in own[:MOST_OWN]}
    with_values = {
        title: members
        for title, members in panels.items()
        if any(np.isfinite(series(rows, name)[1]).any() for name in members)
    }
    return with_values or {"loss": panels["loss"]}


def energy_histogram(path: Path, data: Tensor, base: Tensor, gebm: Tensor) -> Path:
    """Draw densities of the energies (N,) of data, base draws and GEBM draws on common bins, with dashed lines at the means.

    For a perfect model, the GEBM's histogram matches the data's. The axis holds the central 99.8 % of all three.
    """
    values = {"data": data, "base": base, "GEBM": gebm}
    finite = {label: finite_values(v.detach().double().cpu().numpy()) for label, v in values.items()}
    low, high = robust_limits(np.concatenate(list(finite.values())), 0.001)
    edges = np.linspace(low, high, 81)
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axis = figure.subplots()
    for label, energies in finite.items():
        if energies.size == 0:
            continue
        counts, _ = np.histogram(energies, edges)
        density = counts / (energies.size * (edges[1] - edges[0]))
        colour = COLOURS[label]
        axis.stairs(density, edges, fill=True, color=colour, alpha=0.25)
        axis.stairs(density, edges, color=colour, linewidth=1.6, label=f"{label}  (mean {energies.mean():.3g})")
        if low <= energies.mean() <= high:
            axis.axvline(energies.mean(), color=colour, linestyle="--", linewidth=1.0)
    axis.set(xlabel="energy E(x)", ylabel="density", xlim=(low, high))
    axis.grid(alpha=0.25)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False)
    return save_figure(figure, path)


# --- parts -----------------------------------------------------------------------------------------------------------
def _layout(gap: float) -> ConstrainedLayoutEngine:
    """Return matplotlib's constrained layout with ``gap`` inches to the left and right of each panel."""
    return ConstrainedLayoutEngine(w_pad=gap, h_pad=0.04)


def _energies(energy: Energy, x: Tensor, data_shape: tuple[int, ...]) -> Tensor:
    """Compute energies of (N, *D) in eval mode, block by block on the energy's own device; (N,) on the CPU."""
    parameter = next(energy.parameters(), x)
    rows = x.detach().flatten(1).to(parameter.device, parameter.dtype)
    with DataPotential(energy, data_shape, block_size=min(ENERGIES_AT_ONCE, max(len(rows), 1))) as potential:
        return potential.value(rows).float().cpu()


def _log_densities(model: GEBM, sets: Mapping[str, Tensor], beta: float) -> dict[str, tuple[Array, Array]]:
    """Compute log-densities of data and of draws, by model: ``log b`` of the base, ``log b - beta E`` of the GEBM."""
    some = {label: x[:MOST_DENSITIES] for label, x in sets.items()}
    device, base = next(model.parameters(), sets["data"]).device, model.base
    assert isinstance(base, HasDensity)
    found: dict[str, Array] = {}
    with LatentPotential(model), torch.no_grad():
        for label, x in some.items():
            parts = [base.log_prob(rows.to(device, model.dtype)).cpu().double() for rows in x.split(ENERGIES_AT_ONCE)]
            found[label] = torch.cat(parts).numpy()
    tilt = {label: beta * _energies(model.energy, some[label], model.data_shape).double().numpy() for label in some}
    gebm = {label: found[label] - tilt[label] for label in ("data", "GEBM")}
    return {"base": (found["data"], found["base"]), "GEBM": (gebm["data"], gebm["GEBM"])}


def _rebuilt(model: GEBM, x: Tensor, labels: Tensor | None) -> Tensor:
    """Call `GEBM.reconstruct` in eval mode on the model's own device; (N, *D), N or more labels -> (N, *D) on the CPU."""
    device = next(model.parameters(), x).device
    with LatentPotential(model), torch.no_grad():
        given = None if labels is None else labels[: len(x)].to(device)
        return model.reconstruct(x.to(device, model.dtype), given).float().cpu()


def _points(cloud: Tensor) -> Array:
    """Return the first finite points of a cloud."""
    points = cloud[:MOST_POINTS].detach().double().cpu().numpy()
    return points[np.isfinite(points).all(axis=1)]


def cloud_limits(clouds: Iterable[Array], axis: int) -> tuple[float, float]:
    """Return limits that hold all the data (the first cloud) and the central 99 % of every other cloud."""
    data, *others = (cloud[:, axis] for cloud in clouds)
    limits = [robust_limits(data, 0.0), *(robust_limits(other, 0.005) for other in others if other.size)]
    low, high = min(limit[0] for limit in limits), max(limit[1] for limit in limits)
    margin = 0.05 * (high - low)
    return low - margin, high + margin


def _contour_levels(heights: Array) -> Array | None:
    """Return even, round levels for the lowest 90 % of the picture's area, where the mass is; None for a flat energy."""
    finite = finite_values(heights)
    if finite.size == 0:
        return None
    low, high = float(finite.min()), float(np.quantile(finite, 0.9))
    if not high - low > 1e-6 * max(abs(low), 1e-6):
        return None
    return np.asarray(MaxNLocator(18).tick_values(low, high))


def _draw_series(axis: Axes, drawn: Mapping[str, tuple[Array, Array]]) -> None:
    """Draw series by name into one panel, or say that there are no values."""
    known = {name: (steps, values) for name, (steps, values) in drawn.items() if np.isfinite(values).any()}
    if not known:
        axis.text(0.5, 0.5, "no values", transform=axis.transAxes, ha="center", va="center", color="grey")
        axis.set(xticks=[], yticks=[])
        return
    palette = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9")
    for i, (name, (steps, values)) in enumerate(known.items()):
        draw_curve(axis, steps, values, color=palette[i % len(palette)], label=name)
    stay_with_the_bulk(axis, [values for _, values in known.values()])
    axis.legend(frameon=False, fontsize=9)
