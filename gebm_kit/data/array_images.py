"""What the rows of an array are: points or images, with which layout, and what their numbers mean."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from gebm_kit.core.errors import DataError, UsageError

Layout = Literal["auto", "points", "grey", "channels-first", "channels-last"]
"""How the axes of an array are read."""

Pixels = Literal["auto", "keep", "byte", "unit", "uint16"]
"""What the numbers of an array are: kept as they are, or in a range that is scaled to [-1, 1]."""

TOPS: dict[str, int] = {"unit": 1, "byte": 255, "uint16": 65535}
"""White, in the ranges that are scaled; black is 0."""

CHANNELS = (1, 3)
"""Numbers of channels of images: grey and colour."""

GREY_TOP, GREY_SLACK = (100, 272), 16
"""Fractions whose largest is in this interval look like grey levels 0..255, also after a filter that overshoots a little."""

BLOCK = 2**24
"""Numbers that are looked at at a time, so that checks take little memory beside the data."""


def as_rows(rows: Tensor, layout: Layout, source: Path) -> Tensor:
    """Return the rows as points (N, D) or images (N, C, H, W).

    Raises:
        DataError: the shape fits no layout, or two; the message names both and the parameter that chooses.
        UsageError: the shape does not fit the layout that was chosen.
    """
    shape = tuple(rows.shape)
    if rows.ndim == 0 or rows.numel() == 0:
        raise DataError(f"{source} holds an empty array of shape {shape}")
    layout = _only_layout(shape, source) if layout == "auto" else layout
    if layout == "points":
        return rows.reshape(len(rows), -1)
    if layout == "grey" and rows.ndim == 3:
        return rows.unsqueeze(1)
    if layout == "channels-first" and rows.ndim == 4 and shape[1] in CHANNELS:
        return rows
    if layout == "channels-last" and rows.ndim == 4 and shape[3] in CHANNELS:
        return rows.permute(0, 3, 1, 2).contiguous()
    needed = "(N, H, W)" if layout == "grey" else f"(N, {'C, H, W' if layout == 'channels-first' else 'H, W, C'})"
    with_channels = "" if layout == "grey" else " with 1 or 3 channels"
    raise UsageError(f"data.layout is {layout}, which needs {needed}{with_channels}; {source} has shape {shape}")


def _only_layout(shape: tuple[int, ...], source: Path) -> Layout:
    """Return the layout of a shape that fits one only."""
    if len(shape) <= 2:
        return "points"
    if len(shape) == 3:
        height, width = shape[1:]
        if min(height, width) > 4 or (height == width and height > 3):
            return "grey"
        raise _two_readings(
            source,
            f"an array of shape {shape}",
            f"grey images of {height}x{width} pixels (data.layout=grey)",
            f"points of {height * width} numbers each (data.layout=points)",
        )
    first, last = len(shape) == 4 and shape[1] in CHANNELS, len(shape) == 4 and shape[3] in CHANNELS
    if first and last and shape[1:] != (1, 1, 1):
        raise _two_readings(
            source,
            f"an array of shape {shape}",
            f"images of {shape[1]} channel(s) and {shape[2]}x{shape[3]} pixels (data.layout=channels-first)",
            f"images of {shape[1]}x{shape[2]} pixels and {shape[3]} channel(s) (data.layout=channels-last)",
        )
    if first or last:
        return "channels-first" if first else "channels-last"
    raise DataError(
        f"{source} holds an array of shape {shape}; allowed: (N,), (N, D), (N, H, W), (N, C, H, W) and (N, H, W, C) with 1 "
        "or 3 channels",
        hint="Images with a channel of transparency must be laid over a background first." if 4 in shape[1:] else "",
    )


def as_numbers(rows: Tensor, pixels: Pixels, source: Path) -> Tensor:
    """Return images of grey levels as unsigned bytes, or scaled to [-1, 1]; with ``keep``, all rows as they are.

    Raises:
        DataError: a number is outside the range that ``pixels`` names; or, with ``auto``, images hold numbers that can be
            grey levels or measurements. The message names both readings and the parameter that chooses.
    """
    is_bytes = rows.dtype == torch.uint8
    if pixels == "keep":
        return rows.to(torch.float32) if is_bytes else rows
    if pixels == "auto":
        if rows.ndim == 4:
            _refuse_masks(rows, source) if is_bytes else _refuse_grey_levels(rows, source)
        return rows if rows.ndim == 4 or not is_bytes else rows.to(torch.float32)
    top = TOPS[pixels]
    low, high, whole = facts(rows)
    if not (low >= 0 and high <= top):
        raise DataError(
            f"{source} holds numbers from {low:g} to {high:g}; data.pixels={pixels} needs 0 to {top}",
            hint="data.pixels=keep keeps numbers as they are.",
        )
    if pixels == "byte" and whole:
        return rows.to(torch.uint8)
    return rows.to(torch.float32).div_(top / 2).sub_(1)


def _refuse_masks(rows: Tensor, source: Path) -> None:
    if facts(rows)[1] == 1:
        raise _two_readings(
            source,
            "images of unsigned bytes from 0 to 1",
            "grey levels 0..255, which are nearly black (data.pixels=byte)",
            "black and white, scaled to [-1, 1] (data.pixels=unit)",
        )


def _refuse_grey_levels(rows: Tensor, source: Path) -> None:
    low, high, whole = facts(rows)
    if whole:
        doubtful = low >= 0 and 1 < high <= TOPS["uint16"]
    else:
        doubtful = low >= -GREY_SLACK and GREY_TOP[0] <= high <= GREY_TOP[1]
    if doubtful:
        kind = "byte" if high <= GREY_TOP[1] else "uint16"
        raise _two_readings(
            source,
            f"images of {'whole numbers' if whole else 'fractions'} from {low:g} to {high:g}",
            f"grey levels 0..{TOPS[kind]}, scaled to [-1, 1] (data.pixels={kind})",
            "measurements, kept as they are (data.pixels=keep)",
        )


def _two_readings(source: Path, found: str, first: str, second: str) -> DataError:
    return DataError(
        f"{source} holds {found}, which can be read in two ways: as {first}, or as {second}",
        hint="Add the one that is meant to the recipe or the command.",
    )


def facts(rows: Tensor) -> tuple[float, float, bool]:
    """Return the lowest and the highest of the numbers (NaN if one is NaN), and whether all are whole."""
    low, high, whole = math.inf, -math.inf, True
    for block in blocks(rows):
        least, most = (float(value) for value in block.aminmax())
        if math.isnan(least):
            return math.nan, math.nan, False
        low, high = min(low, least), max(high, most)
        whole = whole and (not block.is_floating_point() or bool((block == block.round()).all()))
    return low, high, whole


def blocks(rows: Tensor) -> tuple[Tensor, ...]:
    """Cut rows into pieces of about `BLOCK` numbers."""
    return rows.split(max(1, BLOCK // max(1, rows[0].numel())))


def first_place(rows: Tensor, bad: Callable[[Tensor], Tensor]) -> tuple[int, list[int]]:
    """Return how many numbers are bad, and the place of the first."""
    count, place, start = 0, list[int](), 0
    for block in blocks(rows):
        found = bad(block)
        here = int(found.sum())
        if here and not count:
            place = [int(index) for index in torch.nonzero(found)[0]]
            place[0] += start
        count, start = count + here, start + len(block)
    return count, place
