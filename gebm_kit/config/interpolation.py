"""Plain interpolation in recipes: ``${train.seed}`` stands for the value of that key, and nothing else is resolved.

OmegaConf resolves it. What it is asked to resolve is measured beforehand: a few lines can stand for a tree of any size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

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


def asks_for_a_resolver(text: str) -> bool:
    """Return whether a text asks for a resolver (``${oc.env:HOME}``), or for anything but plain keys."""
    return "${" in text and ("\\${" in text or "${" in _PLAIN.sub("", text))


def interpolated(config: DictConfig, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of ``config`` with every ``${key}`` replaced, by OmegaConf.

    A text that is one interpolation takes the value itself; inside other text the value is written out.

    Args:
        config: the recipe.
        values: the same values, without interpolation resolved.

    Raises:
        InterpolationError: a key is not there, refers to itself, or the result is too large or nested too deep.
    """
    if not any("${" in text for _, text in _strings(values, ())):
        return values
    _Growth(values).measure(values, (), 0, ())
    try:
        resolved = OmegaConf.to_container(config, resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:
        key = parts_of(str(getattr(error, "full_key", None) or ""))
        raise InterpolationError(key, (str(error).splitlines() or [type(error).__name__])[0]) from error
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


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


class _Growth:
    """The size of a recipe after interpolation, found without interpolating, so that OmegaConf is never asked for a tree
    that no memory holds.

    Attributes:
        size: values and characters that interpolation adds, as far as they are counted.
    """

    def __init__(self, root: dict[str, Any]) -> None:
        self.root = root
        self.size = 0

    def measure(self, value: Any, key: Key, depth: int, within: tuple[str, ...]) -> None:
        """Count what ``value`` becomes.

        Args:
            key: where it is written, for messages.
            depth: how deep the result lies in the whole.
            within: names of the interpolations that led here.

        Raises:
            InterpolationError: see `interpolated`.
        """
        if within:
            self._grow(len(value) if isinstance(value, str) else 1, key)
        if depth > MAX_DEPTH:
            raise InterpolationError(key, f"interpolation nests values more than {MAX_DEPTH} deep")
        if isinstance(value, dict | list):
            for name, item in value.items() if isinstance(value, dict) else enumerate(value):
                self.measure(item, key if within else (*key, name), depth + 1, within)
        elif isinstance(value, str) and "${" in value:
            whole = _PLAIN.fullmatch(value) is not None
            for name in _PLAIN.findall(value):
                target, inside = self._target(name, key, within)
                if isinstance(target, dict | list) and not whole:
                    raise InterpolationError(
                        key, f"${{{name}}} is a {type(target).__name__}, which can't be a part of text"
                    )
                self.measure(target, key, depth, inside)

    def _target(self, name: str, key: Key, within: tuple[str, ...]) -> tuple[Any, tuple[str, ...]]:
        """Return the value that ``${name}`` stands for, and the names of the interpolations that led to it."""
        if name in within:
            raise InterpolationError(key, f"${{{name}}} refers to itself")
        if len(within) >= MAX_DEPTH:
            raise InterpolationError(key, f"interpolation refers to interpolation more than {MAX_DEPTH} times")
        self._grow(1, key)
        within, value = (*within, name), self.root
        for part in parts_of(name):
            value, within = self._followed(value, key, within)
            if isinstance(value, dict) and str(part) in value:
                value = value[str(part)]
            elif isinstance(value, list) and isinstance(part, int) and part < len(value):
                value = value[part]
            else:
                raise InterpolationError(key, f"{shown('${' + name + '}')} refers to a key that is not written here")
        return self._followed(value, key, within)

    def _followed(self, value: Any, key: Key, within: tuple[str, ...]) -> tuple[Any, tuple[str, ...]]:
        """Return what ``value`` stands for if it is one interpolation, otherwise ``value``."""
        whole = _PLAIN.fullmatch(value) if isinstance(value, str) else None
        return self._target(whole[1], key, within) if whole else (value, within)

    def _grow(self, size: int, key: Key) -> None:
        self.size += size
        if self.size > MAX_SIZE:
            raise InterpolationError((), "its interpolation grows too large; write the values out")
