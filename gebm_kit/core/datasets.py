"""The interface of a dataset: its three splits, and what it may also provide, such as labels, modes or its
preprocessing.

Shapes: B batch, N rows, ``*D`` data shape.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from gebm_kit.core.html import Shown, heading, picture, table
from gebm_kit.core.mosaic import image_of, png_of

SplitName = Literal["train", "valid", "test"]
"""The parts of a dataset: training, validation and held-out data."""


@runtime_checkable
class HasStandardisation(Protocol):
    """A dataset that states how it turned measurements ``x`` in a file's columns into ``y``,
    the data that the model sees."""

    columns: tuple[str, ...]  # names of the D columns
    log_det: float
    """log |det dy/dx|, in nats: ``log p(x) = log p(y) + log_det``."""

    def standardised(self, rows: Tensor) -> Tensor:
        """Turn measurements x into y; (N, D) -> (N, D)."""
        ...


class Split(ABC):
    """One part of a dataset. ``batch`` returns floating-point data in the dataset's value range."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batch(self, indices: Tensor) -> Tensor:
        """Return rows ``indices``, (B,) int64 on the CPU -> (B, *D) float32 on the CPU (or wherever the data lives)."""

    def first(self, num: int) -> Tensor:
        """Return the first ``num`` rows (all when there are fewer), (num, *D)."""
        return self.batch(torch.arange(min(num, len(self))))


@runtime_checkable
class HasStoredRows(Protocol):
    """A split that stores its rows in another type than it returns, such as images in bytes.

    Training keeps the stored rows on the device and decodes each batch there; ``batch(i)`` is ``decode(stored(i))``.
    """

    def stored(self, indices: Tensor | None) -> Tensor:
        """Return rows ``indices``, (B,) int64 on the CPU, as stored; None: all rows, without a copy if possible."""
        ...

    def decode(self, stored: Tensor) -> Tensor:
        """Turn stored rows, on any device, into floating-point data in the dataset's value range; (B,
        *D) -> (B, *D)."""
        ...


@runtime_checkable
class HasReading(Protocol):
    """A dataset that says what it read. It never prints: whoever opens a dataset passes the line on, see `note`."""

    def describe_reading(self) -> str:
        """Describe in one line what was read.

        The line names the source, rows and shape, type and range in the file and as the model sees them, labels, and
        whatever was left out or treated in a way that someone might not expect:
        ``table.csv: 300 rows of 2 columns (height, weight), float64 in [41.2, 190], standardised to [-3.1, 2.9]; no
        labels; 4 rows with missing values dropped``.
        """
        ...


SHOWN_IMAGES = 32
"""Images that a notebook shows."""


class Dataset(Shown, ABC):
    """Data with fixed training, validation and test parts that share no row.

    A dataset of the rows of a table may also say what its columns are called, and how the data that a model sees become
    measurements again: ``columns`` and ``measured(rows)``, see `gebm_kit.core.units.HasMeasured`. Draws are then written
    to .csv and .parquet files in measured units.

    Attributes:
        data_shape: shape of one data point.
        value_range: (low, high) that every value lies in, or None when unbounded. Bases end in tanh for (-1, 1).
        how_to_label: what someone does who needs labels and has none, for messages.
    """

    how_to_label: ClassVar[str] = "Use a dataset with labels, such as digits, idx or cifar10."
    data_shape: tuple[int, ...]
    value_range: tuple[float, float] | None = None

    @abstractmethod
    def split(self, name: SplitName) -> Split:
        """Return one of the three parts, which is never empty."""

    def _summary(self) -> str:
        """Say in one line what the data are."""
        try:
            parts = ", ".join(f"{name} {len(self.split(name)):,}" for name in ("train", "valid", "test"))
            shape = "x".join(map(str, self.data_shape))
        except Exception:  # what is shown at a prompt must not fail, whatever a plugin's dataset does
            return object.__repr__(self)
        span = "" if self.value_range is None else " in [{:g}, {:g}]".format(*self.value_range)
        labels = f", {self.num_classes:,} classes" if isinstance(self, HasLabels) and self.num_classes else ""
        return f"{type(self).__name__}({parts} of shape {shape}{span}{labels})"

    def _sections(self) -> Iterator[str]:
        """Yield what was read, the names of columns and classes, and the first images."""
        if isinstance(self, HasReading):
            yield heading(self.describe_reading())
        units = getattr(self, "units", None)
        if units is not None and hasattr(units, "mean"):
            columns = zip(units.columns, units.mean, units.std, strict=True)
            yield table(("column", "subtracted", "divided by"), [list(column) for column in columns])
        if isinstance(self, HasClassNames) and self.class_names:
            yield table(("class", "name"), list(enumerate(self.class_names)))
        if len(self.data_shape) == 3:
            yield picture(
                png_of(image_of(self.split("train").first(SHOWN_IMAGES), self.value_range)), "training images"
            )


@runtime_checkable
class HasLabels(Protocol):
    """A dataset with class labels."""

    num_classes: int  # K; labels are 0 to K - 1

    def labels(self, name: SplitName) -> Tensor:
        """Return the class indices of the split's rows, in its order, (N,) int64."""
        ...


@runtime_checkable
class HasClassNames(Protocol):
    """A dataset whose classes have names, (K,) different texts in the order of their indices."""

    class_names: tuple[str, ...]  # K texts


@runtime_checkable
class HasModes(Protocol):
    """A toy with known modes."""

    mode_centres: Tensor  # centres of the M modes, (M, D)
    mode_std: float  # standard deviation of every mode
