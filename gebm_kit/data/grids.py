"""Grids of columns: the step r that a column's values are multiples of."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gebm_kit.core.units import ON_GRID

MOST_DECIMALS = 9
"""Decimals down to which the grid of a column is looked for; a finer grid can't be told from a continuous column."""


LOOKED_AT = 2000
"""Rows from which the grids of an array are guessed; all of them then have to lie on it."""


def resolution(rows: Tensor) -> Tensor:
    """Return the step r of each column's grid, (N, D) -> (D,); 0 for a column without a grid.

    r is the largest of ..., 10, 5, 2, 1, 0.5, 0.2, 0.1, ..., down to 1e-9, such that 95 % of the values are multiples of r.
    (A few wines with 9.5333 % of alcohol among tenths do not make the column continuous.) r is at most the range of
    the values; where one value fills more than half of the rows, such as 0, the others decide. If there is no such r, a
    column with fewer than N/2 different values gets the median step from one value to the next.
    """
    return torch.tensor([_step(column) for column in rows.double().T], dtype=torch.float64)


def _step(column: Tensor) -> float:
    distinct, counts = column.unique(return_counts=True)
    if int(counts.max()) > len(column) / 2 and len(distinct) > 2:  # which is a multiple of any step if it is 0
        return _step(column[column != distinct[counts.argmax()]]) or float(distinct.diff().median())
    # 1e-300 keeps the logarithm of a column of zeros finite
    top = max(math.ceil(math.log10(float(column.abs().max()) + 1e-300)), -MOST_DECIMALS)
    top = min(top, 307)  # 1e308 is near the largest number
    spread = float(column.max() - column.min())
    for step in (10.0**exponent * share for exponent in range(top, -MOST_DECIMALS, -1) for share in (1.0, 0.5, 0.2)):
        if step <= 1e-9 * spread:  # a grid this fine can't be told from a continuous column
            break
        if step > spread:  # all values may be near one multiple
            continue
        off = (column - (column / step).round() * step).abs()
        if (
            float((off <= (2e-7 * column.abs()).clamp(max=0.01 * step)).double().mean()) >= ON_GRID
        ):  # values in single precision are multiples only up to their rounding, 2e-7 of the value
            return step
    return float(distinct.diff().median()) if len(distinct) < len(column) / 2 else 0.0


def grid_of_some(rows: Tensor) -> list[float]:
    """Return `resolution` of at most `LOOKED_AT` evenly spaced rows; (N, D) -> D numbers, 0 where there is no grid."""
    step = max(1, -(-len(rows) // LOOKED_AT))
    return [float(value) for value in resolution(rows[::step]).nan_to_num(nan=0.0)]
