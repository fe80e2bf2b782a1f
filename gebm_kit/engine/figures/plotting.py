"""Parts that figures share: colours, smoothed curves, limits that outliers do not move, and writing a PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gebm_kit.core.files import write_atomic

Array = NDArray[np.floating[Any]]


COLOURS = {"data": "#4d4d4d", "base": "#e69f00", "GEBM": "#0072b2"}
"""Colours of data, base and GEBM: grey, and Okabe and Ito's orange and blue, which colour-blind readers can tell apart."""

LINE_STYLES = ("-", "--", "-.", ":")
"""Line styles; lines take the next style when the colours are used up."""


# --- parts of every figure ------------------------------------------------------------------------------------------
def save_figure(figure: Figure, path: Path, dots_per_inch: int = 130) -> Path:
    """Write the figure as a PNG, completely or not at all; returns ``path``."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dots_per_inch)
    write_atomic(path, buffer.getvalue())
    return path


def finite_values(values: Array) -> Array:
    """Return the finite values, (N,)."""
    return values[np.isfinite(values)]


def robust_limits(values: Array, tail: float) -> tuple[float, float]:
    """Return the quantiles ``tail`` and ``1 - tail`` of the finite values, a little apart even if all values are equal."""
    values = finite_values(values)
    if values.size == 0:
        return -1.0, 1.0
    low, high = (float(q) for q in np.quantile(values, [tail, 1.0 - tail]))
    margin = 0.02 * (high - low) or max(abs(low), 1.0) * 0.05
    return low - margin, high + margin


def series(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[Array, Array]:
    """Return steps and values of one name. Null and non-finite values are NaN; rows without the name are left out."""
    present = [row for row in rows if name in row and isinstance(row.get("step"), int | float)]
    values = [row[name] if isinstance(row[name], int | float) else math.nan for row in present]
    return finite_series([row["step"] for row in present], values)


def finite_series(steps: Sequence[float], values: Sequence[float]) -> tuple[Array, Array]:
    """Return steps and values as arrays, (N,) float64, with NaN where a value is not finite."""
    found = np.array(values, dtype=np.float64)
    return np.array(steps, dtype=np.float64), np.where(np.isfinite(found), found, np.nan)


def draw_curve(axis: Axes, steps: Array, values: Array, *, smooth_from: int = 50, **style: Any) -> None:
    """Draw values against steps; with ``smooth_from`` points or more, pale beneath medians of blocks."""
    if len(values) < smooth_from:
        marker: dict[str, Any] = {"marker": "o", "markersize": 3} if len(values) < 50 else {}
        axis.plot(steps, values, linewidth=1.5, **marker, **style)
    else:
        axis.plot(steps, values, linewidth=0.8, alpha=0.3, **(style | {"label": None}))
        axis.plot(*block_medians(steps, values), linewidth=1.7, **style)


def stay_with_the_bulk(axis: Axes, values: Sequence[Array]) -> None:
    """Limit the axis to the central 98 % of 50 points or more, since a spike would flatten everything else."""
    if sum(len(part) for part in values) >= 50:
        low, high = robust_limits(np.concatenate(values), 0.01)
        margin = 0.08 * (high - low)
        axis.set_ylim(low - margin, high + margin)


def block_medians(steps: Array, values: Array) -> tuple[Array, Array]:
    """Return mean step and median value of at most 60 blocks of neighbours, without NaN values."""
    finite = np.isfinite(values)
    blocks = np.array_split(np.flatnonzero(finite), min(60, max(int(finite.sum()) // 8, 1)))
    return np.array([steps[b].mean() for b in blocks]), np.array([np.median(values[b]) for b in blocks])
