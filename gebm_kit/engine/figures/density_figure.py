"""The picture of how a density is calibrated: where the log-densities of held-out rows lie among those of its own draws.

For a row x and draws X of a model with density q, the rank u(x) = P(log q(X) <= log q(x)) is uniform if x comes from the
model (the probability integral transform of log q). Rows that the model finds too unlikely have low ranks. The constant of
log q does not matter, so log Z is not needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gebm_kit.engine.figures.plotting import COLOURS, Array, finite_values, robust_limits, save_figure

NUM_RANK_BINS = 20
"""Bins of the ranks."""


def ranks_among(values: Array, draws: Array) -> Array:
    """Return the share of draws that are at most each value, in (0, 1); ties count by half.

    Example:
        >>> ranks_among(np.array([2.5]), np.array([1.0, 2.0, 3.0, 4.0])).tolist()
        [0.5]
    """
    ordered = np.sort(draws)
    below, up_to = (np.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    return np.asarray((below + up_to) / 2 / max(len(ordered), 1))


def density_calibration(path: Path, found: Mapping[str, tuple[Array, Array]]) -> Path:
    """Draw the ranks of held-out log-densities among those of draws, and the log-densities themselves.

    Args:
        path: the picture.
        found: by label (``base``, ``GEBM``): log-densities, up to a constant, of held-out rows and of the model's own draws.
    """
    finite = {label: (finite_values(rows), finite_values(draws)) for label, (rows, draws) in found.items()}
    known = {label: both for label, both in finite.items() if all(values.size for values in both)}
    figure = Figure(figsize=(4.2 + 3.6 * max(len(known), 1), 3.5), layout="constrained")
    first, *others = figure.subplots(1, 1 + max(len(known), 1), width_ratios=[1.25] + [1.0] * max(len(known), 1))
    _ranks(first, known)
    for axis, (label, (rows, draws)) in zip(others, known.items(), strict=False):
        _log_densities(axis, label, rows, draws)
    for axis in others[len(known) :]:
        axis.set_axis_off()
    return save_figure(figure, path)


def _ranks(axis: Axes, known: Mapping[str, tuple[Array, Array]]) -> None:
    edges = np.linspace(0, 1, NUM_RANK_BINS + 1)
    for label, (rows, draws) in known.items():
        ranks = ranks_among(rows, draws)
        heights = np.histogram(ranks, edges)[0] * NUM_RANK_BINS / ranks.size
        off = float(np.abs(np.sort(ranks) - (np.arange(ranks.size) + 0.5) / ranks.size).max())
        axis.stairs(heights, edges, color=COLOURS[label], linewidth=1.8, label=f"{label} (KS from uniform {off:.2f})")
    if known:
        num_rows, num_draws = (min(both[part].size for both in known.values()) for part in (0, 1))
        error = 1.96 * math.sqrt((NUM_RANK_BINS - 1) * (1 / num_rows + 1 / num_draws))
        axis.fill_between([0, 1], max(0.0, 1 - error), 1 + error, color="grey", alpha=0.2, linewidth=0)
        axis.legend(frameon=False, fontsize=9, loc="upper center")
    axis.axhline(1, color="grey", linestyle="--", linewidth=0.9)
    axis.set(xlim=(0, 1), xlabel="rank of a held-out row's log-density among draws", ylabel="relative frequency")
    axis.set_ylim(0, 1.35 * max(axis.get_ylim()[1], 1.5))
    axis.set_title("flat: calibrated; high at the left: rows too unlikely", fontsize=9)
    axis.grid(alpha=0.25)


def _log_densities(axis: Axes, label: str, rows: Array, draws: Array) -> None:
    limits = [robust_limits(values, 0.005) for values in (rows, draws)]
    edges = np.linspace(min(low for low, _ in limits), max(high for _, high in limits), 41)
    for values, colour, name in ((rows, COLOURS["data"], "held-out data"), (draws, COLOURS[label], f"{label} draws")):
        density = np.histogram(values, edges)[0] / (values.size * (edges[1] - edges[0]))
        axis.stairs(density, edges, fill=True, color=colour, alpha=0.22)
        axis.stairs(density, edges, color=colour, linewidth=1.5, label=name)
    subject = "log b(x), nats" if label == "base" else "log q(x) + A, nats"
    axis.set(xlabel=subject, yticks=[], ylim=(0, 1.25 * axis.get_ylim()[1]))
    axis.legend(frameon=False, fontsize=9, loc="upper left")
    axis.grid(alpha=0.25)
