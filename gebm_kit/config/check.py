"""Checks of a recipe, made before anything is built; all problems are reported at once.

The same rules hold for the fixed sections (dataclasses of schema.py) and for component nodes (constructors): every key
exists, every value has the annotated type, and every number lies in its range.
"""

from __future__ import annotations

import importlib.metadata
import re
import shlex
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

from gebm_kit.config.augment import AUGMENT_LISTS, AUGMENTATIONS, parameters_of
from gebm_kit.config.class_keys import CLASS_KEYS, checked_names, checked_weights
from gebm_kit.config.conform import conform
from gebm_kit.config.override_keys import section_of
from gebm_kit.config.schema import (
    COMPONENT_SECTIONS,
    DEFAULT_COMPONENTS,
    REQUIRED_SECTIONS,
    SCHEMA_VERSION,
    SECTIONS,
    TOP_LEVEL,
    ComponentNode,
    Parts,
    Recipe,
)
from gebm_kit.config.supplied import ABSENT, PYTHON_OBJECT, SuppliedNode, not_supplied, supplied_node
from gebm_kit.config.tree import NODE_LISTS, NODES, Tree, dotted
from gebm_kit.config.yaml_values import Key
from gebm_kit.core.components import Parameter, Registry, canonical, parameters
from gebm_kit.core.errors import GebmKitError, PluginError, RecipeError, nearest, shown
from gebm_kit.core.plugins import installed

PRECISIONS = ("float32", "float64", "bfloat16")
_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,4})?")

MAX_PROBLEMS = 50
"""Number of problems that a message lists; the rest is counted."""

LONGEST_PROBLEM = 600
"""Length at which the line of a problem is cut, in characters."""

MAX_NODES = 200
"""Largest number of components in a list of them, and of requirements."""


def check(tree: Tree, *, directory: Path, registry: Registry | None = None, parts: Parts | None = None) -> Recipe:
    """Turn a tree into a Recipe, with every default filled in.

    Args:
        parts: objects for the recipe's nodes of Python objects. One that is missing is an error where it is needed; with
            None, every such node is an error here.

    Raises:
        UsageError: the recipe names Python objects, and there are no ``parts``.
        RecipeError: the recipe has problems. Each line of the message has place, key, value seen, and what is allowed.
        PluginError: every problem is a missing or broken plugin; same message.
    """
    checker = Checker(tree, registry or installed().registry, parts)
    recipe = checker.recipe(directory)
    if parts is None and checker.objects:
        raise not_supplied(checker.objects, tree.label)
    problems = [*tree.problems, *checker.problems]
    if recipe is None or problems or checker.plugin_problems:
        name = tree.label
        number = len(problems) + len(checker.plugin_problems) + checker.uncounted
        count = "a problem" if number == 1 else f"{number:,} problems"
        everything = _listed([*problems, *checker.plugin_problems], number)
        if problems:
            raise RecipeError(f"{name} has {count}:", problems=everything)
        raise PluginError(
            "\n".join([f"{name} has {count}:", *(f"  {p}" for p in everything)]), hint=checker.plugin_hint
        )
    return recipe


def _listed(problems: list[str], number: int) -> list[str]:
    """Return the first problems, each on a line of bounded length, and how many more there are."""
    lines = []
    for problem in problems[:MAX_PROBLEMS]:
        line = problem.replace("\n", "\\n")
        lines.append(line if len(line) <= LONGEST_PROBLEM else f"{line[: LONGEST_PROBLEM - 4]} ...")
    return lines if number <= len(lines) else [*lines, f"and {number - len(lines):,} more"]


def _written_out(value: Any) -> Any:
    """Write a component's short name out as a node."""
    return {"name": value} if isinstance(value, str) else value


OWN_DATA = "data=tabular data.path=FILE reads a table, data=image-folder data.path=FOLDER images"
"""Overrides for data of the reader's own, for messages."""


