"""Parsing a recipe's text and override words into a plain tree of values that remembers where each was written.

The YAML is read by `gebm_kit.config.yaml_values`. OmegaConf sets the overrides and then resolves plain interpolation
(``${train.seed}``); every resolver (``${oc.env:HOME}``) is refused before anything is resolved.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gebm_kit.config.augment import AUGMENT_LISTS
from gebm_kit.config.interpolation import InterpolationError, asks_for_a_resolver, interpolated, parts_of
from gebm_kit.config.schema import COMPONENT_SECTIONS
from gebm_kit.config.yaml_values import Key, YamlError, read_yaml
from gebm_kit.core.errors import RecipeError, shown
from gebm_kit.core.reading import MAX_DEPTH

MAX_BYTES = 1_000_000
"""Largest size of a recipe's text."""


LONGEST_PLACE = 120
"""Length at which an override word is cut in a message, in characters."""


_OVERRIDE_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+|\[[0-9]+\])*", re.ASCII)


NODE_LISTS: dict[tuple[str, ...], str] = {
    ("eval", "metrics"): "metric",
    ("eval", "features"): "features",
    ("train", "penalty"): "penalty",
    ("train", "final", "penalty"): "penalty",
    ("loggers",): "logger",
}
"""Keys that hold a list of component nodes, and the kind of these components."""


NODES: dict[Key, str] = {
    ("train", "final", "loss"): "loss",
    ("train", "final", "energy"): "energy",
}
"""Keys below a section that hold one component node, and the kind of that component."""


