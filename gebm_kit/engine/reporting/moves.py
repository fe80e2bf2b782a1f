"""Codes before and after as a chart, where the data are no images: moves in the plane, or energies against energies."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup

from gebm_kit.engine.reporting.charts import INKS, chart, svg_of
from gebm_kit.engine.reporting.codes import Moved

MOST_MOVES = 120
"""Most codes that are drawn."""


def arrows(moved: Moved, in_plane: bool, words: str) -> tuple[Markup, str]:
    """Return a chart of the codes' moves, and its caption.

    Args:
        in_plane: whether the data are points in the plane, which are joined by lines; else energies are drawn.
        words: what is seen, in a sentence.
    """
    if in_plane:
        before, after = (x[:MOST_MOVES].double().numpy() for x in (moved.before, moved.after))
    else:
        energies = [energy[: 2 * MOST_MOVES].double().numpy() for energy in (moved.energy_before, moved.energy_after)]
    with chart(4.6, 4.0) as (figure, axes):
        if in_plane:
            ends = np.stack([before, after])
            axes.plot(ends[:, :, 0], ends[:, :, 1], color=INKS["faint"], linewidth=0.7, alpha=0.7)
            axes.plot(*before.T, "o", color=INKS["base"], markersize=3.5, markeredgewidth=0)
            axes.plot(*after.T, "o", color=INKS["gebm"], markersize=3.5, markeredgewidth=0)
            axes.set(aspect="equal")
            caption = "Orange: where the prior put a code. Blue: where its chain took it. A line joins the two."
        else:
            finite = np.isfinite(energies).all(axis=0)
            low, high = (
                (float(end(np.array(energies)[:, finite])) for end in (np.min, np.max)) if finite.any() else (0.0, 1.0)
            )
            axes.plot([low, high], [low, high], color=INKS["base"], linestyle="--", linewidth=1.4)
            axes.plot(
                energies[0][finite],
                energies[1][finite],
                "o",
                color=INKS["gebm"],
                markersize=3.5,
                markeredgewidth=0,
                alpha=0.8,
            )
            axes.set(xlabel="energy before", ylabel="energy after")
            caption = "Each point is a code. Below the dashed line its energy is lower after than before."
        return svg_of(figure, f"{caption} {words}", "moves"), caption
