"""Rows of a user that can't be used, left out where that is asked for; the others keep their numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gebm_kit.core.arguments import check_choice
from gebm_kit.core.errors import DataError
from gebm_kit.core.progress import warn

BadRows = Literal["stop", "skip"]
"""What to do with rows that hold anything else than finite numbers: end with an error, or leave them out."""

MOST_NAMED = 10
"""Most rows that a message names; all of them are in the JSON."""


@dataclass(frozen=True, slots=True)
class RowNumbers:
    """The numbers of scored rows in what the user gave, and the rows that were left out.

    Attributes:
        numbers: row numbers from 1, (N,) int64; None: rows 1 to N.
        skipped: what is wrong with the rows that were left out, by row number; None: none could be.
    """

    numbers: Tensor | None = None
    skipped: Mapping[int, str] | None = None

    def of(self, indices: Sequence[int]) -> list[int]:
        """Return the numbers of some of the scored rows."""
        return [index + 1 if self.numbers is None else int(self.numbers[index]) for index in indices]

    def chosen(self, values: Tensor) -> Tensor:
        """Return the values of the scored rows among those of all rows, (N, ...)."""
        return values if self.numbers is None else values[self.numbers - 1]

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON says of rows that were left out: ``skipped``, if it was asked for."""
        if self.skipped is None:
            return {}
        return {"skipped": [{"row": row, "reason": reason} for row, reason in sorted(self.skipped.items())]}


def usable_rows(
    rows: Tensor,
    bad_rows: BadRows,
    *,
    names: Sequence[str] = (),
    source: str = "the data",
    known: Mapping[int, str] | None = None,
) -> tuple[Tensor, RowNumbers]:
    """Return the rows that can be used, and their numbers: all of them with ``stop``, finite ones with ``skip``.

    Args:
        rows: (N, ...).
        names: names of the columns, () without names.
        source: where the rows come from, for messages.
        known: what a reader found wrong with rows, by row number from 1; they hold NaN.

    Raises:
        UsageError: ``bad_rows`` is something else.
        DataError: with ``skip``, none of the rows can be used.

    Warns:
        GebmKitWarning: rows are left out; the message counts and names them.
    """
    check_choice("bad_rows", bad_rows, ("stop", "skip"))
    if bad_rows == "stop":
        return rows, RowNumbers()
    if rows.ndim == 0 or not rows.numel():
        return rows, RowNumbers(skipped={})
    wrong = ~torch.isfinite(rows.reshape(len(rows), -1))
    bad = wrong.any(1)
    found = bad.nonzero().flatten().tolist()
    if not found:
        return rows, RowNumbers(skipped={})
    skipped = {row + 1: (known or {}).get(row + 1) or _reason(rows, wrong, row, names) for row in found}
    texts = [f"row {row} ({why})" for row, why in skipped.items()]
    if len(found) == len(rows):
        raise DataError(f"{source}: none of its {len(rows):,} rows can be used: {in_words(texts, most=2)}")
    named = in_words(texts)
    warn(f"{source}: {len(found):,} of {len(rows):,} rows can't be used and are left out: {named}")
    return rows[~bad], RowNumbers((~bad).nonzero().flatten() + 1, skipped)


def in_words(parts: Sequence[str], most: int = MOST_NAMED) -> str:
    """List a few of the parts, and count the others."""
    more = len(parts) - most
    return ", ".join(parts[:most]) + (f" and {more:,} more" if more > 0 else "")


def _reason(rows: Tensor, wrong: Tensor, row: int, names: Sequence[str]) -> str:
    column = int(wrong[row].nonzero()[0])
    value = float(rows.reshape(len(rows), -1)[row, column])
    name = repr(names[column]) if column < len(names) else str(column + 1)
    return f"column {name} {'is missing (NaN)' if math.isnan(value) else f'holds {value:g}'}"
