"""Pictures of latent chains: traces, ranks by starting point, and the potential at the start and afterwards.

All are drawn from recorded chains; see `gebm_kit.engine.sampling.recorder.Recorder`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from gebm_kit.core.files import make_directory
from gebm_kit.engine.figures.plotting import COLOURS, Array, finite_values, robust_limits, save_figure
from gebm_kit.engine.sampling.convergence import ess_bulk, ranks
from gebm_kit.engine.sampling.recorder import side_by_side

NUM_PANELS = 4
"""Most quantities drawn: the potential and three coordinates."""


NUM_LINES = 8
"""Most chains with a line of their own: one for each of `LINE_COLOURS`."""


NUM_BINS = 20
"""Bins of a rank plot; with more of them, noise would hide the shape."""

TICK_MANTISSAS = (1, 2, 5, 10)
"""Mantissas allowed for ticks, so that their labels are round numbers."""


LINE_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#7f7f7f", "#000000")
"""Okabe and Ito's colours, with grey for their yellow."""


POTENTIAL_COLOURS = {"their start": COLOURS["base"], "chains": COLOURS["GEBM"]}

GROUP_COLOURS = ("#440154", "#31688e", "#35b779", "#e6a100")
"""Colours from the lowest to the highest start."""


FURTHEST = 30.0
"""Most that the axis of potentials reaches beyond the chains' histogram towards the base's, in widths of that histogram;
further out, the chains' histogram would be a single line."""


START_NAMES = {
    1: ["all chains"],
    2: ["lower start", "higher start"],
    3: ["lowest start", "middle", "highest start"],
    4: ["lowest quarter of starts", "second", "third", "highest quarter of starts"],
}


@dataclass(frozen=True, slots=True)
class Traces:
    """The quantities drawn, for all recorded chains.

    Attributes:
        values: (N, C, Q), the potential first.
        start: the quantities before warm-up, (C, Q), or None.
        labels: names of the quantities.
        every: steps from one row of ``values`` to the next.
    """

    values: Tensor
    start: Tensor | None
    labels: tuple[str, ...]
    every: int


def draw_chains(directory: Path, records: Sequence[Mapping[str, Tensor]]) -> list[Path]:
    """Draw ``sample-trace.png``, ``sample-ranks.png`` and ``sample-energy.png`` into ``directory``, made if missing.

    Args:
        records: `Recorder.tensors` of all blocks; with fewer than two recorded steps nothing is drawn.
    """
    traces = chosen(records)
    if traces is None:
        return []
    make_directory(directory)
    paths = [trace_plot(directory / "sample-trace.png", traces), rank_plot(directory / "sample-ranks.png", traces)]
    if bool(torch.isfinite(traces.values[..., 0]).any()):
        paths.append(energy_plot(directory / "sample-energy.png", traces))
    return paths


