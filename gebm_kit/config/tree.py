"""Parsing a recipe's text and override words into a plain tree of values that remembers where each was written.

YAML is read with PyYAML's safe loader under OmegaConf's rules for numbers. OmegaConf merges overrides and resolves plain
interpolation (``${train.seed}``). Every resolver (``${oc.env:HOME}``) is refused before anything is resolved.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gebm_kit.config.schema import COMPONENT_SECTIONS
from gebm_kit.core.errors import RecipeError

MAX_BYTES = 1_000_000
"""Largest size of a recipe's text, and about the largest size after interpolation."""


_PLAIN_INTERPOLATION = re.compile(r"\$\{([A-Za-z0-9_][A-Za-z0-9_.\[\]-]*)\}")


_OVERRIDE_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+|\[\d+\])*")


Key = tuple[str | int, ...]


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


class _AliasError(yaml.composer.ComposerError):
    """Error for an alias ``*name`` in YAML."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-4 as a float, as OmegaConf does, and refuses aliases.

    A few nested aliases could stand for a tree of any size, or for one that contains itself.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            problem = "aliases are not allowed in recipes; write the value out, or use ${...}"
            raise _AliasError(None, None, problem, self.peek_event().start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"""^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
        |[-+]?\.[0-9_]+(?:[eE][-+]?[0-9]+)?
        |[-+]?\.(?:inf|Inf|INF)
        |\.(?:nan|NaN|NAN))$""",
        re.VERBOSE,
    ),
    list("-+0123456789."),
)


@dataclass
class Tree:
    """Raw values of a recipe after overrides and interpolation.

    Attributes:
        values: nested dicts, lists and scalars.
        places: ``file:line`` or ``override 'word'`` for each key.
        problems: problems found while reading.
        refused: keys of values that are among these problems, so that they are not reported a second time.
    """

    name: str
    path: Path | None
    text: str
    values: dict[str, Any]
    places: dict[Key, str]
    overrides: tuple[str, ...] = ()
    problems: list[str] = field(default_factory=list)
    refused: set[Key] = field(default_factory=set)

    def place(self, key: Key) -> str:
        """Return where ``key`` was written, or else the nearest key that contains it."""
        while key and key not in self.places:
            key = key[:-1]
        return self.places.get(key, str(self.path or self.name))


def parse(text: str, *, name: str, path: Path | None = None, overrides: Sequence[str] = ()) -> Tree:
    """Parse a recipe from text in memory, as `read_tree` does from a file."""
    label = str(path) if path else name
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        values = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{label}:{mark.line + 1}" if mark else label
        detail = getattr(error, "problem", None) or str(error).splitlines()[0]
        what = "" if isinstance(error, _AliasError) else "not valid YAML: "
        raise RecipeError(f"{where}: {what}{detail}") from error
    finally:
        loader.dispose()
    if not isinstance(values, dict):
        raise RecipeError(
            f"{label}: a recipe is a mapping of sections (data, base, energy, loss, ...), this is not one"
        )
    tree = Tree(name, path, text, values, {}, tuple(overrides))
    assert node is not None
    for key, place_node in _walk(node, ()):
        where = f"{label}:{place_node.start_mark.line + 1}"
        if key in tree.places and key:
            tree.problems.append(f"{where}: {dotted(key)}: written twice, first at {tree.places[key]}")
        tree.places[key] = where
    tree.places[()] = label
    _expand_names(tree.values)
    config = OmegaConf.create(_escaped_keys(tree))
    for word in overrides:
        config = _override(config, word, tree)
    _resolve(config, tree)
    return tree


def dotted(key: Key) -> str:
    """Write the key ``('eval', 'metrics', 0)`` as ``eval.metrics[0]``."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else str(part))
    return text


def _parts(name: str) -> Key:
    """Read ``eval.metrics[0].name`` as the key ``('eval', 'metrics', 0, 'name')``."""
    return tuple(int(part) if part.isdigit() else part for part in re.split(r"[.\[\]]+", name) if part)


def _walk(node: yaml.Node, key: Key) -> Iterator[tuple[Key, yaml.Node]]:
    yield key, node
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            inner = list(_walk(value_node, (*key, str(key_node.value))))
            yield inner[0][0], key_node
            yield from inner[1:]
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _walk(item, (*key, index))


def _expand_names(values: dict[str, Any]) -> None:
    """Write ``sampler: hmc`` out as ``sampler: {name: hmc}``, likewise in lists of metrics, penalties and loggers."""
    for section in COMPONENT_SECTIONS:
        if isinstance(values.get(section), str) and "${" not in values[section]:
            values[section] = {"name": values[section]}
    for path in (*NODE_LISTS, *NODES):
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


