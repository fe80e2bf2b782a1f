"""What values from files of a run may be: counts, numbers, names. JSON and YAML allow much more."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

MAX_COUNT = 2**62
"""Upper limit of counts and steps."""


def is_count(value: Any) -> TypeGuard[int]:
    """Return whether a value is a whole number that can count steps."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_COUNT


def is_number(value: Any) -> bool:
    """Return whether a value is a number that a float can hold, or NaN or an infinity."""
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**1000)


def is_duration(value: Any) -> bool:
    """Return whether a value is a number of seconds."""
    return is_number(value) and math.isfinite(value) and 0 <= value < 1e12


def is_name(value: Any) -> bool:
    """Return whether a value can name a recipe: printable, and the name of a file in no other folder."""
    return (
        isinstance(value, str)
        and value.isprintable()
        and len(value) < 256
        and "/" not in value
        and value not in (".", "..")
    )


def is_plain(value: Any) -> bool:
    """Return whether YAML holds what JSON could: no dates, no bytes, no sets, no keys other than text."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(is_plain(item) for item in value)
    return value is None or isinstance(value, str | bool) or is_number(value)


def is_best(value: Any) -> bool:
    """Return whether a value is None, or holds ``metric``, ``value`` and ``step`` of the best evaluation."""
    return value is None or (
        isinstance(value, Mapping)
        and value.keys() == {"metric", "value", "step"}
        and isinstance(value["metric"], str)
        and is_number(value["value"])
        and is_count(value["step"])
    )


def is_optional_number(value: Any) -> bool:
    """Return whether a value is a number, or None, as which JSON holds NaN."""
    return value is None or is_number(value)
