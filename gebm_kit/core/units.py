"""The units of a table: how rows that a model sees become measurements with names again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TableUnits:
    """Names of columns, and the affine map from the data that a model sees to measurements: ``x = mean + std y``.

    Attributes:
        columns: names, or numbers from 1 as text; D of them.
        mean, std: D numbers each; 0 and 1 for data that are not standardised.
    """

    columns: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def measured(self, rows: Tensor) -> Tensor:
        """Turn rows that the model sees into measurements; (N, D) -> (N, D) float64."""
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (self.mean, self.std))
        return rows.double() * std + mean

    def seen(self, rows: Tensor) -> Tensor:
        """Turn measurements into rows that the model sees; (N, D) -> (N, D) float32."""
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (self.mean, self.std))
        return ((rows.double() - mean) / std).float()

    def as_dict(self) -> dict[str, Any]:
        """Return the units as plain JSON."""
        return {"columns": list(self.columns), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> TableUnits:
        """Read back `as_dict`.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        names = tuple(map(str, found["columns"]))
        mean, std = (tuple(float(value) for value in found[key]) for key in ("mean", "std"))
        if not len(names) == len(mean) == len(std):
            raise ValueError("columns, mean and std have different lengths")
        return cls(names, mean, std)

    @classmethod
    def unchanged(cls, num: int) -> TableUnits:
        """Return the units of data without names that are not standardised."""
        return cls(tuple(str(place + 1) for place in range(num)), (0.0,) * num, (1.0,) * num)


@runtime_checkable
class HasUnits(Protocol):
    """A dataset of rows of a table."""

    units: TableUnits  # names of its columns, and the way back to measurements
