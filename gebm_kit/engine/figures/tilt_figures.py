"""Pictures of a tilt: the reward-KL frontier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from gebm_kit.engine.figures.plotting import COLOURS, save_figure

STYLES = {
    "posterior": (COLOURS["GEBM"], "o"),
    "best of N": (COLOURS["base"], "s"),
    "gradient ascent": ("#009e73", "^"),
}
"""Colour and marker of each way to a higher score; the third is Okabe and Ito's green."""


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a frontier: KL in nats and mean score, each with its standard error, and a label such as ``beta 2``."""

    kl: float
    kl_se: float
    score: float
    score_se: float
    label: str


def frontier(path: Path, ways: Mapping[str, Sequence[Point]], scorer: str) -> Path:
    """Draw mean score against KL from the generator, with 95 % error bars; up and to the left is better.

    Args:
        path: the picture.
        ways: points by the name of the way, one of `STYLES`. Those of gradient ascent are lower bounds of its KL, and are
            drawn with an arrow to the right.
        scorer: name of the score.
    """
    figure = Figure(figsize=(6.8, 4.6), layout="constrained")
    axis = figure.subplots()
    for name, points in ways.items():
        shown = [p for p in points if np.isfinite(p.kl) and np.isfinite(p.score)]
        if not shown:
            continue
        colour, marker = STYLES[name]
        kl, score = [p.kl for p in shown], [p.score for p in shown]
        bars = [np.nan_to_num([1.96 * p.kl_se for p in shown]), np.nan_to_num([1.96 * p.score_se for p in shown])]
        bound = name == "gradient ascent"
        axis.errorbar(
            kl, score, xerr=bars[0], yerr=bars[1], fmt=f"{marker}-", color=colour, markersize=5, linewidth=1.3, capsize=2,
            label=f"{name} (its KL is at least this)" if bound else name, alpha=0.9,
        )  # fmt: skip
        if bound:
            axis.plot(kl, score, linestyle="", marker=9, color=colour, markersize=9)  # carets to the right
        for point in shown:
            place = {"xytext": (5, -11), "textcoords": "offset points", "fontsize": 8, "color": colour}
            axis.annotate(point.label, (point.kl, point.score), **place)  # type: ignore[arg-type]
    reached = [p.kl for name in ("posterior", "best of N") for p in ways.get(name, ()) if np.isfinite(p.kl)]
    if reached and max(reached) > 0:  # gradient ascent soon leaves the picture
        axis.set_xlim(-0.04 * max(reached), 1.25 * max(reached))
    axis.set(xlabel="KL from the generator (nats)", ylabel=f"mean score ({scorer})")
    axis.grid(alpha=0.25)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, loc="lower right", fontsize=9)
    return save_figure(figure, path)
