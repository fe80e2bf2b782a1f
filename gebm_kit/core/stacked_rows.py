"""Rows that a caller in Python gives a dataset in place of a file: the parts one after another.

Shapes: N rows, ``*D`` whatever the caller's rows have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gebm_kit.core.datasets import SplitName

HELD_OUT: tuple[SplitName, ...] = ("valid", "test")
"""The parts after train, in the order in which they are stacked."""


@dataclass(frozen=True, slots=True)
class StackedRows:
    """Rows of one or several parts, in the order train, valid, test.

    Attributes:
        rows: all rows, (N, *D).
        counts: number of rows of each part that was given; a part that is missing is split off from train.
        source: what the rows are, for messages, such as ``data (a DataFrame)``.
        columns: names of the columns of a table; () if they have none.
        labels: the class of each row as its number or name in text; None without classes.
        notes: what was done to the rows before.
    """

    rows: Tensor
    counts: Mapping[SplitName, int]
    source: str
    columns: tuple[str, ...] = ()
    labels: Sequence[str] | None = None
    notes: tuple[str, ...] = field(default=())

    def parts(self, split_off: Mapping[SplitName, Tensor]) -> dict[SplitName, Tensor]:
        """Return the indices of the rows of each part.

        Args:
            split_off: a split of the rows given for train; the parts that were given themselves are left out of it.
        """
        found: dict[SplitName, Tensor] = {}
        start = self.counts["train"]
        for part in HELD_OUT:
            if part in self.counts:
                found[part] = torch.arange(start, start + self.counts[part])
                start += self.counts[part]
            else:
                found[part] = split_off[part]
        taken = [split_off["train"], *(split_off[part] for part in HELD_OUT if part in self.counts)]
        return {"train": torch.cat(taken).sort().values, **found}

    def given_rows(self) -> Tensor:
        """Return the rows from which missing parts are split off."""
        return self.rows[: self.counts["train"]]
