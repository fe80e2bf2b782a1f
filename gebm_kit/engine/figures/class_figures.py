"""Pictures of a model with classes: images with a row for each class, and scores by class as bars.

Every public function writes one PNG, completely or not at all, and returns its path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

from gebm_kit.engine.figures.plotting import COLOURS, Array, robust_limits, save_figure
from gebm_kit.engine.figures.run_figures import GRID_SIDE, mosaic

MOST_CLASSES = 20
"""Most classes with a row of images. Of more, evenly spaced ones are drawn."""

MOST_PANELS = 6
"""Most values with a panel of bars; all are in evaluation.json."""

ACCURACY = {
    "bayes": "accuracy by Bayes' rule, of held-out rows of a class",
    "energy-part": "held-out rows with the lowest E(x, y) + A_y at their class",
}
"""Titles of the accuracy, by what tells the classes apart."""

BAR_COLUMNS = {"base": COLOURS["base"], "gebm": COLOURS["GEBM"]}
"""Columns of an evaluation that have bars, and their colours."""


def class_grid(
    path: Path,
    images: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
    num_classes: int,
    value_range: tuple[float, float] | None,
    names: Sequence[str] | None = None,
) -> Path:
    """Draw panels side by side, one for each of ``images`` (title -> (N, C, H, W)), with a row of 8 images for each class.

    Args:
        labels: class of each image, (N,), by title.
        num_classes: number of classes; a class without images has an empty row.
        value_range: as for `gebm_kit.engine.figures.run_figures.image_grid`.
        names: names of the classes, or None.
    """
    count = min(num_classes, MOST_CLASSES)
    shown = [place * num_classes // count for place in range(count)]
    arrays = {title: x.detach().float().cpu().numpy() for title, x in images.items()}
    low, high = value_range or robust_limits(np.concatenate([x[:512].ravel() for x in arrays.values()]), 0.005)
    mosaics = {title: mosaic(_rows(x, labels[title], shown, high), (low, high)) for title, x in arrays.items()}
    height, width = next(iter(mosaics.values())).shape[:2]
    side = 3.6
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.04)
    figure = Figure(figsize=(side * len(mosaics) + 0.4, side * height / width + 0.4), layout=layout)
    axes = figure.subplots(1, len(mosaics), squeeze=False)[0]
    titles = [str(label) if names is None else _plain(names[label]) for label in shown]
    middles = (np.arange(count) + 0.5) * (height + 1) / count - 1
    for axis, (title, picture) in zip(axes, mosaics.items(), strict=True):
        axis.imshow(picture, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
        axis.set_title(title, fontsize=13)
        axis.set_xticks([])
        axis.set_yticks(middles, titles if axis is axes[0] else [""] * count, fontsize=9)
        axis.tick_params(length=0)
        for spine in axis.spines.values():
            spine.set_visible(False)
    axes[0].set_ylabel("class", fontsize=10)
    return save_figure(figure, path, dots_per_inch=160)


def _plain(name: str) -> str:
    """Return a name that is drawn as it is; matplotlib would read what is between dollars as mathematics."""
    return name.replace("$", r"\$")


def _rows(images: Array, labels: Tensor, shown: list[int], empty: float) -> Array:
    """Return `GRID_SIDE` images of each class, one class after another; missing ones have the value ``empty``."""
    found = np.full((len(shown) * GRID_SIDE, *images.shape[1:]), empty, dtype=images.dtype)
    known = labels.cpu().numpy()
    for place, label in enumerate(shown):
        some = images[known == label][:GRID_SIDE]
        found[place * GRID_SIDE : place * GRID_SIDE + len(some)] = some
    return found


def class_bars(path: Path, classes: Mapping[str, Any], law: str | None = None) -> Path | None:
    """Draw each metric of base and GEBM by class as bars with 95 % intervals, and the accuracy; None without values.

    Args:
        classes: the JSON of ``classes`` in an evaluation.
        law: ``classifier.law`` in the same JSON, which the accuracy's title says.
    """
    names = dict.fromkeys(name for found in classes.values() for name in found["metrics"].get("gebm") or {})
    panels = [name for name in names if not name.endswith(".train")][: MOST_PANELS - 1]
    accuracies = [found.get("accuracy") for found in classes.values()]
    total = len(panels) + any(value is not None for value in accuracies)
    if not total:
        return None
    width = min(max(5.5, 0.4 * len(classes) + 1.5), 16.0)
    figure = Figure(figsize=(width, 2.4 * total), layout="constrained")
    axes = figure.subplots(total, 1, sharex=True, squeeze=False)[:, 0]
    for axis, name in zip(axes, panels, strict=False):
        for offset, (column, colour) in zip((-0.2, 0.2), BAR_COLUMNS.items(), strict=True):
            cells = [(found["metrics"].get(column) or {}).get(name) for found in classes.values()]
            _bars(axis, cells, offset, colour, "GEBM" if column == "gebm" else column)
        axis.set_title(name, fontsize=11)
    if total > len(panels):
        cells = [None if value is None else {"value": value} for value in accuracies]
        _bars(axes[-1], cells, 0.0, "#009e73", "")
        axes[-1].set_ylim(0.0, 1.0)
        axes[-1].set_title(ACCURACY.get(law or "", "accuracy"), fontsize=11)
    if panels:
        axes[0].legend(frameon=False, fontsize=9)
    for axis in axes:
        axis.grid(alpha=0.25, axis="y")
    every = max(1, -(-len(classes) // 40))
    names_of = [_plain(found.get("name") or label) for label, found in classes.items()]
    tilted: dict[str, Any] = {"rotation": 45, "ha": "right"} if names_of != [*classes] else {}
    axes[-1].set_xticks(range(0, len(classes), every), names_of[::every], **tilted)
    axes[-1].set_xlabel("class")
    return save_figure(figure, path)


def _bars(axis: Axes, cells: list[Mapping[str, Any] | None], offset: float, colour: str, label: str) -> None:
    """Draw one bar for each class that has a value, with its interval."""
    known = [(place, cell) for place, cell in enumerate(cells) if cell is not None and cell.get("value") is not None]
    if not known:
        return
    places = [place + offset for place, _ in known]
    values = np.array([cell["value"] for _, cell in known], dtype=np.float64)
    ends = [[cell.get(end) for _, cell in known] for end in ("low", "high")]
    low, high = (
        np.abs(np.array([v if e is None else e for v, e in zip(values, found, strict=True)]) - values) for found in ends
    )
    axis.bar(places, values, width=0.38 if offset else 0.6, color=colour, label=label or None)
    if low.any() or high.any():
        axis.errorbar(places, values, yerr=[low, high], fmt="none", ecolor="#4d4d4d", elinewidth=0.9, capsize=1.5)
