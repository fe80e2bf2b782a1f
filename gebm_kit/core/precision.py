"""Single precision: which columns of numbers it can't tell apart."""

from __future__ import annotations

import torch
from torch import Tensor

from gebm_kit.core.errors import DataError

COARSE = 1e-3
"""Largest distance between neighbouring numbers of single precision, in standard deviations of a column."""

BLOCK = 2**22
"""Numbers that are looked at at a time, so that the check takes little memory beside the data."""


def merged_columns(rows: Tensor) -> list[int]:
    """Return the columns of (N, D) rows that single precision spoils.

    Its numbers are too far apart for the spread of the column, or different whole numbers become one.
    """
    if rows.dtype in (torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.uint8) or len(rows) < 2:
        return []
    step = max(1, BLOCK // len(rows))
    return [at + found for at in range(0, rows.shape[1], step) for found in _merged(rows[:, at : at + step])]


def _merged(rows: Tensor) -> list[int]:
    single = rows.float().double()
    largest = single.abs().amax(0)
    spread = (rows - rows[:1]).double().std(0, correction=0)  # whole numbers may have more digits than double precision
    numbers = torch.finfo(torch.float32)
    size = largest.clamp_min(numbers.tiny)  # below it, numbers keep their distance as they come near 0
    found = (size * numbers.eps > COARSE * spread) & (rows.amax(0) > rows.amin(0))
    for column in ((largest >= 2**24) & ~found).nonzero().flatten().tolist():
        values = rows[:, column]
        if not values.is_floating_point() or bool((values == values.round()).all()):
            found[column] = len(single[:, column].unique()) < len(values.unique())
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
        _refuse(rows, found, names, source, hint)


def check_image_precision(rows: Tensor, source: str, hint: str) -> None:
    """Raise if single precision spoils a channel of (N, C, H, W) rows, judged by at most `BLOCK` numbers of it.

    Raises:
        DataError: the message names the channel, counted from 1.
    """
    every = max(1, -(-rows.numel() // (rows.shape[1] * BLOCK)))
    for channel in range(rows.shape[1]):
        values = rows[::every, channel].reshape(-1, 1)
        if merged_columns(values):
            _refuse(values, [0], (f"channel {channel + 1}",), source, hint)


def _refuse(rows: Tensor, found: list[int], names: tuple[str, ...], source: str, hint: str) -> None:
    listed = ", ".join(repr(names[column]) if column < len(names) else str(column + 1) for column in found)
    low, high = (
        (f"{value:.17g}" for value in rows[:, found[0]].aminmax())
        if rows.is_floating_point()
        else (str(int(value)) for value in rows[:, found[0]].aminmax())
    )
    raise DataError(
        f"{source}: the values of column {listed} lie too close together for their size ({low} to {high}): "
        "single precision can't tell them apart",
        hint=hint,
    )
