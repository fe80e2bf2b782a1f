"""Single precision: which columns of numbers it can't tell apart."""

from __future__ import annotations

import torch
from torch import Tensor

from gebm_kit.core.errors import DataError

COARSE = 1e-3
"""Largest distance between neighbouring numbers of single precision, in standard deviations of a column."""


def merged_columns(rows: Tensor) -> list[int]:
    """Return the columns of (N, D) rows that single precision spoils.

    Its numbers are too far apart for the spread of the column, or different whole numbers become one.
    """
    if rows.dtype in (torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.uint8) or len(rows) < 2:
        return []
    rows = rows.double()
    largest, spread = rows.abs().amax(0), rows.std(0, correction=0)
    gap = largest * torch.finfo(torch.float32).eps
    found = (gap > COARSE * spread) & (rows.amax(0) > rows.amin(0))
    for column in ((largest > 2**24) & ~found).nonzero().flatten().tolist():
        values = rows[:, column]
        if bool((values == values.round()).all()):
            before = values.unique()
            found[column] = len(before.float().unique()) < len(before)
    return [int(column) for column in found.nonzero().flatten()]


def check_single_precision(rows: Tensor, names: tuple[str, ...], source: str, hint: str) -> None:
    """Raise if single precision spoils a column of (N, D) rows.

    Args:
        names: names of the columns; without them columns are counted from 1.
        hint: what to do about it.

    Raises:
        DataError: the message names the columns.
    """
    found = merged_columns(rows)
    if found:
        listed = ", ".join(repr(names[column]) if column < len(names) else str(column + 1) for column in found)
        low, high = float(rows[:, found[0]].min()), float(rows[:, found[0]].max())
        raise DataError(
            f"{source}: the values of column {listed} lie too close together for their size ({low:.17g} to {high:.17g}): "
            "single precision can't tell them apart",
            hint=hint,
        )