@dataclass
class Tree:
    """Raw values of a recipe after overrides and interpolation.

    Attributes:
        values: nested dicts, lists and scalars.
        lines: line of each key in the text that begins on another line than what contains it.
        overridden: the override word that each overridden key was written in.
        problems: problems found while reading.
        refused: keys of values that are among these problems, so that they are not reported a second time.
    """

    name: str
    path: Path | None
    text: str
    values: dict[str, Any]
    lines: dict[Key, int]
    overrides: tuple[str, ...] = ()
    overridden: dict[Key, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    refused: set[Key] = field(default_factory=set)

    @property
    def label(self) -> str:
        """The file's path, or the name of a recipe in memory."""
        return str(self.path or self.name)

    def place(self, key: Key) -> str:
        """Return where ``key`` was written, or else the nearest key that contains it: ``file:line`` or ``override 'word'``.

        The place of the recipe itself, ``()``, has no line.
        """
        for length in range(len(key), 0, -1):
            if key[:length] in self.overridden:
                return _place_of(self.overridden[key[:length]])
        for length in range(len(key), 0, -1):
            if key[:length] in self.lines:
                return f"{self.label}:{self.lines[key[:length]]}"
        return self.label


def parse(text: str, *, name: str, path: Path | None = None, overrides: Sequence[str] = ()) -> Tree:
    """Parse a recipe from text in memory, as `read_tree` does from a file.

    Raises:
        RecipeError: the text is not a YAML mapping. Problems of single values are kept in `Tree.problems`.
    """
    label = str(path) if path else name
    try:
        document = read_yaml(text)
    except YamlError as error:
        where = label if error.line is None else f"{label}:{error.line}"
        raise RecipeError(f"{where}: {error.problem}") from error
    if not isinstance(document.value, dict):
        raise RecipeError(
            f"{label}: a recipe is a mapping of sections (data, base, energy, loss, ...), this is not one"
        )
    first = document.lines.get((), 1)
    lines = {(key,): first for key in document.value} | document.lines
    tree = Tree(name, path, text, document.value, lines, tuple(overrides))
    for line, key, problem in document.problems:
        tree.refused.add(key)
        tree.problems.append(f"{label}:{line}: {dotted(key)}: {problem}")
    _expand_names(tree.values)
    config = OmegaConf.create(_without_refused(tree, tree.values, ()))
    for word in overrides:
        _override(config, tree, word)
    _resolve(config, tree)
    return tree


def dotted(key: Key) -> str:
    """Write the key ``('eval', 'metrics', 0)`` as ``eval.metrics[0]``."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else str(part))
    return text


def _expand_names(values: dict[str, Any]) -> None:
    """Write ``sampler: hmc`` out as ``sampler: {name: hmc}``, likewise in lists (metrics, penalties, ...)."""
    for section in COMPONENT_SECTIONS:
        if isinstance(values.get(section), str) and "${" not in values[section]:
            values[section] = {"name": values[section]}
    for path in (*NODE_LISTS, *NODES, *AUGMENT_LISTS):
        block: Any = values
        for part in path[:-1]:
            block = block.get(part) if isinstance(block, dict) else None
        key = path[-1]
        if not isinstance(block, dict) or key not in block:
            continue
        if isinstance(block[key], str) and "${" not in block[key]:
            block[key] = {"name": block[key]}
        if isinstance(block[key], list):
            block[key] = [{"name": item} if isinstance(item, str) else item for item in block[key]]


def _expanded(value: Any, parts: tuple[str, ...]) -> Any:
    """Return the value of the key ``parts`` with short component names written out."""
    holder: Any = value
    for part in reversed(parts):
        holder = {part: holder}
    _expand_names(holder)
    for part in parts:
        holder = holder[part]
    return holder


def _place_of(word: str) -> str:
    """Name an override word as the place of a problem; a long one is cut, so that the problem fits beside it."""
    return f"override {word!r}" if len(word) <= LONGEST_PLACE else f"override {word[:LONGEST_PLACE]!r}..."


def _override(config: DictConfig, tree: Tree, word: str) -> None:
    """Apply one override word, or report why it can't be."""
    place = _place_of(word)
    name, equals, text = word.partition("=")
    parts = parts_of(name.strip())
    if not equals or not _OVERRIDE_KEY.fullmatch(name.strip()) or not parts:
        tree.problems.append(f"{place}: an override has the form key=value, for example train.steps=500")
        return
    if len(parts) > MAX_DEPTH:
        tree.problems.append(f"{place}: its key is nested more than {MAX_DEPTH} deep")
        return
    try:
        document = read_yaml(text)
    except YamlError as error:
        tree.problems.append(f"{place}: {error.problem.replace('not valid YAML', 'the value is not valid YAML')}")
        return
    value = document.value
    if all(isinstance(part, str) for part in parts):
        value = _expanded(value, tuple(str(part) for part in parts))
    tree.refused -= {key for key in tree.refused if key[: len(parts)] == parts}
    for key in [key for key in tree.overridden if key[: len(parts)] == parts]:
        del tree.overridden[key]
    tree.overridden[parts] = word
    for _, key, problem in document.problems:
        tree.refused.add((*parts, *key))
        tree.problems.append(f"{place}: {dotted((*parts, *key))}: {problem}")
    try:
        _refuse_inside_interpolation(config, parts)
        value = _without_refused(tree, value, parts)
        OmegaConf.update(config, dotted(parts), value, merge=False, force_add=True)
    except (OmegaConfBaseException, AttributeError, TypeError, ValueError, IndexError) as error:
        tree.problems.append(f"{place}: can't be set: {(str(error).splitlines() or [type(error).__name__])[0]}")


def _refuse_inside_interpolation(config: DictConfig, parts: Key) -> None:
    """Raise if a part of the key is interpolation: it would change what that stands for, too.

    Raises:
        ValueError: the message names the part.
    """
    holder: Any = config
    for depth, part in enumerate(parts[:-1]):
        if not OmegaConf.is_config(holder) or part not in holder:
            return
        if OmegaConf.is_interpolation(holder, part):
            raise ValueError(f"{dotted(parts[: depth + 1])} is interpolation, which has no keys of its own")
        holder = holder[part]


def _without_refused(tree: Tree, value: Any, key: Key) -> Any:
    """Return the value of a key for OmegaConf: text that asks for a resolver is reported, and left empty."""
    if isinstance(value, dict):
        return {name: _without_refused(tree, item, (*key, name)) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_refused(tree, item, (*key, index)) for index, item in enumerate(value)]
    if not isinstance(value, str) or not asks_for_a_resolver(value):
        return value
    tree.refused.add(key)
    tree.problems.append(
        f"{tree.place(key)}: {dotted(key)}: {shown(value)} is refused: "
        "recipes allow plain interpolation such as ${train.seed}, but no resolvers"
    )
    return ""


def _resolve(config: DictConfig, tree: Tree) -> None:
    """Resolve plain interpolation into ``tree.values``."""
    raw = OmegaConf.to_container(config, resolve=False)
    assert isinstance(raw, dict)
    tree.values = {str(key): value for key, value in raw.items()}
    if tree.refused:
        return
    try:
        tree.values = interpolated(config, tree.values)
    except InterpolationError as error:
        key = error.key
        tree.refused.add(key)
        tree.problems.append(f"{tree.place(key)}: {dotted(key)}: {error}" if key else f"{tree.label}: {error}")
        return
    _expand_names(tree.values)
