"""A partition of feature space into cells: the k-means clusters of some rows."""

from __future__ import annotations

import torch
from torch import Tensor

from gebm_kit.core.seeds import stream

STARTS = 10
"""Times that k-means is started anew; the best of its ends is kept."""

MAX_ROUNDS = 300
"""Most rounds of a start; most end earlier, when no row changes its cell."""

ROWS_AT_ONCE = 4096
"""Rows whose distances to all centres are held at a time."""


def centres(rows: Tensor, count: int, seed: int) -> Tensor:
    """Return centres of at most ``count`` cells, by k-means with k-means++ starts; (M, F) -> (K, F).

    Every cell holds at least one row: K is smaller than ``count`` if there are not as many different rows.

    References:
        k-means++: The Advantages of Careful Seeding. D. Arthur, S. Vassilvitskii, SODA 2007.
    """
    generator = stream(seed, "cells")
    best, least = rows[:1], float("inf")
    for _ in range(STARTS):
        found = _settled(rows, _first(rows, count, generator))
        spread = float((rows - found[cell_of(rows, found)]).square().sum())
        if spread < least:
            best, least = found, spread
    return best[cell_of(rows, best).unique()]


def cell_of(rows: Tensor, centres: Tensor) -> Tensor:
    """Return the index of the nearest centre for each row; (N, F), (K, F) -> (N,) int64."""
    squares = (centres - centres[0]).square().sum(1)
    shifted = (centres - centres[0]).T
    blocks = [torch.addmm(squares, part - centres[0], shifted, alpha=-2.0) for part in rows.split(ROWS_AT_ONCE)]
    return torch.cat([block.argmin(1) for block in blocks])


def _first(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw centres among the rows, each with probability proportional to its squared distance to those before."""
    start = int(torch.randint(len(rows), (), generator=generator))
    chosen, squared = [start], (rows - rows[start]).square().sum(1)
    while len(chosen) < count and bool(squared.max() > 0):
        share = squared.cpu().cumsum(0)
        point = torch.rand((), generator=generator, dtype=torch.float64) * share[-1]
        # the last row that adds to the sum, where rounding puts the point beyond it
        found = min(int(torch.searchsorted(share, point, right=True)), int(squared.nonzero()[-1]))
        chosen.append(found)
        squared = torch.minimum(squared, (rows - rows[found]).square().sum(1))
    return rows[chosen]


def _settled(rows: Tensor, start: Tensor) -> Tensor:
    """Move the centres to the means of their cells until no row changes its cell."""
    found, cells = start, cell_of(rows, start)
    for _ in range(MAX_ROUNDS):
        counts = torch.bincount(cells, minlength=len(found))
        sums = torch.zeros_like(found).index_add_(0, cells, rows)
        # a cell that lost all of its rows stays where it is
        found = torch.where((counts > 0)[:, None], sums / counts.clamp_min(1)[:, None], found)
        moved = cell_of(rows, found)
        if torch.equal(moved, cells):
            break
        cells = moved
    return found