def chosen(records: Sequence[Mapping[str, Tensor]]) -> Traces | None:
    """Choose the potential and the coordinates whose chains differ most, by the share of variance between chains.

    Returns None with fewer than two recorded steps or without chains.
    """
    if not records:
        return None
    trace, start = side_by_side(records)
    if len(trace) < 2 or trace.shape[1] == 0:
        return None
    wide = trace[..., :-1].double()
    between, total = wide.mean(0).var(0, correction=0), wide.flatten(0, 1).var(0)
    share = (between / total).nan_to_num(nan=0.0)
    worst = share.argsort(descending=True)[: NUM_PANELS - 1].sort().values
    picks = torch.cat([torch.tensor([trace.shape[2] - 1]), worst])
    coordinates = records[0]["coordinates"][worst].tolist()
    return Traces(
        trace[..., picks].double(),
        None if start is None else start[:, picks].double(),
        ("potential", *(f"z[{i}]" for i in coordinates)),
        max(int(records[0]["steps"]) // len(records[0]["trace"]), 1),
    )


def trace_plot(path: Path, traces: Traces) -> Path:
    """Draw each quantity against the step: the range of all chains, and the lines of a few chains."""
    traces = _varying(traces)
    num, num_chains = len(traces.labels), traces.values.shape[1]
    figure = Figure(figsize=(9.5, 1.0 + 1.65 * num), layout="constrained")
    axes = figure.subplots(num, 1, sharex=True, squeeze=False)[:, 0]
    steps = _steps(traces)
    lines = np.linspace(0, num_chains - 1, min(NUM_LINES, num_chains)).round().astype(int)
    for i, (axis, label) in enumerate(zip(axes, traces.labels, strict=True)):
        values = _with_gaps(traces.values[..., i].numpy())
        limits = [_band(axis, steps, values), robust_limits(values[:, lines], 0.0)]
        for colour, chain in zip(LINE_COLOURS, lines, strict=False):
            axis.plot(steps, values[:, chain], color=colour, linewidth=0.8, alpha=0.85)
        axis.set(ylabel=label, ylim=_around(limits))
        axis.yaxis.set_major_locator(MaxNLocator(4, steps=TICK_MANTISSAS))
        axis.grid(alpha=0.25)
    _step_axis(axes[-1], steps)
    figure.align_ylabels(axes)
    drawn = f"{len(lines)} of {num_chains} chains; shaded: where 50 % and 90 % of all are"
    axes[0].set_title(drawn if len(lines) < num_chains else f"chains: {num_chains}", fontsize=11, loc="left")
    return save_figure(figure, path)


def rank_plot(path: Path, traces: Traces) -> Path:
    """Draw how often chains that started low or high are at each rank among all draws; flat if they forgot their start.

    Chains are grouped by the quantity's value before warm-up or, without it, by their number. The grey band is two standard
    errors wide on each side, for a group that forgot its start, given the effective sample size.
    """
    traces = _varying(traces)
    num = len(traces.labels)
    columns = 2 if num == 4 else num
    lines = -(-num // columns)
    figure = Figure(figsize=(1.5 + 4 * columns, 0.9 + 2.5 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, sharex=True, squeeze=False)
    for i, axis in enumerate(axes.flat):
        _draw_ranks(axis, traces, i)
        axis.set_title(traces.labels[i], fontsize=11, loc="left")
    for axis in axes[:, 0]:
        axis.set_ylabel("relative frequency")
    for axis in axes[-1]:
        axis.set_xlabel("rank among all draws")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=9)
    return save_figure(figure, path)


def energy_plot(path: Path, traces: Traces) -> Path:
    """Draw the chains' potential beside that at the start of their tuning, and its course over the steps."""
    values = _with_gaps(traces.values[..., 0].numpy())
    shown = {"chains": finite_values(values)}
    if traces.start is not None:
        shown = {"their start": finite_values(traces.start[:, 0].numpy()), **shown}
    shown = {label: v for label, v in shown.items() if v.size}
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    _draw_potentials(left, shown)
    steps, colour = _steps(traces), POTENTIAL_COLOURS["chains"]
    limits = _band(right, steps, values, colour)
    known = np.isfinite(values).any(axis=1)
    right.plot(steps[known], np.nanmean(values[known], axis=1), color=colour, linewidth=1.6, label="mean of the chains")
    if "their start" in shown:
        mean = float(shown["their start"].mean())
        near = max(abs(mean - limit) for limit in limits) <= 3 * (limits[1] - limits[0])
        label = "mean at their start" if near else f"mean at their start: {mean:.3g}, not shown"
        style: dict[str, Any] = {"color": POTENTIAL_COLOURS["their start"], "linestyle": "--", "label": label}
        if near:
            right.axhline(mean, **style)
            limits = _around([limits, (mean, mean)])
        else:
            right.plot([], [], **style)
    margin = 0.06 * (limits[1] - limits[0]) or 0.05 * max(abs(limits[0]), 1.0)
    right.set(ylabel="potential", ylim=(limits[0] - margin, limits[1] + margin))
    _step_axis(right, steps)
    for axis in (left, right):
        axis.grid(alpha=0.25)
        bottom, top = axis.get_ylim()
        axis.set_ylim(bottom, top + 0.25 * (top - bottom))  # room for the legend
        axis.legend(frameon=False, fontsize=9, loc="upper right")
    return save_figure(figure, path)


# --- parts -----------------------------------------------------------------------------------------------------------
def _varying(traces: Traces) -> Traces:
    """Drop quantities that are constant or nowhere finite, unless all of them are."""
    finite = torch.isfinite(traces.values)
    varies = ((traces.values != traces.values[0, 0]) & finite).flatten(0, 1).any(0)
    if not bool(varies.any()):
        return traces
    labels = tuple(label for label, kept in zip(traces.labels, varies.tolist(), strict=True) if kept)
    start = None if traces.start is None else traces.start[:, varies]
    return replace(traces, values=traces.values[..., varies], start=start, labels=labels)


def _steps(traces: Traces) -> Array:
    """Return the step of each row."""
    return traces.every * np.arange(1.0, len(traces.values) + 1)


def _step_axis(axis: Axes, steps: Array) -> None:
    """Label the horizontal axis with whole steps."""
    axis.set(xlabel="step after warm-up", xlim=(steps[0], steps[-1]))
    axis.xaxis.set_major_locator(MaxNLocator(7, integer=True, steps=TICK_MANTISSAS))


def _with_gaps(values: Array) -> Array:
    """Replace values that are not finite by NaN, which leaves a gap in a line."""
    return np.where(np.isfinite(values), values, np.nan)


def _around(limits: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the smallest range that holds all of them."""
    return min(low for low, _ in limits), max(high for _, high in limits)


def _band(axis: Axes, steps: Array, values: Array, colour: str = "#4d4d4d") -> tuple[float, float]:
    """Shade the central 50 % and 90 % of all chains (N, C) at each step; returns the limits of the 90 %."""
    known = np.isfinite(values).any(axis=1)
    for tail in (0.25, 0.05):
        low, high = np.nanquantile(values[known], [tail, 1 - tail], axis=1)
        axis.fill_between(steps[known], low, high, color=colour, alpha=0.13, linewidth=0)
    return float(low.min()), float(high.max())


def _draw_potentials(axis: Axes, shown: Mapping[str, Array]) -> None:
    """Draw a histogram for each label, with its own bins: the base's potentials may spread a thousand times wider."""
    limits = {label: robust_limits(values, 0.005) for label, values in shown.items()}
    low, high = _around(list(limits.values()))
    if "chains" in limits:
        first, last = limits["chains"]
        reach = FURTHEST * (last - first)
        low, high = max(low, first - reach), min(high, last + reach)
    densities, words = {}, {}
    for label, values in shown.items():
        outside = float(((values < low) | (values > high)).mean())
        words[label] = f"{label} (mean {values.mean():.3g}" + (
            f"; {100 * outside:.0f} % not shown)" if outside > 0.05 else ")"
        )
        edges = np.linspace(max(limits[label][0], low), min(limits[label][1], high), 41)
        if edges[0] < edges[-1] and outside <= 0.9:
            densities[label] = np.histogram(values, edges)[0] / (values.size * (edges[1] - edges[0])), edges
    peaks = [density.max() for density, _ in densities.values()]
    own_height = bool(peaks) and max(peaks) > 5 * min(peaks) > 0
    for label, text in words.items():
        density, edges = densities.get(label, (np.empty(0), np.empty(0)))
        style: dict[str, Any] = {"color": POTENTIAL_COLOURS[label], "linewidth": 1.6, "label": text}
        if density.any():
            height = density / density.max() if own_height else density
            axis.stairs(height, edges, fill=True, color=POTENTIAL_COLOURS[label], alpha=0.25)
            axis.stairs(height, edges, **style)
        else:
            axis.plot([], [], **style)
    axis.set(xlabel="potential", xlim=(low, high), ylim=(0, None))
    axis.set_ylabel("density, each to its own height" if own_height else "density")
    axis.xaxis.set_major_locator(MaxNLocator(6, steps=TICK_MANTISSAS))


def _draw_ranks(axis: Axes, traces: Traces, i: int) -> None:
    """Draw the rank histograms of quantity ``i``, one for each group of chains."""
    values = traces.values[..., i]
    num_chains = values.shape[1]
    count = min(len(GROUP_COLOURS), num_chains)
    key = torch.arange(num_chains) if traces.start is None else traces.start[:, i]
    groups = key.argsort(stable=True).tensor_split(count)
    if traces.start is None:
        names = [f"chains {int(group[0])} to {int(group[-1])}" for group in groups]
    else:
        names = START_NAMES[count]
    places = ranks(values.flatten().unsqueeze(0)).view_as(values) / values.numel()
    size = float(ess_bulk(values.unsqueeze(2))[0])
    if np.isfinite(size):
        error = 2 * np.sqrt((NUM_BINS - 1) * count / size)
        axis.fill_between([0, 1], 1 - error, 1 + error, color="grey", alpha=0.18, linewidth=0)
    axis.axhline(1, color="grey", linestyle="--", linewidth=0.8)
    top = 0.0
    for group, name, colour in zip(groups, names, GROUP_COLOURS, strict=False):
        counts = np.histogram(places[:, group].numpy(), np.linspace(0, 1, NUM_BINS + 1))[0]
        density = counts * NUM_BINS / counts.sum()
        axis.stairs(density, np.linspace(0, 1, NUM_BINS + 1), color=colour, linewidth=1.5, baseline=None, label=name)
        top = max(top, float(density.max()))
    axis.set(xlim=(0, 1), ylim=(0, max(1.1 * top, 2.0)))
    axis.yaxis.set_major_locator(MaxNLocator(4, steps=TICK_MANTISSAS))
    axis.grid(alpha=0.25)
