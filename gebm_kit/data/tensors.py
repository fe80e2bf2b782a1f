"""Datasets held in memory: storage, scaling and splitting, shared by file readers and toys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from gebm_kit.core.errors import DataError, UsageError
from gebm_kit.core.interfaces import Dataset, Split, SplitName
from gebm_kit.core.pixels import scale_bytes
from gebm_kit.core.seeds import stream
from gebm_kit.data.class_texts import check_repeated

SPLITS: tuple[SplitName, ...] = ("train", "valid", "test")
"""The parts of every dataset."""

SHOWN_NAMES = 10
"""Most names of classes or columns that a description lists."""


class TensorSplit(Split):
    """Rows of a tensor, (N, *D): float32, or uint8 that is scaled to [-1, 1] when read.

    Raises:
        DataError: there are no rows.
    """

    def __init__(self, rows: Tensor) -> None:
        if len(rows) == 0:
            raise DataError("a part of the dataset has no rows")
        self.rows = rows if rows.dtype == torch.uint8 else rows.to(torch.float32)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Tensor) -> Tensor:
        return self.decode(self.rows[indices])

    def stored(self, indices: Tensor | None) -> Tensor:
        return self.rows if indices is None else self.rows[indices]

    def decode(self, stored: Tensor) -> Tensor:
        return scale_bytes(stored) if stored.dtype == torch.uint8 else stored


class TensorDataset(Dataset):
    """A dataset of three tensors; subclasses call `_fill` in their constructor.

    Only datasets with labels have the attribute ``num_classes``; `HasLabels` recognises them by it.

    Attributes:
        class_names: what the data call the classes, in the order of their indices; only where they have names.
    """

    num_classes: int
    class_names: tuple[str, ...]

    @property
    def class_values(self) -> tuple[str, ...]:
        """``class_names``, or () where there are none."""
        return getattr(self, "class_names", ())

    def _fill(
        self,
        parts: Mapping[SplitName, Tensor],
        *,
        value_range: tuple[float, float] | None = None,
        labels: Mapping[SplitName, Tensor] | None = None,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        """Store the parts, each (N, *D), and their labels, each (N,).

        Without ``num_classes`` the labels are ids: the K different ones, in ascending order, become classes 0 to K - 1,
        which are called by their ids unless ``class_names`` says more.

        Raises:
            DataError: a label is not below ``num_classes``, or labels hardly repeat.
        """
        self._splits = {name: TensorSplit(parts[name]) for name in SPLITS}
        self.data_shape = tuple(parts["train"].shape[1:])
        self.value_range = value_range
        if labels is not None:
            self._labels = {name: labels[name].to(torch.int64) for name in SPLITS}
            values = torch.cat(list(self._labels.values())).unique()
            if num_classes is None:
                check_repeated(len(values), sum(map(len, self._labels.values())))
                self._labels = {name: torch.searchsorted(values, ids) for name, ids in self._labels.items()}
                num_classes = len(values)
                self.class_names = tuple(str(value) for value in values.tolist())
            elif not 0 <= int(values[0]) <= int(values[-1]) < num_classes:
                wrong = int(values[0]) if int(values[0]) < 0 else int(values[-1])
                raise DataError(f"a label is {wrong}; the {num_classes} classes are 0 to {num_classes - 1}")
            self.num_classes = num_classes
            if class_names is not None:
                self.class_names = tuple(class_names)

    def split(self, name: SplitName) -> TensorSplit:
        return self._splits[name]

    def labels(self, name: SplitName) -> Tensor:
        """Return class indices, (N,) int64.

        Raises:
            UsageError: the data have no labels.
        """
        if not hasattr(self, "num_classes"):
            raise UsageError("this dataset has no labels")
        return self._labels[name]

    def skipped(self) -> dict[str, str]:
        """Return nothing: a damaged file of many rows is an error. (A subclass with ``sources`` is `HasSources`.)"""
        return {}


def in_words(names: Sequence[str]) -> str:
    """List names, all of them if they are few."""
    return ", ".join(names[:SHOWN_NAMES]) + (", ..." if len(names) > SHOWN_NAMES else "")


def range_in_words(*parts: Tensor) -> str:
    """Describe type and range of tensors: ``float32 in [-1.2, 3]``."""
    low, high = min(float(part.min()) for part in parts), max(float(part.max()) for part in parts)
    digits = 6 if f"{low:.6g}" != f"{high:.6g}" else 15
    return f"{str(parts[0].dtype).removeprefix('torch.')} in [{low:.{digits}g}, {high:.{digits}g}]"


def split_indices(num: int, valid_fraction: float, test_fraction: float, seed: int) -> dict[SplitName, Tensor]:
    """Return a random partition of ``range(num)`` into train, valid and test, each sorted and with at least one row.

    Raises:
        UsageError: the fractions leave nothing for training.
        DataError: there are fewer than three rows.
    """
    check_fractions(valid_fraction, test_fraction)
    if num < 3:
        raise DataError(f"the data has {num} row{'' if num == 1 else 's'}; train, valid and test need one each")
    num_valid, num_test = part_sizes(num, valid_fraction, test_fraction)
    order = torch.randperm(num, generator=stream(seed, "split"))
    cuts = order.split([num_valid, num_test, num - num_valid - num_test])
    parts = dict(zip(("valid", "test", "train"), (cut.sort().values for cut in cuts), strict=True))
    return cast(dict[SplitName, Tensor], parts)


def check_fractions(valid_fraction: float, test_fraction: float) -> None:
    """Raise UsageError if the fractions leave nothing for training."""
    if valid_fraction + test_fraction >= 1:
        raise UsageError(
            f"valid_fraction + test_fraction must be below 1, got {valid_fraction:g} + {test_fraction:g}: "
            "nothing would be left to train on"
        )


def part_sizes(num: int, valid_fraction: float, test_fraction: float) -> tuple[int, int]:
    """Return the numbers of valid and test rows among ``num >= 3``, rounded so that every part has at least one row."""
    num_valid = min(max(1, round(num * valid_fraction)), num - 2)
    num_test = min(max(1, round(num * test_fraction)), num - 1 - num_valid)
    return num_valid, num_test
