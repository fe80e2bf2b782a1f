"""What draws in a directory have in common with draws in memory."""

from __future__ import annotations

import importlib
from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from gebm_kit.core.html import Shown
from gebm_kit.core.mosaic import COLUMNS
from gebm_kit.engine.sampling.diagnostics import Diagnostics
from gebm_kit.engine.sampling.draws import Draws
from gebm_kit.engine.sampling.draws_html import SHOWN_IMAGES, sections_of, summary_of

if TYPE_CHECKING:
    from pandas import DataFrame
    from PIL.Image import Image
    from xarray import DataTree


class StreamedDraws(Shown):
    """Draws that are read from a directory, one shard after another."""

    diagnostics: Diagnostics

    @abstractmethod
    def __iter__(self) -> Iterator[Draws]:
        """Yield one shard after another."""

    @abstractmethod
    def load(self) -> Draws:
        """Read all draws into memory, in the order of `Draws`."""

    def __len__(self) -> int:
        num: int = self.num_samples  # type: ignore[attr-defined]  # a field of one class, a property of the other
        return num

    def to_frame(self) -> DataFrame:
        """Return all draws as a pandas DataFrame, in the order of the shards; see `Draws.to_frame`.

        Of more draws than fit into memory, take one shard at a time: ``for part in draws: part.to_frame()``.

        Raises:
            PluginError: pandas is missing.
            DataError: a shard is missing or damaged.
        """
        parts = [part.to_frame() for part in self]
        pandas: Any = importlib.import_module("pandas")
        return pandas.concat(parts, ignore_index=True)

    def to_arviz(self) -> DataTree:
        """Load all draws, and return ArviZ's InferenceData; see `Draws.to_arviz`."""
        return self.load().to_arviz()

    def grid(self, num: int = 64, columns: int = COLUMNS, **options: Any) -> Image:
        """Return the first draws of the shards as one picture; see `Draws.grid`."""
        return self._first(num).grid(num, columns, **options)

    def _summary(self) -> str:
        shape = next((part.x.shape[1:] for part in self), ())
        files = f" in {self.num_shards:,} files"  # type: ignore[attr-defined]
        return summary_of(type(self).__name__, len(self), shape, self.diagnostics, files)

    def _sections(self) -> Iterator[str]:
        first = self._first(SHOWN_IMAGES)
        return sections_of(first.x, self.diagnostics, first.units, first.value_range, first._classes())

    def _first(self, num: int) -> Draws:
        """Return draws from the first shards, at least ``num`` if there are as many."""
        parts, found = [], 0
        for part in self:
            parts.append(part)
            found += len(part)
            if found >= num:
                break
        fields: dict[str, Any] = {
            name: torch.cat([getattr(part, name) for part in parts]) for name in ("x", "z", "chain")
        }
        labels = None if parts[0].labels is None else torch.cat([p.labels for p in parts if p.labels is not None])
        first = parts[0]
        return Draws(
            **fields,
            diagnostics=self.diagnostics,
            units=first.units,
            labels=labels,
            class_names=first.class_names,
            value_range=first.value_range,
        )
