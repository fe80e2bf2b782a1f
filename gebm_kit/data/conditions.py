"""Conditions on rows, such as ``age >= 18`` and ``kind == 'red'``: the parameter ``where`` of tables."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gebm_kit.core.errors import DataError
from gebm_kit.data.csv_files import as_number
from gebm_kit.data.fields import Numbers

_CONDITION = re.compile(r"""(.+?)\s*(==|!=|<=|>=|=|<|>)\s*('[^']*'|"[^"]*"|[^=<>!'"]+)""", re.DOTALL)

_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class Condition:
    """A comparison of a column with a number or a text.

    Attributes:
        column: name of the column, or its number from 1.
        sign: the comparison; ``=`` is ``==``.
        value: a number, or a text if it was in quotes.
    """

    column: str
    sign: str
    value: float | str

    def meets_text(self, column: Sequence[str]) -> np.ndarray:
        """Return which fields meet a condition on text, (N,) bool."""
        return np.array([_COMPARE[self.sign](field, self.value) for field in column], dtype=bool)

    def meets_numbers(self, found: Numbers) -> np.ndarray:
        """Return which values meet a condition on numbers, (N,) bool; only a number does."""
        return np.asarray(_COMPARE[self.sign](found.values, self.value)) & ~np.isnan(found.values)


def parse_condition(text: str, source: str) -> Condition:
    """Parse a condition.

    Raises:
        DataError: it isn't one.
    """
    match = _CONDITION.fullmatch(text.strip())
    if match is not None:
        column, sign, value = match.groups()
        if value[0] in "'\"" and sign in ("=", "==", "!="):
            return Condition(column, sign, value[1:-1].strip())
        number = as_number(value.strip())
        if number is not None:
            return Condition(column, sign, number)
    raise DataError(
        f"{source}: the condition {text!r} in where must read column=number or column='text'",
        hint="Numbers may also be compared with !=, <, <=, > and >=, texts with !=.",
    )
