"""Arguments that a caller in Python passes, checked by type before anything is computed."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from gebm_kit.core.errors import UsageError, nearest


def check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raise UsageError unless ``value`` is None or one of the words ``allowed``."""
    if value is not None and value not in allowed:
        raise UsageError(f"{name} {value!r} is unknown; {nearest(str(value), allowed)}")


def check_path(name: str, value: object) -> None:
    """Raise UsageError unless ``value`` is a path."""
    if not isinstance(value, str | os.PathLike):
        raise UsageError(f"{name} must be a path, got {type(value).__name__}")


def check_callback(name: str, value: object) -> None:
    """Raise UsageError unless ``value`` is a function."""
    if not callable(value):
        raise UsageError(f"{name} must be a function of one report, got {type(value).__name__}")


def check_flag(name: str, value: object) -> None:
    """Raise UsageError unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise UsageError(f"{name} must be True or False, got {value!r}")


def check_number(name: str, value: object) -> None:
    """Raise UsageError unless ``value`` is None or a finite number of at least 0."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (is_number and math.isfinite(value) and value >= 0):  # type: ignore[arg-type, operator]
        raise UsageError(f"{name} must be a finite number >= 0, got {value!r}")


def check_whole(name: str, value: object) -> None:
    """Raise UsageError unless ``value`` is None or a whole number of at least 0."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if value is not None and not (is_whole and value >= 0):  # type: ignore[operator]
        raise UsageError(f"{name} must be a whole number >= 0, got {value!r}")


def check_words(name: str, value: object) -> None:
    """Raise UsageError unless ``value`` is a list of texts."""
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(word, str) for word in value):
        found = next((word for word in value if not isinstance(word, str)), value) if isinstance(value, list) else value
        raise UsageError(
            f"{name} are a list of words, for example ['train.steps=3'], not one text"
            if isinstance(value, str)
            else f"{name} are a list of words, for example ['train.steps=3'], got {found!r}"
        )
