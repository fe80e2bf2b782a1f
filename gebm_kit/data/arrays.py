"""Your own arrays: npz, npy, safetensors or csv."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, get_args

import torch
from torch import Tensor

from gebm_kit.core.components import Injected, Range, check_arguments
from gebm_kit.core.errors import DataError, UsageError
from gebm_kit.core.interfaces import SplitName
from gebm_kit.core.pixels import scale_bytes
from gebm_kit.data.array_images import Layout, Pixels, as_numbers, as_rows, blocks, facts
from gebm_kit.data.readings import reading
from gebm_kit.data.tables import load
from gebm_kit.data.tensors import TensorDataset, check_fractions, split_indices


class Arrays(TensorDataset):
    """Rows of an array, split at random into train, valid and test.

    Shapes: (N,) and (N, D) are N points; (N, H, W), (N, C, H, W) and (N, H, W, C) with C of 1 or 3 are N images (C, H, W).
    A shape that can be read in two ways, such as (N, 32, 3), is refused until ``layout`` chooses.

    Numbers: images of unsigned bytes are scaled from 0..255 to [-1, 1]; all other numbers are kept as they are, in single
    precision. Images of other types whose numbers look like grey levels are refused until ``pixels`` chooses.

    The split does not look for repeated rows: remove duplicates first, or equal rows may be in different parts.

    Args:
        path: .npz, .npy, .safetensors or .csv (UTF-8, commas, with or without a header), relative to the directory where
            the command is started.
        key: name of the array in a .npz or .safetensors file; without it the only array, or the one called ``x``.
        labels: class labels: a name in the same archive, a csv column (its number from 1 if there is no header), or
            for .npy the name of another .npy file beside it.
        valid_fraction, test_fraction: shares of the rows; the rest is for training.
        standardise: subtract the mean and divide by the standard deviation of the *training* rows: per column for points,
            per channel for images. A constant column is only centred.
        value_range: [low, high] that every value must lie in (checked); bases then end in a tanh with that range. None:
            unbounded.
        seed: seed of the split.
        layout: how the axes are read: ``points`` makes each row a vector, ``grey`` is (N, H, W), ``channels-first`` is
            (N, C, H, W), ``channels-last`` is (N, H, W, C).
        pixels: what the numbers are: ``byte`` (0..255), ``unit`` (0..1) and ``uint16`` (0..65535) are scaled to [-1, 1],
            ``keep`` keeps them.

    Raises:
        DataError: the file or a value in it can't be used; the message names the row and the column.
        UsageError: parameters that contradict each other.
    """

    def __init__(
        self,
        path: str,
        key: str | None = None,
        labels: str | None = None,
        valid_fraction: Annotated[float, Range(0, 1, low_open=True, high_open=True)] = 0.1,
        test_fraction: Annotated[float, Range(0, 1, low_open=True, high_open=True)] = 0.2,
        standardise: bool = False,
        value_range: list[float] | None = None,
        seed: int = 0,
        layout: Layout = "auto",
        pixels: Pixels = "auto",
        *,
        directory: Annotated[Path, Injected] = Path(),
    ) -> None:
        check_arguments(self, valid_fraction=valid_fraction, test_fraction=test_fraction)
        check_fractions(valid_fraction, test_fraction)
        for name, value, allowed in (("layout", layout, get_args(Layout)), ("pixels", pixels, get_args(Pixels))):
            if value not in allowed:
                raise UsageError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        interval = _interval(value_range, standardise)
        file = directory / Path(path).expanduser()
        loaded = load(file, key, labels)
        self._layout, self._pixels, self._file = layout, pixels, file
        columns, given_labels = loaded.columns, loaded.labels
        rows = as_rows(loaded.rows, layout, file)
        del loaded  # the rows as they were, which may be as large as those of another type
        self._before = f"{_type(rows)} in {_span(rows)}"
        decided = pixels == "auto" and (interval is not None or standardise) and rows.dtype != torch.uint8
        rows = as_numbers(rows, "keep" if decided else pixels, file)
        if rows.dtype == torch.uint8 or pixels not in ("auto", "keep"):
            if interval not in (None, (-1.0, 1.0)):
                raise UsageError(f"{file} holds grey levels, which are scaled to [-1, 1]; leave value_range out")
            interval = None if standardise else (-1.0, 1.0)
            rows = scale_bytes(rows) if standardise and rows.dtype == torch.uint8 else rows
        else:
            rows = _checked(rows.to(torch.float32), interval, columns, file)
        index = split_indices(len(rows), valid_fraction, test_fraction, seed)
        parts: dict[SplitName, Tensor] = {part: rows[where] for part, where in index.items()}
        if standardise:
            parts = _standardised(parts)
        split_labels: dict[SplitName, Tensor] | None = None
        if given_labels is not None:
            classes = _class_indices(given_labels, len(rows), file)
            split_labels = {part: classes[where] for part, where in index.items()}
        self._fill(parts, value_range=interval, labels=split_labels)
        self._after = "standardised, " * standardise + f"float32 in {_span(*parts.values())}"

    def describe_reading(self) -> str:
        """Return one line about what was read."""
        images = "" if len(self.data_shape) == 1 else f"pixels: {self._pixels}, layout: {self._layout}"
        return reading(self, str(self._file), self._before, after=self._after, notes=[images])

    def as_read(self, rows: Tensor, source: Path) -> Tensor:
        """Return rows of another file as these were read, but not standardised.

        Raises:
            DataError, UsageError: as in the constructor.
        """
        found = as_numbers(as_rows(rows, self._layout, source), self._pixels, source)
        return scale_bytes(found) if found.dtype == torch.uint8 else found


def image_rows(rows: Tensor, file: Path, dataset: object = None) -> Tensor:
    """Return rows of a file as ``dataset`` reads its own if that is `Arrays`, otherwise as `Arrays` does by default.

    Raises:
        DataError: the rows are neither points nor images, or can be read in two ways.
    """
    if isinstance(dataset, Arrays):
        return dataset.as_read(rows, file)
    found = as_numbers(as_rows(rows, "auto", file), "auto", file)
    return scale_bytes(found) if found.dtype == torch.uint8 else found


def _type(rows: Tensor) -> str:
    return str(rows.dtype).removeprefix("torch.")


def _span(*parts: Tensor) -> str:
    """Write the range of all numbers."""
    spans = [facts(part) for part in parts if part.numel()]
    low, high = min((span[0] for span in spans), default=math.nan), max((span[1] for span in spans), default=math.nan)
    if parts[0].dtype == torch.uint8 and len(parts) > 1:  # rows of a dataset, which are scaled when read
        low, high = low / 127.5 - 1, high / 127.5 - 1
    return f"[{low:g}, {high:g}]"


def _interval(value_range: list[float] | None, standardise: bool) -> tuple[float, float] | None:
    if value_range is None:
        return None
    if standardise:
        raise UsageError("standardised data has no fixed range: give either standardise or value_range, not both")
    if len(value_range) != 2 or not value_range[0] < value_range[1]:
        raise UsageError(f"value_range is [low, high] with low < high, got {value_range}")
    return float(value_range[0]), float(value_range[1])


def _checked(rows: Tensor, interval: tuple[float, float] | None, columns: tuple[str, ...], file: Path) -> Tensor:
    count, place = _first(rows, lambda block: ~torch.isfinite(block))
    problem = "which is not a finite number in single precision"
    if count == 0 and interval is not None:
        low, high = interval
        count, place = _first(rows, lambda block: (block < low) | (block > high))
        problem = f"outside value_range [{low:g}, {high:g}]"
    if count:
        value = float(rows[tuple(place)])
        if rows.ndim == 2:
            where = f"column {columns[place[1]]!r}" if columns else f"column {place[1]}"
        else:
            where = f"pixel {tuple(place[1:])}"
        more = f" ({count} such values)" if count > 1 else ""
        raise DataError(f"{file}: row {place[0]}, {where} (counted from 0) holds {value:g}, {problem}{more}")
    return rows


def _first(rows: Tensor, bad: Callable[[Tensor], Tensor]) -> tuple[int, list[int]]:
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


def _standardised(parts: dict[SplitName, Tensor]) -> dict[SplitName, Tensor]:
    train = parts["train"].double()
    over = (0,) if train.ndim == 2 else (0, 2, 3)
    mean, std = train.mean(over, keepdim=True), train.std(over, keepdim=True, correction=0)
    # A spread as small as rounding (1e-6 of the mean) means a constant column: dividing by it would blow the rounding up to
    # unit variance. 1e-30 serves a column of zeros.
    std = torch.where(std > 1e-6 * mean.abs().clamp_min(1e-30), std, torch.ones_like(std))
    return {name: ((part.double() - mean) / std).float() for name, part in parts.items()}


def _class_indices(labels: Tensor, num_rows: int, file: Path) -> Tensor:
    labels = labels.squeeze(1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.shape != (num_rows,):
        raise DataError(
            f"{file}: labels have shape {tuple(labels.shape)} for {num_rows} rows; one number a row is needed"
        )
    if not torch.equal(labels.double(), labels.double().round()) or bool((labels < 0).any()):
        raise DataError(
            f"{file}: labels must be whole numbers from 0; the smallest is {float(labels.double().min()):g}"
        )
    return labels.to(torch.int64)
