"""Held-out data for evaluation: evenly spaced rows of a split, rows given as a tensor, and sets of them for the floor."""

from __future__ import annotations

import torch
from torch import Tensor

from gebm_kit.core.errors import DataError
from gebm_kit.core.interfaces import Dataset, Split, SplitName

MAX_ROWS = 10_000
"""Most rows read from one part of a dataset. A larger part is thinned evenly, so that an evaluation's cost is bounded."""

ROWS_READ_AT_ONCE = 1024
"""Rows read from a split at a time, which bounds what a split on a device or on disk must hold at once."""


class _Rows(Split):
    """A split of rows in memory."""

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, indices: Tensor) -> Tensor:
        return self._rows[indices]


class HeldOut(Dataset):
    """A dataset of rows (N, *D) that no model was trained on, for models built by hand.

    Even rows are the reference (``test``) and odd rows the floor (``valid``). There is no training part, so no KALE on
    training data is reported. Feature maps that ask for ``train`` get ``valid``.

    Raises:
        DataError: fewer than four rows. Values are checked when rows are read, see `evenly_spaced_rows`.
    """

    def __init__(self, rows: Tensor) -> None:
        rows = rows.detach().cpu()
        rows = rows if rows.is_floating_point() else rows.float()
        if rows.ndim < 2 or len(rows) < 4:
            raise DataError(f"data must have at least 4 rows of data points, got a tensor of shape {tuple(rows.shape)}")
        self.data_shape = tuple(rows.shape[1:])
        self._test, self._valid = _Rows(rows[::2]), _Rows(rows[1::2])

    how_to_label = "Give their classes: labels=..., or data=(rows, labels)."

    def split(self, name: SplitName) -> Split:
        return self._test if name == "test" else self._valid


class LabelledHeldOut(HeldOut):
    """Held-out rows with the class of each, (N,) int64, for models with classes."""

    def __init__(self, rows: Tensor, labels: Tensor, num_classes: int) -> None:
        super().__init__(rows)
        self.num_classes, self._labels = num_classes, labels.cpu()

    def labels(self, name: SplitName) -> Tensor:
        """Return the class of each row of a part."""
        return self._labels[::2] if name == "test" else self._labels[1::2]


def evenly_spaced(num: int, limit: int = MAX_ROWS) -> Tensor:
    """Return the indices of all of ``num`` rows, or of ``limit`` evenly spaced ones, (N,) int64."""
    return torch.arange(num) if num <= limit else torch.arange(limit) * num // limit


def evenly_spaced_rows(split: Split, what: str, limit: int = MAX_ROWS) -> Tensor:
    """Return all rows of a split, or ``limit`` evenly spaced ones of a larger split; (N, *D) on the CPU.

    Args:
        what: name of the rows, for messages.
        limit: most rows returned; `MAX_ROWS` unless given.

    Raises:
        DataError: a value is not finite.
    """
    index = evenly_spaced(len(split), limit)
    rows = torch.cat([split.batch(part).cpu() for part in index.split(ROWS_READ_AT_ONCE)])
    finite = torch.isfinite(rows.flatten(1)).all(1)
    if not bool(finite.all()):
        row = int(index[int((~finite).nonzero()[0])])
        raise DataError(f"{what}: row {row} holds a value that is not finite (NaN or infinity)")
    return rows


def floor_sets(rows: Tensor, num_samples: int, num_sets: int) -> list[Tensor]:
    """Divide rows into disjoint sets of ``num_samples``: as many as the rows fill, at most ``num_sets``.

    When the rows do not fill one set, the only set holds all of them. Each of k sets takes every k-th row, so that the
    order of a file makes no difference between sets.
    """
    count = max(1, min(num_sets, len(rows) // num_samples))
    return [rows[start::count][:num_samples] for start in range(count)]
