"""Conversion of a value from a recipe to the type that a key or a component's parameter asks for."""

from __future__ import annotations

import math
import types
import typing
from pathlib import Path
from typing import Any, Literal

from gebm_kit.core.components import Range, describe_type
from gebm_kit.core.errors import nearest, shown

LARGEST = 2**63 - 1
"""Largest integer that torch can hold."""


def conform(value: Any, annotation: Any, interval: Range | None = None) -> Any:
    """Return ``value`` as the type that ``annotation`` asks for.

    Integers may stand for floats, text for paths, and lists for tuples; nothing else is converted.

    Raises:
        ValueError: the value has another type, or is out of range; the message says what is allowed.
    """
    if typing.get_origin(annotation) is typing.Annotated:
        annotation, *marks = typing.get_args(annotation)
        interval = next((m for m in marks if isinstance(m, Range)), interval)
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _conform_union(value, args, interval)
    if origin is Literal:
        if value in args and type(value) in {type(a) for a in args}:
            return value
        word = value if isinstance(value, str) else shown(value)
        raise ValueError(f"{shown(value)} is not allowed; {nearest(word, [str(a) for a in args])}")
    if origin in (list, tuple) or annotation in (list, tuple):
        if not isinstance(value, list | tuple):
            raise ValueError(f"{shown(value)} is not a list; write [a, b]")
        inner = args[0] if args else Any
        items = [conform(item, inner, interval) for item in value]
        return tuple(items) if tuple in (origin, annotation) else items
    return _conform_scalar(value, annotation, interval)


def _conform_union(value: Any, options: tuple[Any, ...], interval: Range | None) -> Any:
    if value is None and type(None) in options:
        return None
    failures = []
    if isinstance(value, int | float):  # what is wrong with a number is said of the number, not of the words beside it
        options = tuple(option for option in options if not _is_of_words(option)) or options
    for option in options:
        if option is type(None):
            continue
        try:
            return conform(value, option, interval)
        except ValueError as error:
            failures.append(str(error))
    words = [word for option in options if _is_of_words(option) for word in typing.get_args(option)]
    if words and isinstance(value, str) and any(_is_number(option) for option in options):
        raise ValueError(f"{shown(value)} is not a number, nor {' or '.join(words)}")
    # with one real option, its own message says more than a list of types
    raise ValueError(failures[0] if len(failures) == 1 else f"{shown(value)} is none of {describe_type_union(options)}")


def _is_of_words(option: Any) -> bool:
    return typing.get_origin(option) is Literal and all(isinstance(word, str) for word in typing.get_args(option))


def _is_number(option: Any) -> bool:
    return option is float or (typing.get_origin(option) is typing.Annotated and typing.get_args(option)[0] is float)


def describe_type_union(options: tuple[Any, ...]) -> str:
    """Describe the types of a union, as in ``int, list of int or null``."""
    names = [describe_type(o) for o in options]
    return " or ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _conform_scalar(value: Any, annotation: Any, interval: Range | None) -> Any:
    if isinstance(value, int) and abs(value) > LARGEST and annotation in (int, float):
        raise ValueError(
            f"{shown(value)} is too large for an integer; the largest is 2**63 - 1, write a number as 1e20"
        )
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if annotation is Path and isinstance(value, str):
        return Path(value)
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
    if annotation not in names:
        if isinstance(annotation, type) and isinstance(value, annotation):
            return value
        raise ValueError(f"{shown(value)} is not a {describe_type(annotation)}")
    if not isinstance(value, annotation) or (annotation is not bool and isinstance(value, bool)):
        whole = annotation is int and isinstance(value, float) and value.is_integer() and abs(value) < LARGEST
        hint = f"; write {int(value)}" if whole else ""
        raise ValueError(f"{shown(value)} is not {names[annotation]}{hint}")
    if annotation is float and not math.isfinite(value):
        raise ValueError(f"{value!r} is not finite")
    if interval is not None and isinstance(value, int | float) and value not in interval:
        raise ValueError(f"{shown(value)} is out of range; allowed: {interval}")
    return value
