"""What `Arrays` reads from a file: rows, names of columns, labels; and what it checks before they are used."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gebm_kit.core.errors import DataError
from gebm_kit.core.precision import check_image_precision, check_single_precision
from gebm_kit.core.progress import warn
from gebm_kit.data.array_images import first_place
from gebm_kit.data.columns import Missing, read_table, table_classes
from gebm_kit.data.tables import TABLE_SUFFIXES, load


@dataclass(frozen=True, slots=True)
class Found:
    """What a file holds: rows, names of columns, labels as numbers, what they stand for, notes, and the type of values."""

    rows: Tensor
    columns: tuple[str, ...] = ()
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    kind: str = ""


def read_arrays(
    file: Path, key: str | None, labels: str | None, columns: list[str] | None, missing: Missing, header: bool | None
) -> Found:
    """Read rows and labels of a file of any kind.

    Raises:
        DataError: the file, or a value in it, can't be used.

    Warns:
        GebmKitWarning: rows or columns are left out.
    """
    if file.suffix.lower() in TABLE_SUFFIXES:
        table = read_table(file, key, columns, missing=missing, header=header, labels=labels)
        table.warn(file)
        indices, classes = None, tuple[str, ...]()
        if table.labels is not None:
            indices, classes = table_classes(table, f"{file}, column {labels!r}")
        return Found(table.rows, table.columns, indices, classes, table.notes(), table.kind)
    for name, value in (("columns", columns), ("header", header)):
        if value is not None:
            raise DataError(f"{file}: {name} has a meaning for .csv and .parquet files only; leave it out")
    loaded = load(file, key, labels)
    rows, classes_of_rows = loaded.rows, loaded.labels
    if missing == "refuse" or not rows.is_floating_point() or rows.ndim == 0:
        return Found(rows, labels=classes_of_rows, classes=loaded.classes)
    whole = ~rows.flatten(1).isnan().any(1) if rows.ndim > 1 else ~rows.isnan()
    if classes_of_rows is not None and len(classes_of_rows) == len(rows):
        classes_of_rows = classes_of_rows[whole]
    dropped = len(rows) - int(whole.sum())
    if not dropped:
        return Found(rows, labels=classes_of_rows, classes=loaded.classes)
    warn(f"{file}: {dropped:,} of {len(rows):,} row(s) have a missing value and are dropped")
    notes = (f"{dropped:,} row(s) with a missing value dropped",)
    return Found(rows[whole], labels=classes_of_rows, classes=loaded.classes, notes=notes)


def column_names(names: tuple[str, ...], num: int) -> tuple[str, ...]:
    """Return the names of ``num`` columns: those of the file, or the numbers from 1."""
    return names or tuple(str(place + 1) for place in range(num))


def checked(
    rows: Tensor, interval: tuple[float, float] | None, columns: tuple[str, ...], file: Path, standardise: bool
) -> Tensor:
    """Return finite rows: in single precision, or as they are if they are to be standardised first.

    Raises:
        DataError: a value is missing, not finite or outside the interval, or different values would become one.
    """
    single = rows if standardise and rows.is_floating_point() else rows.to(torch.float32)
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
        _check_whole_numbers(rows, file)
        return rows
    hint = "With standardise=true the mean is subtracted first, which keeps them apart."
    if rows.ndim == 2:
        check_single_precision(rows, columns, str(file), hint)
    else:
        check_image_precision(rows, str(file), hint)
    return single


def _check_whole_numbers(rows: Tensor, file: Path) -> None:
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


def scale(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of rows, per column or channel, in double precision; 1 for a constant one."""
    # A spread as small as rounding means a constant column: dividing by it would blow the rounding up to unit variance.
    rounding = 1e-6 if rows.dtype in (torch.float32, torch.float16, torch.bfloat16) else 1e-14
    train = rows.double()
    over = (0,) if train.ndim == 2 else (0, 2, 3)
    mean, std = train.mean(over, keepdim=True), train.std(over, keepdim=True, correction=0)
    if not bool(std.isfinite().all()):
        raise DataError(
            f"the data are too large to be standardised: up to {float(train.abs().max()):g}; take another unit"
        )
    high = train.amax(over, keepdim=True)
    low = train.amin(over, keepdim=True)
    if bool(((high > low) & (std <= torch.finfo(torch.float64).tiny)).any()):
        raise DataError("the data lie too close together to be standardised; take another unit")
    mean = torch.where(high == low, high, mean)  # without the rounding of a sum
    return mean, torch.where(std > rounding * mean.abs(), std, torch.ones_like(std))


def label_ids(labels: Tensor, num_rows: int, file: Path) -> Tensor:
    """Return labels as whole numbers, (N,) int64.

    Raises:
        DataError: there is not one for each row, or one is not a whole number >= 0.
    """
    labels = labels.squeeze(1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.shape != (num_rows,):
        raise DataError(
            f"{file}: labels have shape {tuple(labels.shape)} for {num_rows} rows; one number a row is needed"
        )
    values = labels.double()
    fractional = ((values != values.round()) | values.isinf()).nonzero()  # NaN too
    if len(fractional):
        row = int(fractional[0])
        raise DataError(
            f"{file}: labels must be whole numbers from 0; row {row} (counted from 0) has {float(values[row]):g}"
            + (f" ({len(fractional)} such labels)" if len(fractional) > 1 else ""),
            hint="An array of measurements holds no classes." if bool(values.isfinite().all()) else "",
        )
    if bool((labels < 0).any()):
        raise DataError(f"{file}: labels must be whole numbers from 0; the smallest is {float(values.min()):g}")
    if labels.is_floating_point() and bool((values > 2**53).any()):
        raise DataError(
            f"{file}: labels must be whole numbers; {float(values.max()):g} is too large to tell whether it is"
        )
    return labels.to(torch.int64)
