"""Random images in the place of published data that are not there yet, for a dry run."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from gebm_kit.config.schema import Recipe
from gebm_kit.core.expected import Expected, IsPublished
from gebm_kit.core.interfaces import Dataset, Split, SplitName
from gebm_kit.core.pixels import scale_bytes
from gebm_kit.core.plugins import installed

KEPT = 1024
"""Images that are drawn; further rows repeat them."""


class StandIn(Dataset):
    """Random bytes in [-1, 1], of the expected shape and number; all three parts are the same."""

    num_classes: int

    def __init__(self, expected: Expected) -> None:
        self.data_shape = expected.shape
        self.value_range = (-1.0, 1.0)
        self._split = _Repeated(expected)
        if expected.num_classes is not None:
            self.num_classes = expected.num_classes

    def split(self, name: SplitName) -> Split:
        return self._split

    def labels(self, name: SplitName) -> Tensor:
        """Class indices in turn, (N,) int64."""
        return torch.arange(len(self._split)) % self.num_classes


class _Repeated(Split):
    def __init__(self, expected: Expected) -> None:
        self._num = expected.train
        generator = torch.Generator().manual_seed(0)
        self._rows = torch.randint(0, 256, (KEPT, *expected.shape), generator=generator, dtype=torch.uint8)

    def __len__(self) -> int:
        return self._num

    def batch(self, indices: Tensor) -> Tensor:
        return self.decode(self.stored(indices))

    def stored(self, indices: Tensor | None) -> Tensor:
        return self._rows[(torch.arange(self._num) if indices is None else indices) % KEPT]

    def decode(self, stored: Tensor) -> Tensor:
        return scale_bytes(stored)


def stand_in(recipe: Recipe) -> StandIn | None:
    """Images like those of the recipe's published data, where ``data.path`` does not exist; None: nothing can stand in."""
    path = recipe.data.parameters.get("path")
    if path is None or (recipe.directory / Path(path).expanduser()).exists():
        return None
    target: object = installed().registry.get("dataset", recipe.data.name).load()
    expected = target.expected(recipe.data.parameters) if isinstance(target, IsPublished) else None
    return None if expected is None else StandIn(expected)
