"""Columns of a table as pictures need them: measured values, names that can be drawn, and which columns differ most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from gebm_kit.core.units import HasMeasured, TableUnits
from gebm_kit.engine.figures.plotting import Array, finite_values, robust_limits

MOST_ROWS = 5000
"""Most rows of data and of draws behind a picture of a table."""

LONGEST_NAME = 26
"""Most characters of a column's name beside an axis."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Data and draws of a table by column, in measured units.

    Attributes:
        names: names of the columns, as they are drawn.
        values: by label (``data``, ``base``, ``GEBM``), measurements on the columns' grids, (N, D).
        free: the same between the points of the grids, where these are known; else ``values``.
        steps: step of each column's grid, (D,); 0 for none.
        distance: largest two-sample Kolmogorov-Smirnov distance of data from base or GEBM by column, (D,).
    """

    names: tuple[str, ...]
    values: Mapping[str, Array]
    free: Mapping[str, Array]
    steps: Array
    distance: Array

    def most_different(self, most: int) -> list[int]:
        """Return up to ``most`` columns with the largest `distance`, in the order of the table."""
        return sorted(np.argsort(-self.distance, kind="stable")[:most].tolist())

    def hidden(self, label: str, chosen: Sequence[int]) -> float:
        """Return the largest share of finite draws outside a column's limits (`limits_of`), among some columns."""
        shares = [0.0]
        for column in chosen:
            low, high = limits_of([values[:, column] for values in self.free.values()])
            finite = finite_values(self.free[label][:, column])
            shares.append(float(((finite < low) | (finite > high)).mean()) if finite.size else 0.0)
        return max(shares)


def columns_of_table(sets: Mapping[str, Tensor], units: HasMeasured | None) -> Columns:
    """Turn rows as the model sees them, (N, D) by label, into the columns of a table.

    Args:
        units: names and units; None: columns x1, ..., xD in the model's own numbers.
    """
    rows = {label: x[:MOST_ROWS].detach().float().cpu() for label, x in sets.items()}
    width = next(iter(rows.values())).shape[1]
    of = units or TableUnits.unchanged(width)
    values = {label: of.measured(x).numpy() for label, x in rows.items()}
    scaled = {label: of.scaled(x).numpy() for label, x in rows.items()} if isinstance(of, TableUnits) else values
    steps = np.array(of.resolution if isinstance(of, TableUnits) and of.resolution else [0.0] * width)
    names = tuple(shown_name(name, place) for place, name in enumerate(of.columns, start=1))
    apart = [ks_distances(scaled["data"], scaled[label]) for label in scaled if label != "data"]
    return Columns(names, values, scaled, steps, np.max(apart, axis=0))


def shown_name(name: str, place: int) -> str:
    """Return a column's name as one short line that can be drawn; x3 for the third column if it has none but its number."""
    line = " ".join("".join(char if char.isprintable() else " " for char in name).split())
    if not line or line == str(place):
        return f"x{place}"
    return line if len(line) <= LONGEST_NAME else f"{line[: LONGEST_NAME - 1].rstrip()}…"


def ks_distances(one: Array, other: Array) -> Array:
    """Return the two-sample Kolmogorov-Smirnov distance of each column, (N, D) and (M, D) -> (D,); NaN values are left out.

    It is the largest difference of the two distribution functions: 0 for equal samples, 1 for samples that lie apart.

    Example:
        >>> ks_distances(np.array([[0.0], [1.0]]), np.array([[0.0], [1.0]])).tolist()
        [0.0]
    """
    return np.array([_distance(a, b) for a, b in zip(one.T, other.T, strict=True)])


def _distance(one: Array, other: Array) -> float:
    one, other = np.sort(finite_values(one)), np.sort(finite_values(other))
    if not one.size or not other.size:
        return float(one.size != other.size)
    points = np.concatenate([one, other])
    shares = [np.searchsorted(values, points, side="right") / values.size for values in (one, other)]
    return float(np.abs(shares[0] - shares[1]).max())


def limits_of(values: Sequence[Array]) -> tuple[float, float]:
    """Return limits of an axis: all data (the first), and the bulk of the draws, at most once more the data's range.

    A few draws far out then do not turn the data into a line.
    """
    data, *draws = values
    low, high = robust_limits(data, 0.0)
    ends = [robust_limits(found, 0.01) for found in draws if finite_values(found).size]
    reach = high - low
    return (
        max(min([low, *(end[0] for end in ends)]), low - reach),
        min(max([high, *(end[1] for end in ends)]), high + reach),
    )


def bin_edges(low: float, high: float, step: float, most: int) -> Array:
    """Return edges of at most about ``most`` bins; for a grid of some step, whole cells around its points."""
    if not step > 0 or high - low < step:
        return np.linspace(low, high, most + 1)
    width = step * max(1, int(np.ceil((high - low) / step / most)))
    start = (np.ceil(low / step) - 0.5) * step
    count = max(1, int(np.ceil((high - start) / width)))
    return np.asarray(start + width * np.arange(count + 1))
