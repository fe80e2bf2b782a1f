"""Held-out data for evaluation: rows of a split, rows given as a tensor, and sets of them for the floor."""

from __future__ import annotations

import torch
from torch import Tensor

from gebm_kit.core.errors import DataError
from gebm_kit.core.interfaces import Dataset, Split, SplitName

MAX_ROWS = 10_000
"""Rows of a part that are scored against; a larger part is thinned out evenly."""


class _Rows(Split):
    def __init__(self, rows: Tensor) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, indices: Tensor) -> Tensor:
        return self._rows[indices]


class HeldOut(Dataset):
    """Rows (N, *D) that no training has seen, for models built by hand.

    Even rows are the reference (``test``), odd ones the floor (``valid``). There is no training part: ``train`` is
    ``valid`` too, for feature maps that ask for one, and no KALE is reported on it.

    Raises:
        DataError: fewer than four rows, or a value that is not finite.
    """

    def __init__(self, rows: Tensor) -> None:
        rows = rows.detach().cpu()
        rows = rows if rows.is_floating_point() else rows.float()
        if rows.ndim < 2 or len(rows) < 4:
            raise DataError(f"data must have at least 4 rows of data points, got a tensor of shape {tuple(rows.shape)}")
        self.data_shape = tuple(rows.shape[1:])
        self._test, self._valid = _Rows(rows[::2]), _Rows(rows[1::2])

    def split(self, name: SplitName) -> Split:
        return self._test if name == "test" else self._valid


def every_row(split: Split, what: str, limit: int = MAX_ROWS) -> Tensor:
    """All rows of a split on the CPU, or ``limit`` of them, evenly spaced; (N, *D).

    Raises:
        DataError: a value is not finite.
    """
    num = len(split)
    index = torch.arange(num) if num <= limit else torch.arange(limit) * num // limit
    rows = torch.cat([split.batch(part).cpu() for part in index.split(1024)])
    finite = torch.isfinite(rows.flatten(1)).all(1)
    if not bool(finite.all()):
        row = int(index[int((~finite).nonzero()[0])])
        raise DataError(f"{what}: row {row} holds a value that is not finite (NaN or infinity)")
    return rows


def floor_sets(rows: Tensor, num_samples: int, num_sets: int) -> list[Tensor]:
    """Disjoint sets of ``num_samples`` rows, as many as there are, at most ``num_sets``; one of all rows when there are
    fewer. Sets take every k-th row, so that a file's order does not tell them apart."""
    count = max(1, min(num_sets, len(rows) // num_samples))
    return [rows[start::count][:num_samples] for start in range(count)]