def _escaped_keys(tree: Tree) -> dict[str, Any]:
    """Return the values without non-text keys, which are reported (OmegaConf would keep numbers as keys)."""

    def clean(value: Any, key: Key) -> Any:
        if isinstance(value, dict):
            kept = {}
            for name, item in value.items():
                if isinstance(name, str) and "${" not in name and "." not in name:
                    kept[name] = clean(item, (*key, name))
                else:
                    tree.problems.append(
                        f"{tree.place(key)}: {dotted(key)}: {name!r} can't be a key; keys are plain words"
                    )
            return kept
        if isinstance(value, list):
            return [clean(item, (*key, index)) for index, item in enumerate(value)]
        if value is None or isinstance(value, str | bool | int | float):
            return value
        tree.problems.append(
            f"{tree.place(key)}: {dotted(key)}: {value!r} is a {type(value).__name__}; put it in quotes"
        )
        return None

    cleaned = clean(tree.values, ())
    assert isinstance(cleaned, dict)
    return cleaned


def _override(config: DictConfig, word: str, tree: Tree) -> DictConfig:
    place = f"override {word!r}"
    name, equals, text = word.partition("=")
    parts = _parts(name.strip())
    if not equals or not _OVERRIDE_KEY.fullmatch(name.strip()):
        tree.problems.append(f"{place}: an override has the form key=value, for example train.steps=500")
        return config
    try:
        value = yaml.load(text, Loader=_Loader) if text.strip() else None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        what = "" if isinstance(error, _AliasError) else "the value is not valid YAML: "
        tree.problems.append(f"{place}: {what}{getattr(error, 'problem', error)}")
        return config
    if all(isinstance(part, str) for part in parts):
        value = _expanded(value, tuple(str(part) for part in parts))
    try:
        OmegaConf.update(config, ".".join(str(p) for p in parts), value, merge=False, force_add=True)
    except (OmegaConfBaseException, AttributeError, TypeError, ValueError, IndexError) as error:
        tree.problems.append(f"{place}: can't be set: {str(error).splitlines()[0]}")
        return config
    for key in [k for k in tree.places if k[: len(parts)] == parts]:
        del tree.places[key]
    tree.places[parts] = place
    return config


def _resolve(config: DictConfig, tree: Tree) -> None:
    """Refuse resolvers, then resolve plain interpolation into ``tree.values``."""
    raw = OmegaConf.to_container(config, resolve=False)
    for key, text in _strings(raw, ()):
        if "${" in _PLAIN_INTERPOLATION.sub("", text):
            tree.refused.add(key)
            tree.problems.append(
                f"{tree.place(key)}: {dotted(key)}: {text!r} is refused: "
                "recipes allow plain interpolation such as ${train.seed}, but no resolvers"
            )
    assert isinstance(raw, dict)
    tree.values = {str(k): v for k, v in raw.items()}
    if tree.refused:
        return
    if _resolved_size(raw, raw, {}) > MAX_BYTES:
        tree.problems.append(f"{tree.place(())}: its interpolation grows too large; write the values out")
        return
    try:
        resolved = OmegaConf.to_container(config, resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:
        name = str(getattr(error, "full_key", None) or "")
        tree.problems.append(f"{tree.place(_parts(name))}: {name}: {str(error).splitlines()[0]}")
        return
    assert isinstance(resolved, dict)
    tree.values = {str(k): v for k, v in resolved.items()}
    _expand_names(tree.values)


def _resolved_size(value: Any, root: Any, known: dict[str, int]) -> int:
    """Estimate the number of characters of ``value`` after interpolation, without interpolating."""
    if isinstance(value, dict | list):
        items = value.values() if isinstance(value, dict) else value
        return 1 + sum(_resolved_size(item, root, known) for item in items)
    if not isinstance(value, str):
        return 1
    size = len(value)
    for name in _PLAIN_INTERPOLATION.findall(value):
        if name not in known:
            known[name] = 0  # a self-reference ends here; OmegaConf reports it
            known[name] = _resolved_size(_target(root, name), root, known)
        size += known[name]
    return size


def _target(root: Any, name: str) -> Any:
    """Return the value that ``${name}`` refers to, or None if there is no such key."""
    for part in _parts(name):
        try:
            root = root[part]
        except (KeyError, IndexError, TypeError):
            return None
    return root


def _strings(value: Any, key: Key) -> Iterator[tuple[Key, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _strings(item, (*key, str(name)))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _strings(item, (*key, index))
