"""A dataset, its three splits, and what a dataset may know besides: labels, modes, its own preprocessing.

Shapes: B batch, N rows, ``*D`` data shape.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

SplitName = Literal["train", "valid", "test"]
"""The parts of a dataset: training, validation and held-out data."""


@runtime_checkable
class HasStandardisation(Protocol):
    """A dataset that says how it made ``y``, the data as the model sees them, of measurements ``x`` in a file's columns."""

    columns: tuple[str, ...]
    log_det: float
    """log |det dy/dx|, in nats: ``log p(x) = log p(y) + log_det``."""

    def standardised(self, rows: Tensor) -> Tensor:
        """y of x; (N, D) -> (N, D)."""
        ...


class Split(ABC):
    """One part of a dataset. ``batch`` returns floating-point data in the dataset's value range."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batch(self, indices: Tensor) -> Tensor:
        """Rows ``indices``, (B,) int64 on the CPU -> (B, *D) float32 on the CPU (or wherever the data lives)."""

    def first(self, num: int) -> Tensor:
        """The first ``num`` rows (all when there are fewer), (num, *D)."""
        return self.batch(torch.arange(min(num, len(self))))


@runtime_checkable
class HasStoredRows(Protocol):
    """A split that keeps its rows in another type than it hands out, such as images in bytes.

    Training holds them on the device as they are and decodes each batch there; ``batch(i)`` is ``decode(stored(i))``.
    """

    def stored(self, indices: Tensor | None) -> Tensor:
        """Rows ``indices``, (B,) int64 on the CPU, as they are stored; None: all of them, without a copy if possible."""
        ...

    def decode(self, stored: Tensor) -> Tensor:
        """Stored rows, on any device, as floating-point data in the dataset's value range; (B, *D) -> (B, *D)."""
        ...


class Dataset(ABC):
    """Data with fixed train, validation and test parts that share no row.

    Attributes:
        data_shape: shape of one data point.
        value_range: (low, high) that every value lies in, or None when unbounded. Bases end in tanh for (-1, 1).
    """

    data_shape: tuple[int, ...]
    value_range: tuple[float, float] | None = None

    @abstractmethod
    def split(self, name: SplitName) -> Split:
        """One of the three parts, never empty."""


@runtime_checkable
class HasLabels(Protocol):
    """A dataset with class labels."""

    num_classes: int

    def labels(self, name: SplitName) -> Tensor:
        """Class indices of the split's rows, in its order, (N,) int64."""
        ...


@runtime_checkable
class HasModes(Protocol):
    """A toy with known modes."""

    mode_centres: Tensor  # (M, D)
    mode_std: float
