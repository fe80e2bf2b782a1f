"""Columns of a table as numbers, with masks of what is missing and what is not a number."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gebm_kit.data.csv_files import MISSING, as_number, is_exact, problem_of

Column = np.ndarray | list[str]
"""Values of a column: an array of numbers with NaN where one is missing, or text."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """A column as numbers.

    Attributes:
        values: (N,) float64, NaN where there is no finite number.
        missing: where a value is missing, (N,) bool.
        bad: where there is something else than a finite number that double precision holds, (N,) bool.
    """

    values: np.ndarray
    missing: np.ndarray
    bad: np.ndarray


def numbers(column: Column) -> Numbers:
    """Read a column as numbers."""
    found = _plain(column) if isinstance(column, list) else _array(column)
    return found or _fields(column if isinstance(column, list) else [])


def problem(column: Column, place: int) -> str:
    """Say what is wrong with the value at ``place``, which is missing or bad."""
    if isinstance(column, list):
        return problem_of(column[place])
    value = column[place]
    if column.dtype.kind == "f":
        return "is missing" if math.isnan(value) else f"holds {float(value):g}, which is not a finite number"
    return f"holds {value}, which has more digits than double precision holds"


def _plain(column: list[str]) -> Numbers | None:
    """Read fields that are all finite numbers, fast; None: something else is among them."""
    joined = "".join(column)
    if "_" in joined or not joined.isascii():
        return None
    try:
        values = np.array(list(map(float, column)), dtype=np.float64)
    except ValueError:
        return None
    if not bool((np.abs(values) < 2.0**53).all()):  # also false for NaN
        return None
    none = np.zeros(len(values), dtype=bool)
    return Numbers(values, none, none)


def _fields(column: list[str]) -> Numbers:
    values, missing, bad = np.full(len(column), np.nan), np.zeros(len(column), bool), np.zeros(len(column), bool)
    for place, field in enumerate(column):
        value = None if field in MISSING else as_number(field)
        if field in MISSING:
            missing[place] = True
        elif value is None or not math.isfinite(value) or not is_exact(field, value):
            bad[place] = True
        else:
            values[place] = value
    return Numbers(values, missing, bad)


def _array(column: np.ndarray) -> Numbers:
    values = column.astype(np.float64)
    missing = np.isnan(values)
    bad = np.isinf(values)
    if column.dtype.kind in "iu":
        for place in np.flatnonzero(np.abs(values) >= 2.0**53):
            bad[place] = int(column[place]) != int(values[place])
    if bad.any():
        values[bad] = np.nan
    return Numbers(values, missing, bad)
