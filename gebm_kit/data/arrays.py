"""Your own arrays: npz, npy, safetensors or csv."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from gebm_kit.core.components import Injected, Range, check_arguments
from gebm_kit.core.errors import DataError, UsageError
from gebm_kit.core.interfaces import SplitName
from gebm_kit.core.paths import user_path
from gebm_kit.core.pixels import scale_bytes
from gebm_kit.data.tables import load
from gebm_kit.data.tensors import TensorDataset, check_fractions, split_indices


class Arrays(TensorDataset):
    """Rows of an array, split at random into train, valid and test.

    Shapes: (N,) and (N, D) are N points; (N, H, W), (N, C, H, W) and (N, H, W, C) with C of 1 or 3 are N images (C, H, W).
    Images of unsigned bytes are scaled from 0..255 to [-1, 1]; all other numbers are kept as they are, in single
    precision. The split does not look for repeated rows: remove duplicates first, or equal rows may be in different parts.

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
        *,
        directory: Annotated[Path, Injected] = Path(),
    ) -> None:
        check_arguments(self, valid_fraction=valid_fraction, test_fraction=test_fraction)
        check_fractions(valid_fraction, test_fraction)
        interval = _interval(value_range, standardise)
        file = directory / user_path(path, error=DataError)
        loaded = load(file, key, labels)
        rows = _shaped(loaded.rows, file)
        if rows.dtype == torch.uint8 and rows.ndim == 4:
            if interval not in (None, (-1.0, 1.0)):
                raise UsageError(f"{file} holds images of bytes, which are scaled to [-1, 1]; leave value_range out")
            interval = None if standardise else (-1.0, 1.0)
            rows = scale_bytes(rows) if standardise else rows
        else:
            rows = _checked(rows.to(torch.float32), interval, loaded.columns, file)
        index = split_indices(len(rows), valid_fraction, test_fraction, seed)
        parts: dict[SplitName, Tensor] = {part: rows[where] for part, where in index.items()}
        if standardise:
            parts = _standardised(parts)
        split_labels: dict[SplitName, Tensor] | None = None
        if loaded.labels is not None:
            classes = _class_indices(loaded.labels, len(rows), file)
            split_labels = {part: classes[where] for part, where in index.items()}
        self._fill(parts, value_range=interval, labels=split_labels)


def image_rows(rows: Tensor, file: Path) -> Tensor:
    """Return rows of a file as `Arrays` would without a value range: images of bytes are scaled to [-1, 1].

    Raises:
        DataError: the rows are neither points nor images.
    """
    shaped = _shaped(rows, file)
    return scale_bytes(shaped) if shaped.dtype == torch.uint8 and shaped.ndim == 4 else shaped


def _interval(value_range: list[float] | None, standardise: bool) -> tuple[float, float] | None:
    if value_range is None:
        return None
    if standardise:
        raise UsageError("standardised data has no fixed range: give either standardise or value_range, not both")
    if len(value_range) != 2 or not value_range[0] < value_range[1]:
        raise UsageError(f"value_range is [low, high] with low < high, got {value_range}")
    return float(value_range[0]), float(value_range[1])


def _shaped(rows: Tensor, file: Path) -> Tensor:
    """Return the rows as (N, D) or (N, C, H, W)."""
    if rows.ndim == 0 or rows.numel() == 0:
        raise DataError(f"{file} holds an empty array of shape {tuple(rows.shape)}")
    if rows.ndim == 1:
        return rows.unsqueeze(1)
    if rows.ndim == 2:
        return rows
    if rows.ndim == 3:
        return rows.unsqueeze(1)
    if rows.ndim == 4 and rows.shape[1] in (1, 3):
        return rows
    if rows.ndim == 4 and rows.shape[3] in (1, 3):
        return rows.permute(0, 3, 1, 2).contiguous()
    raise DataError(
        f"{file} holds an array of shape {tuple(rows.shape)}; allowed: (N,), (N, D), (N, H, W), (N, C, H, W) and "
        "(N, H, W, C) with 1 or 3 channels"
    )


def _checked(rows: Tensor, interval: tuple[float, float] | None, columns: tuple[str, ...], file: Path) -> Tensor:
    bad = ~torch.isfinite(rows)
    problem = "which is not a finite number in single precision"
    if not bad.any() and interval is not None:
        bad = (rows < interval[0]) | (rows > interval[1])
        problem = f"outside value_range [{interval[0]:g}, {interval[1]:g}]"
    if bad.any():
        place = [int(i) for i in torch.nonzero(bad)[0]]
        value = float(rows[tuple(place)])
        if rows.ndim == 2:
            where = f"column {columns[place[1]]!r}" if columns else f"column {place[1]}"
        else:
            where = f"pixel {tuple(place[1:])}"
        count = int(bad.sum())
        more = f" ({count} such values)" if count > 1 else ""
        raise DataError(f"{file}: row {place[0]}, {where} (counted from 0) holds {value:g}, {problem}{more}")
    return rows


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
