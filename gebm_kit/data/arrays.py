"""Your own arrays: npz, npy, safetensors, csv or parquet."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from gebm_kit.core.components import Injected, Range, check_arguments
from gebm_kit.core.errors import DataError, UsageError
from gebm_kit.core.interfaces import SplitName
from gebm_kit.core.pixels import scale_bytes
from gebm_kit.core.precision import check_single_precision
from gebm_kit.core.progress import warn
from gebm_kit.core.units import TableUnits
from gebm_kit.data.array_images import Layout, Pixels, as_numbers, as_rows, first_place
from gebm_kit.data.columns import Missing, read_table
from gebm_kit.data.tables import TABLE_SUFFIXES, load
from gebm_kit.data.tensors import (
    TensorDataset,
    check_fractions,
    class_indices,
    range_in_words,
    rows_in_words,
    split_indices,
)


class Arrays(TensorDataset):
    """Rows of an array, split at random into train, valid and test.

    Shapes: (N,) and (N, D) are N points; (N, H, W), (N, C, H, W) and (N, H, W, C) with C of 1 or 3 are N images (C, H, W).
    A shape that can be read in two ways, such as (N, 32, 3), is refused until ``layout`` chooses.

    Numbers: images of unsigned bytes are scaled from 0..255 to [-1, 1]; all other numbers are kept as they are, in single
    precision. (``standardise`` computes in double precision first.) Images of other types whose numbers look like grey
    levels are refused until ``pixels`` chooses.

    The split does not look for repeated rows: remove duplicates first, or equal rows may be in different parts.

    Args:
        path: .npz, .npy, .safetensors, .csv (UTF-8; commas, semicolons or tabs; with or without a header) or, with pyarrow,
            .parquet, relative to the directory where the command is started.
        key: name of the array in a .npz or .safetensors file; without it the only array, or the one called ``x``.
        labels: class labels: a name in the same archive, a column of a table (its number from 1 if there is no header), or
            for .npy the name of another .npy file beside it. They are ids: the K different ones become classes 0 to K - 1.
        valid_fraction, test_fraction: shares of the rows; the rest is for training.
        standardise: subtract the mean and divide by the standard deviation of the *training* rows: per column for points,
            per channel for images. A constant column is only centred.
        value_range: [low, high] that every value must lie in (checked); bases then end in a tanh with that range. None:
            unbounded.
        seed: seed of the split.
        columns: the columns of a .csv or .parquet file to keep, by name or by number from 1; None: all but row labels.
        missing: ``refuse`` a missing value, or ``drop`` its row.
        header: whether the first line of a .csv holds names; None: judge by its fields.
        layout: how the axes are read: ``points`` makes each row a vector, ``grey`` is (N, H, W), ``channels-first`` is
            (N, C, H, W), ``channels-last`` is (N, H, W, C).
        pixels: what the numbers are: ``byte`` (0..255), ``unit`` (0..1) and ``uint16`` (0..65535) are scaled to [-1, 1],
            ``keep`` keeps them.

    Attributes:
        units: names and units of the columns, for points alone.

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
        columns: list[str] | None = None,
        missing: Missing = "refuse",
        header: bool | None = None,
        layout: Layout = "auto",
        pixels: Pixels = "auto",
        *,
        directory: Annotated[Path, Injected] = Path(),
    ) -> None:
        check_arguments(self, valid_fraction=valid_fraction, test_fraction=test_fraction, missing=missing)
        check_arguments(self, layout=layout, pixels=pixels)
        check_fractions(valid_fraction, test_fraction)
        interval = _interval(value_range, standardise)
        file = directory / Path(path).expanduser()
        found = _read(file, key, labels, columns, missing, header)
        rows = as_rows(found.rows, layout, file)
        self._before = range_in_words(rows)
        if found.kind:
            self._before = f"{found.kind} {self._before.partition(' ')[2]}"
        self._file, self._notes, self._layout, self._pixels = file, list(found.notes), layout, pixels
        rows, interval = self._numbers(rows, interval, found.columns, standardise)
        found = replace(found, rows=rows[:0])  # the rows as they were may be as large again
        index = split_indices(len(rows), valid_fraction, test_fraction, seed)
        parts: dict[SplitName, Tensor] = {part: rows[where] for part, where in index.items()}
        if standardise:
            parts = self._standardise(parts, found.columns)
        elif rows.ndim == 2:
            self.units = replace(TableUnits.unchanged(rows.shape[1]), columns=_names(found.columns, rows.shape[1]))
        split_labels: dict[SplitName, Tensor] | None = None
        if found.labels is not None:
            classes = _class_indices(found.labels, len(rows), file)
            split_labels = {part: classes[where] for part, where in index.items()}
        self._fill(parts, value_range=interval, labels=split_labels)
        if found.classes:
            self.class_values = found.classes

    def _numbers(
        self, rows: Tensor, interval: tuple[float, float] | None, columns: tuple[str, ...], standardise: bool
    ) -> tuple[Tensor, tuple[float, float] | None]:
        """Return the rows with the numbers that the model sees, before they are standardised, and their range."""
        pixels: Pixels = self._pixels
        if pixels == "auto" and rows.dtype != torch.uint8 and (interval is not None or standardise):
            pixels = "keep"  # either says that the numbers are measurements
        self._kept = pixels == "keep"
        rows = as_numbers(rows, pixels, self._file)
        if rows.ndim == 4:
            self._notes.append(f"pixels: {pixels}, layout: {self._layout}")
        if rows.dtype != torch.uint8 and pixels in ("auto", "keep"):
            return _checked(rows, interval, columns, self._file, standardise), interval
        if interval not in (None, (-1.0, 1.0)):
            raise UsageError(f"{self._file} holds grey levels, which are scaled to [-1, 1]; leave value_range out")
        if standardise:
            return scale_bytes(rows) if rows.dtype == torch.uint8 else rows, None
        return rows, (-1.0, 1.0)

    def _standardise(self, parts: dict[SplitName, Tensor], names: tuple[str, ...]) -> dict[SplitName, Tensor]:
        """Standardise all parts by the training rows, and note the units if the rows are those of a table."""
        mean, std = _scale(parts["train"])
        if mean.ndim == 2:
            self.columns = _names(names, mean.shape[1])
            self.units = TableUnits(self.columns, tuple(mean[0].tolist()), tuple(std[0].tolist()))
            self.log_det = -float(std.log().sum())
        self._notes.append("standardised")
        return {name: ((part.double() - mean) / std).float() for name, part in parts.items()}

    def standardised(self, rows: Tensor) -> Tensor:
        """Return measurements as the model sees them; (N, D) -> (N, D) float32."""
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (self.units.mean, self.units.std))
        return ((rows.double() - mean) / std).float()

    def as_read(self, rows: Tensor, source: Path) -> Tensor:
        """Return rows of another file as these were read, but not standardised.

        Raises:
            DataError, UsageError: as in the constructor.
        """
        pixels: Pixels = "keep" if self._kept and rows.dtype != torch.uint8 else self._pixels
        found = as_numbers(as_rows(rows, self._layout, source), pixels, source)
        return scale_bytes(found) if found.dtype == torch.uint8 else found

    def describe_reading(self) -> str:
        """Describe what was read, see `HasReading`."""
        names = self.units.columns if hasattr(self, "units") else ()
        return rows_in_words(self, f"{self._file.name}, {self._before}", names, self._notes)


