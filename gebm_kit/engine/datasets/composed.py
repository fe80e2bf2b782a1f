"""A dataset whose held-out parts come from elsewhere than its training part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gebm_kit.core.class_names import class_names_of
from gebm_kit.core.errors import DataError
from gebm_kit.core.interfaces import Dataset, HasLabels, HasReading, Split, SplitName
from gebm_kit.core.units import HasUnits


@dataclass(frozen=True)
class Joined(Split):
    """The rows of several splits, one after another.

    Attributes:
        splits: these splits.
        labels: the classes of all rows, (N,), or None.
        change: what is done to each batch, or None.
    """

    splits: tuple[Split, ...]
    labels: Tensor | None = None
    change: Callable[[Tensor], Tensor] | None = None

    def __len__(self) -> int:
        return sum(map(len, self.splits))

    def batch(self, indices: Tensor) -> Tensor:
        if len(self.splits) == 1:
            found = self.splits[0].batch(indices)
        else:
            ends = torch.tensor([len(split) for split in self.splits]).cumsum(0)
            which = torch.searchsorted(ends, indices, right=True)
            parts = []
            for number, split in enumerate(self.splits):
                places = (which == number).nonzero().flatten()
                if len(places):
                    parts.append((places, split.batch(indices[places] - (int(ends[number - 1]) if number else 0))))
            if not parts:
                return self.splits[0].batch(indices)
            found = parts[0][1].new_empty((len(indices), *parts[0][1].shape[1:]))
            for places, rows in parts:
                found[places] = rows
        return found if self.change is None else self.change(found)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Joined:
        """Return the same rows, with ``change`` done to each batch."""
        return replace(self, change=change)


def joined(dataset: Dataset, parts: Sequence[SplitName]) -> Joined:
    """Return the rows of some parts of a dataset as one split."""
    labels = torch.cat([dataset.labels(part) for part in parts]) if isinstance(dataset, HasLabels) else None
    return Joined(tuple(dataset.split(part) for part in parts), labels)


class Composed(Dataset):
    """The training part of one dataset with held-out parts from elsewhere.

    Where only one held-out part comes from elsewhere, the other is the dataset's own. The dataset's own rows of a part that
    is replaced join the training part.

    Args:
        main: the dataset.
        held_out: the parts from elsewhere.
        sources: the datasets that these are from.

    Raises:
        DataError: the parts have different classes.
    """

    num_classes: int
    class_names: tuple[str, ...]

    def __init__(
        self, main: Dataset, held_out: Mapping[SplitName, Joined], sources: Mapping[SplitName, Dataset]
    ) -> None:
        self._main, self._sources = main, dict(sources)
        self.data_shape, self.value_range = tuple(main.data_shape), main.value_range
        self._parts: dict[SplitName, Joined] = {"train": joined(main, ("train", *held_out))}
        self._parts |= {part: held_out.get(part) or joined(main, (part,)) for part in ("valid", "test")}
        if isinstance(main, HasLabels):
            self.num_classes = main.num_classes
            for part, source in sources.items():
                if (getattr(source, "num_classes", None), class_names_of(source)) != (
                    main.num_classes,
                    class_names_of(main),
                ):
                    raise DataError(f"data and {part} have different classes")
            if (names := getattr(main, "class_names", None)) is not None:
                self.class_names = tuple(names)
        known: Any = main
        if isinstance(known, HasUnits):
            self.units = known.units
        for name in ("columns", "log_det", "standardised", "measured"):
            if hasattr(known, name):
                setattr(self, name, getattr(known, name))

    def split(self, name: SplitName) -> Split:
        return self._parts[name]

    def labels(self, name: SplitName) -> Tensor:
        """Return class indices, (N,) int64."""
        found = self._parts[name].labels
        assert found is not None
        return found

    def describe_reading(self) -> str:
        """Return one line about what was read, for each dataset that the parts are from."""
        lines = {"train": self._main, **self._sources}
        return "; ".join(
            f"{part}: {dataset.describe_reading()}"
            for part, dataset in lines.items()
            if isinstance(dataset, HasReading)
        )
