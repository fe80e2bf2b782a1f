"""Held-out data for evaluation: rows of a split, rows given as a tensor, and sets of rows for the floor."""

from __future__ import annotations

import torch
from torch import Tensor

from gebm_kit.core.errors import DataError
from gebm_kit.core.interfaces import Dataset, Split, SplitName

MAX_ROWS = 10_000
"""Largest number of rows of a part to score against; a larger part is thinned evenly."""


class _Rows(Split):
    def __init__(self, rows: Tensor) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, indices: Tensor) -> Tensor:
        return self._rows[indices]


class HeldOut(Dataset):
    """Rows (N, *D) that were not used in training, for models built by hand.

    Even rows are the reference (``test``), odd rows the floor (``valid``). There is no training part: ``train`` is
    ``valid`` too, for feature maps that need one, and KALE is not reported on it.

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
    """Return all rows of a split on the CPU, or ``limit`` evenly spaced ones; (N, *D).

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
    """Split ``rows`` into disjoint sets of ``num_samples`` rows, as many as possible but at most ``num_sets``.

    With fewer than ``num_samples`` rows there is one set, of all rows. Each set takes every k-th row, so that sets do not
    differ by the order of a file.
    """
    count = max(1, min(num_sets, len(rows) // num_samples))
    return [rows[start::count][:num_samples] for start in range(count)]
