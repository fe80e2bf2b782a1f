"""Plain interpolation in recipes: ``${train.seed}`` stands for the value of that key, and nothing else is resolved."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from gebm_kit.config.yaml_values import Key
from gebm_kit.core.errors import shown
from gebm_kit.core.reading import MAX_DEPTH

MAX_SIZE = 1_000_000
"""Largest number of values and characters that interpolation may add."""

_PLAIN = re.compile(r"\$\{([A-Za-z0-9_][A-Za-z0-9_.\[\]-]*)\}")


class InterpolationError(ValueError):
    """Interpolation that can't be resolved.

    Attributes:
        key: the key whose value was being resolved.
    """

    def __init__(self, key: Key, problem: str) -> None:
        super().__init__(problem)
        self.key = key


def parts_of(name: str) -> Key:
    """Read ``eval.metrics[0].name`` as the key ``('eval', 'metrics', 0, 'name')``."""
    parts = [part for part in re.split(r"[.\[\]]+", name) if part]
    return tuple(int(part) if re.fullmatch("[0-9]{1,9}", part) else part for part in parts)


def refused_strings(values: Any) -> Iterator[tuple[Key, str]]:
    """Yield key and text of every value that asks for a resolver (``${oc.env:HOME}``) or for anything but plain keys."""
    for key, text in _strings(values, ()):
        if "${" in text and ("\\${" in text or "${" in _PLAIN.sub("", text)):
            yield key, text


def interpolated(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with every ``${key}`` replaced.

    A text that is one interpolation takes the value itself; inside other text the value is written out.

    Raises:
        InterpolationError: a key is not there, refers to itself, or the result is too large or nested too deep.
    """
    if not any("${" in text for _, text in _strings(values, ())):
        return values
    resolved: dict[str, Any] = _Resolver(values).resolved(values, (), 0, ())
    return resolved


def _strings(value: Any, key: Key) -> Iterator[tuple[Key, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _strings(item, (*key, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            if isinstance(item, str | dict | list):
                yield from _strings(item, (*key, index))


class _Resolver:
    """Resolver of one tree.

    Attributes:
        size: values and characters that interpolation has added so far.
    """

    def __init__(self, root: dict[str, Any]) -> None:
        self.root = root
        self.size = 0

    def resolved(self, value: Any, key: Key, depth: int, within: tuple[str, ...]) -> Any:
        """Return ``value`` resolved.

        Args:
            key: where it is written, for messages.
            depth: how deep the result lies in what is returned at the end.
            within: names of the interpolations that led here.
        """
        if within:
            self.grow(1, key)
        if depth > MAX_DEPTH:
            raise InterpolationError(key, f"interpolation nests values more than {MAX_DEPTH} deep")
        if isinstance(value, dict):
            return {k: self.resolved(v, key if within else (*key, k), depth + 1, within) for k, v in value.items()}
        if isinstance(value, list):
            return [self.resolved(v, key if within else (*key, i), depth + 1, within) for i, v in enumerate(value)]
        if not isinstance(value, str) or "${" not in value:
            return value
        whole = _PLAIN.fullmatch(value)
        if whole:
            return self.target(whole[1], key, depth, within)
        if within:
            self.grow(len(value), key)
        return _PLAIN.sub(lambda found: self.text(found[1], key, depth, within), value)

    def text(self, name: str, key: Key, depth: int, within: tuple[str, ...]) -> str:
        value = self.target(name, key, depth, within)
        if isinstance(value, dict | list):
            raise InterpolationError(key, f"${{{name}}} is a {type(value).__name__}, which can't be a part of text")
        text = str(value)
        self.grow(len(text), key)
        return text

    def target(self, name: str, key: Key, depth: int, within: tuple[str, ...]) -> Any:
        """Return the resolved value that ``${name}`` refers to."""
        if name in within:
            raise InterpolationError(key, f"${{{name}}} refers to itself")
        if len(within) >= MAX_DEPTH:
            raise InterpolationError(key, f"interpolation refers to interpolation more than {MAX_DEPTH} times")
        self.grow(1, key)
        within = (*within, name)
        value: Any = self.root
        for part in parts_of(name):
            if isinstance(value, str) and "${" in value:
                value = self.resolved(value, key, depth, within)
            if isinstance(value, dict) and str(part) in value:
                value = value[str(part)]
            elif isinstance(value, list) and isinstance(part, int) and part < len(value):
                value = value[part]
            else:
                raise InterpolationError(key, f"{shown('${' + name + '}')} refers to a key that is not written here")
        if isinstance(value, str):
            self.grow(len(value), key)
        return self.resolved(value, key, depth, within)

    def grow(self, size: int, key: Key) -> None:
        self.size += size
        if self.size > MAX_SIZE:
            raise InterpolationError((), "its interpolation grows too large; write the values out")