@dataclass(frozen=True, slots=True)
class _Found:
    """What a file holds: rows, names of columns, labels as numbers, what they stand for, notes, and the type of values."""

    rows: Tensor
    columns: tuple[str, ...] = ()
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    kind: str = ""


def _read(
    file: Path, key: str | None, labels: str | None, columns: list[str] | None, missing: Missing, header: bool | None
) -> _Found:
    """Read rows and labels of a file of any kind."""
    if file.suffix.lower() in TABLE_SUFFIXES:
        table = read_table(file, key, columns, missing=missing, header=header, labels=labels)
        table.warn(file)
        indices, classes = class_indices(table.labels) if table.labels is not None else (None, ())
        return _Found(table.rows, table.columns, indices, classes, table.notes(), table.kind)
    for name, value in (("columns", columns), ("header", header)):
        if value is not None:
            raise DataError(f"{file}: {name} has a meaning for .csv and .parquet files only; leave it out")
    loaded = load(file, key, labels)
    rows, classes_of_rows = loaded.rows, loaded.labels
    if missing == "refuse" or not rows.is_floating_point() or rows.ndim == 0:
        return _Found(rows, labels=classes_of_rows)
    whole = ~rows.flatten(1).isnan().any(1) if rows.ndim > 1 else ~rows.isnan()
    if classes_of_rows is not None and len(classes_of_rows) == len(rows):
        classes_of_rows = classes_of_rows[whole]
    dropped = len(rows) - int(whole.sum())
    if not dropped:
        return _Found(rows, labels=classes_of_rows)
    warn(f"{file}: {dropped:,} of {len(rows):,} row(s) have a missing value and are dropped")
    return _Found(rows[whole], labels=classes_of_rows, notes=(f"{dropped:,} row(s) with a missing value dropped",))


def _names(names: tuple[str, ...], num: int) -> tuple[str, ...]:
    return names or tuple(str(place + 1) for place in range(num))


