"""The units of a table: how rows that a model sees become measurements with names again.

Preprocessing of a table is ``y = (x + noise - mean) / std``, where noise spreads values that lie on a grid over its cells.
`TableUnits.measured` is the inverse: ``mean + std y``, and then the nearest point of the grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

ON_GRID = 0.95
"""Least share of a column's values that lie on its grid; below 1, as a few odd values must not hide the grid."""

MOST_OFF_GRID = 100
"""Most different values off the grid of a column. With more of them, draws of the column keep all their digits."""

SINGLE = 2.0**-23
"""Spacing of single precision relative to the value: rows that a model sees are rounded by half of it."""

DOUBLE = 2.0**-50
"""Four spacings of double precision relative to the value: a finer grid can't be told from the rounding."""

LARGEST_WHOLE = 2.0**53
"""Largest number below which double precision holds every whole number."""


@runtime_checkable
class HasMeasured(Protocol):
    """Names of columns, and the way back from data that a model sees to measurements: `TableUnits`, or a dataset."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the D columns."""
        ...

    def measured(self, rows: Tensor) -> Tensor:
        """Turn rows that the model sees into measurements; (N, D) -> (N, D) float64."""
        ...


@dataclass(frozen=True, slots=True)
class TableUnits:
    """Names of columns, and the map from the data that a model sees to measurements: ``x = mean + std y``, on its grid.

    Attributes:
        columns: names, or numbers from 1 as text; D of them.
        mean, std: D numbers each; 0 and 1 for data that are not standardised.
        resolution: step r of each column's grid: measurements are multiples of r; 0 where there is no grid. () for none.
        off_grid: the few values of each column that are not multiples of its r; () for none.
        whole: whether all values of a column are whole numbers; () for none.
    """

    columns: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resolution: tuple[float, ...] = ()
    off_grid: tuple[tuple[float, ...], ...] = ()
    whole: tuple[bool, ...] = ()

    def measured(self, rows: Tensor) -> Tensor:
        """Turn rows that the model sees into measurements on the columns' grids; (N, D) -> (N, D) float64.

        A value that is, up to the rounding of single precision, one of the few off the grid becomes that one. Nothing is
        clipped: a draw may lie outside the range of the data.
        """
        found = self.scaled(rows)
        for column, step in enumerate(self.resolution):
            if step > 0 and found.numel():
                odd = self.off_grid[column] if self.off_grid else ()
                found[:, column] = _on_grid(found[:, column], step, odd, self.mean[column])
        return found

    def scaled(self, rows: Tensor) -> Tensor:
        """Return ``mean + std y`` alone, between the points of a grid too; (N, D) -> (N, D) float64."""
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (self.mean, self.std))
        return rows.cpu().double() * std + mean

    def seen(self, rows: Tensor) -> Tensor:
        """Turn measurements into rows that the model sees; (N, D) -> (N, D) float32."""
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (self.mean, self.std))
        return ((rows.double() - mean) / std).float()

    def with_grid(self, rows: Tensor, resolution: Sequence[float]) -> TableUnits:
        """Return these units with the grid of each column that has one.

        Args:
            rows: measurements of the data, (N, D).
            resolution: r of each column; 0: no grid. It is kept if nearly all values are multiples of r.
                Whole numbers without a grid have 1.
        """
        whole = tuple(_are_whole(column) for column in rows.T)
        found = [_grid(*column) for column in zip(rows.T, map(float, resolution), whole, strict=True)]
        steps, odd = tuple(step for step, _ in found), tuple(odd for _, odd in found)
        return TableUnits(self.columns, self.mean, self.std, steps, odd, whole)

    def as_dict(self) -> dict[str, Any]:
        """Return the units as plain JSON."""
        found: dict[str, Any] = {"columns": list(self.columns), "mean": list(self.mean), "std": list(self.std)}
        if self.resolution:
            found["resolution"] = list(self.resolution)
            found["off_grid"] = [list(values) for values in self.off_grid]
            found["whole"] = list(self.whole)
        return found

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> TableUnits:
        """Read back `as_dict`; without the columns' grids, as earlier versions wrote it, too.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        names = tuple(map(str, found["columns"]))
        mean, std = (tuple(float(value) for value in found[key]) for key in ("mean", "std"))
        if not len(names) == len(mean) == len(std):
            raise ValueError("columns, mean and std have different lengths")
        if "resolution" not in found:
            return cls(names, mean, std)
        steps = tuple(float(value) for value in found["resolution"])
        odd = tuple(tuple(float(value) for value in values) for values in found["off_grid"])
        whole = tuple(bool(value) for value in found["whole"])
        if not len(names) == len(steps) == len(odd) == len(whole):
            raise ValueError("columns, resolution, off_grid and whole have different lengths")
        return cls(names, mean, std, steps, odd, whole)

    @classmethod
    def unchanged(cls, num: int) -> TableUnits:
        """Return the units of data without names that are not standardised."""
        return cls(tuple(str(place + 1) for place in range(num)), (0.0,) * num, (1.0,) * num)


@runtime_checkable
class HasUnits(Protocol):
    """A dataset of rows of a table."""

    units: TableUnits  # names of its columns, and the way back to measurements


def nearest_multiple(values: Tensor, step: float) -> Tensor:
    """Return the nearest multiple of a step, as the double that its decimal is read as: 0.3, not 3 * 0.1."""
    inverse = round(1 / step) if step < 1 else 0
    if inverse and abs(inverse * step - 1) < 1e-12:
        return (values * inverse).round() / inverse + 0.0  # + 0.0: no negative zero
    return (values / step).round() * step + 0.0


def _on_grid(values: Tensor, step: float, odd: Sequence[float], mean: float) -> Tensor:
    found = nearest_multiple(values, step)
    if odd:
        known = torch.tensor(sorted(odd), dtype=torch.float64)
        place = torch.searchsorted(known, values.contiguous()).clamp(max=len(known) - 1)
        left = known[(place - 1).clamp(min=0)]
        near = torch.where((values - left).abs() < (values - known[place]).abs(), left, known[place])
        rounding = SINGLE * (values - mean).abs() + DOUBLE * values.abs()
        found = torch.where((values - near).abs() <= rounding, near, found)
    return found


def _grid(column: Tensor, step: float, whole: bool) -> tuple[float, tuple[float, ...]]:
    """Return the step and the values off the grid; 0 (1 for whole numbers) and () if it is not a grid of nearly all."""
    column, otherwise = column.double(), float(whole)
    if not step > 0 or step <= DOUBLE * float(column.abs().max()):
        return otherwise, ()
    multiple = nearest_multiple(column, step)
    on = (column - multiple).abs() <= (SINGLE * column.abs()).clamp(max=0.01 * step)
    if float(on.double().mean()) < ON_GRID and not _all_but_one(column, on):
        return otherwise, ()
    odd = column[~on].unique().tolist()
    return (step, tuple(odd)) if len(odd) <= MOST_OFF_GRID else (otherwise, ())


def _are_whole(column: Tensor) -> bool:
    column = column.double()
    return bool(((column == column.round()) & (column.abs() < LARGEST_WHOLE)).all())


def _all_but_one(column: Tensor, on: Tensor) -> bool:
    """Return whether a single frequent value, such as one that stands for "none", keeps the others from being a grid."""
    others = column != column[~on].mode().values
    return bool(others.any()) and float(on[others].double().mean()) >= ON_GRID