class Checker:
    """The checks of one recipe, and what they found.

    Attributes:
        problems, plugin_problems: what is wrong, and what is missing from plugins; `uncounted` are those not listed.
        objects: classes of the nodes that stand for Python objects, by key.
        used: the objects for those nodes, by key, of which ``parts`` may hold more.
    """

    def __init__(self, tree: Tree, registry: Registry, parts: Parts | None = None) -> None:
        self.tree = tree
        self.registry = registry
        self.parts = parts
        self.objects: dict[str, str] = {}
        self.used: dict[Key, Any] = {}
        self.problems: list[str] = []
        self.plugin_problems: list[str] = []
        self.plugin_hint = ""
        self.requirements_met = True
        self.uncounted = 0

    def report(self, key: Key, message: str) -> None:
        if key not in self.tree.refused:
            self.problems.append(f"{self.tree.place(key)}: {dotted(key)}: {message}")

    def report_unknown(self, key: Key, what: str, allowed: Iterable[str]) -> None:
        """Report a key that does not exist; the nearest ones are looked for only where they are shown."""
        if len(self.problems) > MAX_PROBLEMS:
            self.uncounted += 1
        else:
            self.report(key, f"{what}; {nearest(str(key[-1]), allowed)}")

    def short_list(self, key: Key, items: list[Any]) -> list[Any]:
        """Return the items, or the first ones after reporting that there are too many."""
        if len(items) > MAX_NODES:
            self.report(key, f"a list of {len(items):,}; at most {MAX_NODES} are allowed")
        return items[:MAX_NODES]

    def recipe(self, directory: Path) -> Recipe | None:
        values = self.tree.values
        for name in values:
            if name not in TOP_LEVEL:
                self.report_unknown((name,), "unknown section", TOP_LEVEL)
        for name in REQUIRED_SECTIONS:
            if name not in values:
                self.problems.append(f"{self.tree.place(())}: {name}: this section is required")
        if "schema" in values and (values["schema"] != SCHEMA_VERSION or isinstance(values["schema"], bool)):
            self.report(
                ("schema",), f"{shown(values['schema'])} is not known to this version; allowed: {SCHEMA_VERSION}"
            )
        requires = self._requires(values.get("requires"))
        of_classes = self._class_keys(values.get("data"))
        nodes: dict[str, Any] = {
            name: self.node((name,), values.get(name, {"name": DEFAULT_COMPONENTS.get(name)}), kind)
            for name, kind in COMPONENT_SECTIONS.items()
            if name in values or name in DEFAULT_COMPONENTS
        }
        sections: dict[str, Any] = {
            name: self.section((name,), values.get(name), kind) for name, kind in SECTIONS.items()
        }
        loggers = self._loggers(values.get("loggers"))
        device = self._choice("device", "auto", lambda v: bool(_DEVICE.fullmatch(v)), "auto, cpu, cuda, cuda:N")
        precision = self._choice("precision", "float32", lambda v: v in PRECISIONS, ", ".join(PRECISIONS))
        self._cross_check(sections.get("train"), nodes.get("loss"), sections.get("ema"))
        if any(n is None for n in (*nodes.values(), *sections.values())) or len(nodes) < len(COMPONENT_SECTIONS):
            return None
        tree = self.tree
        return Recipe(
            name=tree.name,
            path=tree.path,
            directory=directory,
            text=tree.text,
            overrides=tree.overrides,
            requires=requires,
            loggers=loggers,
            device=device,
            precision=precision,
            parts=self.used,
            **of_classes,
            **nodes,
            **sections,
        )

    def _choice(self, name: str, default: str, allowed: Any, described: str) -> str:
        value = self.tree.values.get(name, default)
        if not isinstance(value, str) or not allowed(value):
            self.report((name,), f"{shown(value)} is not allowed; allowed: {described}")
            return default
        return value

    def _requires(self, value: Any) -> tuple[str, ...]:
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            self.report(("requires",), f"{shown(value)} is not a list of requirements such as [gebm-kit-flows>=0.1]")
            return ()
        for index, text in enumerate(self.short_list(("requires",), value)):
            self._requirement(("requires", index), text)
        self.requirements_met = not self.plugin_problems
        return tuple(value)

    def _requirement(self, key: Key, text: str) -> None:
        """Check one requirement: its form, and that the package is installed in a version that it allows."""
        where = f"{self.tree.place(key)}: {dotted(key)}"
        try:
            wanted = Requirement(text[:LONGEST_PROBLEM])
        except InvalidRequirement as error:
            self.report(key, f"{shown(text)} is not a requirement: {str(error).splitlines()[0]}")
            return
        if wanted.url is not None:
            self.report(key, f"{shown(text)} names an address; write the package's name and versions alone")
            return
        try:
            found = importlib.metadata.version(wanted.name)
            met = wanted.specifier.contains(found, prereleases=True)
        except importlib.metadata.PackageNotFoundError:
            self.plugin_problems.append(f"{where}: the plugin {text!r} is not installed")
            self.plugin_hint = f"Install it with `pip install {shlex.quote(text)}`."
            return
        except Exception as error:  # damaged metadata, or a version of thousands of digits
            self.report(key, f"{shown(text)} can't be compared with what is installed: {str(error)[:200]}")
            return
        if not met:
            self.plugin_problems.append(f"{where}: {text!r} is needed, {found} is installed")
            self.plugin_hint = f"Upgrade it with `pip install {shlex.quote(text)}`."
        elif canonical(wanted.name) in self.registry.missing_notes:
            self.plugin_problems.append(f"{where}: {self.registry.missing_notes[canonical(wanted.name)]}")

    def _class_keys(self, data: Any) -> dict[str, Any]:
        """Check the keys of ``data`` about classes, which belong to no dataset."""
        found: dict[str, Any] = {}
        for name, checked in zip(CLASS_KEYS, (checked_weights, checked_names), strict=True):
            try:
                found[name] = checked(data.get(name)) if isinstance(data, dict) else None
            except ValueError as error:
                self.report(("data", name), str(error))
        return found

    def node(self, key: Key, value: Any, kind: str) -> ComponentNode | None:
        """Check a component node; return None after reporting a problem."""
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            names = [self.registry.short_name(r) for r in self.registry.of_kind(kind)]
            self.report(key, f"needs a component: {{name: NAME}}; names: {', '.join(names)}")
            return None
        if value["name"] == PYTHON_OBJECT:
            self.objects[dotted(key)] = str(value.get("class", "an object"))
            found = supplied_node(key, dotted(key), value, self.parts)
            self.used |= {} if found.part is ABSENT else {key: found.part}
            return found
        try:
            record = self.registry.get(kind, value["name"])
            schema = parameters(record.load())
        except GebmKitError as error:
            place = f"{self.tree.place((*key, 'name'))}: {dotted(key)}: {error}"
            # the name may come from a plugin that the recipe requires and that is not installed
            by_plugin = isinstance(error, PluginError) or not self.requirements_met
            (self.plugin_problems if by_plugin else self.problems).append(place)
            if isinstance(error, PluginError):
                self.plugin_hint = error.hint
            return None
        before = len(self.problems)
        allowed = [p.name for p in schema.values() if not p.injected]
        of_classes = CLASS_KEYS if key == ("data",) else ()
        chosen: dict[str, Any] = {}
        for name, item in value.items():
            if name == "name" or name in of_classes:
                continue
            if name not in allowed:
                others = [*allowed, *of_classes]
                what = f"{kind} {value['name']!r} has no such parameter"
                if key == ("data",) and name == "path":
                    what = f"{what}, it reads no file of yours ({OWN_DATA})"
                self.report_unknown((*key, name), what, others)
                continue
            try:
                chosen[name] = self._parameter((*key, name), item, schema[name])
            except ValueError as error:
                self.report((*key, name), str(error))
        for parameter in schema.values():
            if parameter.required and parameter.name not in value:
                self.report(key, f"{kind} {value['name']!r} needs {parameter.name} ({parameter.type_name})")
            elif parameter.name not in value and not parameter.injected:
                chosen[parameter.name] = parameter.default
        return None if len(self.problems) > before else ComponentNode(value["name"], chosen)

    def _parameter(self, key: Key, value: Any, parameter: Parameter) -> Any:
        if parameter.kind is None:
            return conform(value, parameter.annotation, parameter.range)
        if value is None and parameter.default is None:
            return None
        if not parameter.many:
            return self.node(key, _written_out(value), parameter.kind)
        if not isinstance(value, list):
            raise ValueError(f"{shown(value)} is not a {parameter.type_name}")
        return [
            self.node((*key, i), _written_out(v), parameter.kind) for i, v in enumerate(self.short_list(key, value))
        ]

    def nodes(self, key: Key, value: Any) -> tuple[ComponentNode | None, ...]:
        """Check a component node or a list of them; None stands for a node with a problem."""
        items = self.short_list(key, value if isinstance(value, list) else [value])
        kind = NODE_LISTS[tuple(str(part) for part in key)]
        return tuple(self.node((*key, i), part, kind) for i, part in enumerate(items))

    def _augmentations(self, key: Key, value: Any) -> tuple[ComponentNode, ...]:
        """Check a list of augmentations; one with a problem is left out."""
        found = []
        for index, item in enumerate(self.short_list(key, value if isinstance(value, list) else [value])):
            place = (*key, index) if isinstance(value, list) else key
            name = item.get("name") if isinstance(item, dict) else None
            if not isinstance(name, str):
                self.report(place, f"needs an augmentation: {{name: NAME}}; names: {', '.join(AUGMENTATIONS)}")
            elif name not in AUGMENTATIONS:
                self.report_unknown((*place, name), f"{shown(name)} is not an augmentation", AUGMENTATIONS)
            else:
                given = {k: v for k, v in item.items() if k != "name"}
                section = self.section(place, given, AUGMENTATIONS[name])
                found += [] if section is None else [ComponentNode(name, parameters_of(section))]
        return tuple(found)

    def _loggers(self, value: Any) -> tuple[Any, ...]:
        found = self.nodes(("loggers",), [] if value is None else value)
        names = [node.name for node in found if node is not None]
        for index, name in enumerate(names):
            if name in names[:index] and name != PYTHON_OBJECT:
                self.report(("loggers", index), f"logger {name!r} is listed twice")
        return found

    def section(self, key: Key, value: Any, kind: type) -> Any:
        """Check a fixed section against its dataclass; return None after reporting a problem."""
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            self.report(key, f"{shown(value)} is not a mapping of keys to values")
            return None
        before = len(self.problems)
        hints = typing.get_type_hints(kind, include_extras=True)
        chosen: dict[str, Any] = {}
        for name, item in value.items():
            if name not in hints:
                self.report_unknown((*key, name), "unknown key", hints)
                continue
            chosen[name] = self._field((*key, name), item, hints[name])
        return None if len(self.problems) > before else kind(**chosen)

    def _field(self, key: Key, item: Any, annotation: Any) -> Any:
        if key in NODE_LISTS:
            if item is None:
                return () if key[0] == "eval" else None
            return self.nodes(key, item)
        if key in AUGMENT_LISTS:
            return self._augmentations(key, item) if item is not None else None if "final" in key else ()
        if key in NODES:
            return None if item is None else self.node(key, item, NODES[key])
        if section := section_of(annotation):
            optional = section is not annotation
            return None if item is None and optional else self.section(key, item, section)
        try:
            return conform(item, annotation)
        except ValueError as error:
            self.report(key, str(error))
            return None

    def _cross_check(self, train: Any, loss: ComponentNode | None, ema: Any) -> None:
        if train is None:
            return
        if loss is not None and train.part != "base" and not self._trains_an_energy(loss):
            self.report(("train", "part"), f"{train.part!r} does not go with loss {loss.name!r}; allowed: base")
        last = train.final.loss
        if last is not None and not self._trains_an_energy(last):
            self.report(
                ("train", "final", "loss"), f"{last.name!r} has no loss for the energy; this phase trains nothing else"
            )
        if train.keep_best.metric is not None and not train.eval_every:
            self.report(
                ("train", "keep_best", "metric"),
                "needs evaluations during training: set train.eval_every to a number > 0",
            )
        if train.base_update != "pathwise":
            if train.main_part != "both":
                self.report(
                    ("train", "base_update"), f"has no meaning with train.part={train.part}: both parts must learn"
                )
            if ema is not None and not ema.decay:
                self.report(("train", "base_update"), "needs an average of the base: set ema.decay to a number above 0")
        for name, negatives in (("negatives", train.negatives), ("final", train.final.negatives)):
            if negatives is not None and negatives.share and train.part == "base":
                key = ("train", "negatives") if name == "negatives" else ("train", "final", "negatives")
                self.report((*key, "share"), "has no meaning with train.part=base, which trains no energy; allowed: 0")
        if train.final.steps and train.part == "base":
            self.report(("train", "final", "steps"), "has no meaning with train.part=base; allowed: 0")

    def _trains_an_energy(self, loss: ComponentNode) -> bool:
        cls: Any = loss.part if isinstance(loss, SuppliedNode) else self.registry.get("loss", loss.name).load()
        return "energy" in getattr(cls, "parts", ("energy",))