def image_rows(rows: Tensor, file: Path, dataset: object = None) -> Tensor:
    """Return rows of a file as ``dataset`` reads its own if that is `Arrays`, otherwise as `Arrays` does by default.

    Raises:
        DataError: the rows are neither points nor images, or can be read in two ways.
    """
    if isinstance(dataset, Arrays):
        return dataset.as_read(rows, file)
    found = as_numbers(as_rows(rows, "auto", file), "auto", file)
    return scale_bytes(found) if found.dtype == torch.uint8 else found


def _interval(value_range: list[float] | None, standardise: bool) -> tuple[float, float] | None:
    if value_range is None:
        return None
    if standardise:
        raise UsageError("standardised data has no fixed range: give either standardise or value_range, not both")
    if len(value_range) != 2 or not value_range[0] < value_range[1]:
        raise UsageError(f"value_range is [low, high] with low < high, got {value_range}")
    return float(value_range[0]), float(value_range[1])


def _checked(
    rows: Tensor, interval: tuple[float, float] | None, columns: tuple[str, ...], file: Path, standardise: bool
) -> Tensor:
    """Return finite rows: in single precision, or as they are if they are to be standardised first.

    Raises:
        DataError: a value is missing, not finite or outside the interval, or different values would become one.
    """
    single = rows if standardise and rows.is_floating_point() else rows.float()
    count, place = first_place(single, lambda block: ~torch.isfinite(block))
    problem = "which is not a finite number" + ("" if standardise else " in single precision")
    if count == 0 and interval is not None:
        low, high = interval
        count, place = first_place(single, lambda block: (block < low) | (block > high))
        problem = f"outside value_range [{low:g}, {high:g}]"
    if count:
        value = float(single[tuple(place)])
        if rows.ndim == 2:
            where = f"column {columns[place[1]]!r}" if columns else f"column {place[1]}"
        else:
            where = f"pixel {tuple(place[1:])}"
        more = f" ({count} such values)" if count > 1 else ""
        raise DataError(
            f"{file}: row {place[0]}, {where} (counted from 0) holds {value:g}, {problem}{more}",
            hint="missing=drop leaves out rows with a missing value." if math.isnan(value) else "",
        )
    if standardise:
        check_whole_numbers(rows, file)
        return rows
    flat = rows if rows.ndim == 2 else rows.flatten().unsqueeze(1)
    hint = "With standardise=true the mean is subtracted first, which keeps them apart."
    check_single_precision(flat, columns if rows.ndim == 2 else ("all pixels",), str(file), hint)
    return single


def check_whole_numbers(rows: Tensor, file: Path) -> None:
    """Raise if double precision, in which means are subtracted, can't hold a whole number.

    Raises:
        DataError: the message shows the number.
    """
    if rows.dtype != torch.int64 or not bool((rows.abs() > 2**53).any()):
        return
    wrong = rows[rows.double().long() != rows]
    if len(wrong):
        raise DataError(
            f"{file} holds {int(wrong[0])}, which has more digits than double precision holds",
            hint="Subtract a constant, or take a larger unit, before you save the array.",
        )


def _scale(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of rows, per column or channel, in double precision; 1 for a constant one."""
    # A spread as small as rounding means a constant column: dividing by it would blow the rounding up to unit variance.
    # 1e-30 serves a column of zeros.
    rounding = 1e-6 if rows.dtype in (torch.float32, torch.float16, torch.bfloat16) else 1e-14
    train = rows.double()
    over = (0,) if train.ndim == 2 else (0, 2, 3)
    mean, std = train.mean(over, keepdim=True), train.std(over, keepdim=True, correction=0)
    high = train.amax(over, keepdim=True)
    mean = torch.where(high == train.amin(over, keepdim=True), high, mean)  # without the rounding of a sum
    return mean, torch.where(std > rounding * mean.abs().clamp_min(1e-30), std, torch.ones_like(std))


def _class_indices(labels: Tensor, num_rows: int, file: Path) -> Tensor:
    labels = labels.squeeze(1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.shape != (num_rows,):
        raise DataError(
            f"{file}: labels have shape {tuple(labels.shape)} for {num_rows} rows; one number a row is needed"
        )
    values = labels.double()
    if not torch.equal(values, values.round()) or bool((labels < 0).any()):
        raise DataError(f"{file}: labels must be whole numbers from 0; the smallest is {float(values.min()):g}")
    if labels.is_floating_point() and bool((values > 2**53).any()):
        raise DataError(
            f"{file}: labels must be whole numbers; {float(values.max()):g} is too large to tell whether it is"
        )
    return labels.to(torch.int64)
