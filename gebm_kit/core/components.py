"""Component records, the markers of a component's parameters, and the registry that maps names to records.

Nothing here imports torch: a record names its class as text, and the class is imported only when it is built or described.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import math
import re
import sys
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

from gebm_kit.core.errors import PluginError, RecipeError, UsageError, nearest
from gebm_kit.core.isolation import UNDONE, first_words, isolated
from gebm_kit.core.progress import warn

KINDS = ("base", "energy", "loss", "penalty", "sampler", "dataset", "features", "metric", "logger")
"""The kinds of component, in the order in which `gebm-kit list` shows them."""

BUILTIN = "gebm-kit"
"""Distribution name under which the components of the kit itself are registered."""

INJECTED = {
    "data_shape": "shape of one data point, from the dataset: tuple[int, ...]",
    "value_range": "(low, high) of the data, or None when it is unbounded, from the dataset",
    "latent_dim": "size Z of the base's latent space: int",
    "num_classes": "number of classes of a labelled dataset, else None",
    "device": "torch.device that the run computes on",
    "directory": "directory that relative paths start from, where the command was started: pathlib.Path",
    "run_directory": "directory of the run, for loggers and for bases and energies read from a file: pathlib.Path or None",
    "start_step": "step that training starts from, or the checkpoint's step when a run is resumed, for loggers: int",
}
"""Values that the kit passes to a constructor that asks for them (see `Injected`), each with its meaning."""


MAX_NAME, MAX_SUMMARY = 100, 1000
"""Longest name and summary of a component, in characters."""

UNPRINTABLE = "[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]"
"""Characters that end a line, control a terminal, or can't be written as UTF-8."""


class Injected:
    """Marker of a constructor parameter that the kit fills in, never a recipe: ``Annotated[int, Injected]``."""


@dataclass(frozen=True, slots=True)
class Range:
    """Allowed interval of a numeric parameter: ``Annotated[float, Range(0, None)]``.

    ``None`` leaves a side open. ``low_open`` / ``high_open`` exclude the end itself.
    """

    low: float | None = None  # smallest value
    high: float | None = None  # largest value
    low_open: bool = False  # whether ``low`` itself is refused
    high_open: bool = False  # whether ``high`` itself is refused

    def __contains__(self, value: float) -> bool:
        if isinstance(value, float) and not math.isfinite(value):  # an integer may be too large for a float
            return False
        above = self.low is None or value > self.low or (value == self.low and not self.low_open)
        below = self.high is None or value < self.high or (value == self.high and not self.high_open)
        return above and below

    def __str__(self) -> str:
        if self.high is None:
            return f"{'>' if self.low_open else '>='} {self.low:g}" if self.low is not None else "any finite number"
        if self.low is None:
            return f"{'<' if self.high_open else '<='} {self.high:g}"
        return f"in {'(' if self.low_open else '['}{self.low:g}, {self.high:g}{')' if self.high_open else ']'}"


@dataclass(frozen=True, slots=True)
class OfKind:
    """Marker of a constructor parameter that is another component: ``Annotated[Base | None, OfKind("base")]``.

    A recipe gives it as a node (a name with parameters); the constructor gets the component built from that node. With
    ``Annotated[list[Energy], OfKind("energy")]`` it is a list of nodes.
    """

    kind: str  # one of `KINDS`


@dataclass(frozen=True, slots=True)
class Component:
    """One registered component.

    Attributes:
        kind: one of `KINDS`.
        name: the short name that recipes use.
        target: ``"package.module:ClassName"``, imported only when built or described.
        summary: one line for ``gebm-kit list``.
    """

    kind: str
    name: str
    target: str
    summary: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"component kind {self.kind!r} is unknown; {nearest(str(self.kind), KINDS)}")
        if not isinstance(self.name, str) or not self.name or any(c in self.name for c in ": \t\n="):
            raise ValueError(f"component name {self.name!r} must be a word without ':', '=' or blanks")
        module, _, attribute = str(self.target).partition(":")
        if not (attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))):
            raise ValueError(f"component target {self.target!r} must read 'package.module:ClassName'")
        if not isinstance(self.summary, str) or not self.summary.strip() or "\n" in self.summary:
            raise ValueError(f"component {self.name!r} needs a summary of one line")
        for word, text, most in (("name", self.name, MAX_NAME), ("summary", self.summary, MAX_SUMMARY)):
            if len(text) > most or re.search(UNPRINTABLE, text):
                what = f"has {len(text)} characters" if len(text) > most else "has control characters"
                raise ValueError(f"the {word} of component {self.name[:MAX_NAME]!r} {what}; at most {most} are allowed")


@dataclass(frozen=True, slots=True)
class Hub:
    """One place on a network that models are passed on through; see `gebm_kit.core.hubs`.

    Attributes:
        scheme: what its addresses begin with: ``hub`` of ``hub://OWNER/NAME``.
        target: ``"package.module:ClassName"`` of a `ModelHub`, imported only when used.
    """

    scheme: str
    target: str

    def __post_init__(self) -> None:
        if not isinstance(self.scheme, str) or re.fullmatch(r"[a-z][a-z0-9+.-]{0,30}", self.scheme) is None:
            raise ValueError(f"hub scheme {self.scheme!r} must be a short word of lower case")
        module, _, attribute = str(self.target).partition(":")
        if not (attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))):
            raise ValueError(f"hub target {self.target!r} must read 'package.module:ClassName'")


@dataclass(frozen=True, slots=True)
class Registered:
    """A component and the distribution that provides it."""

    component: Component
    distribution: str
    version: str

    @property
    def address(self) -> str:
        """``distribution:name``, which is never ambiguous."""
        return f"{self.distribution}:{self.component.name}"

    def load(self) -> type:
        """Import the component's class.

        Raises:
            PluginError: the module can't be imported or has no such class.
        """
        module, _, attribute = self.component.target.partition(":")
        own = self.distribution == BUILTIN or module in sys.modules
        changes: list[str] = []
        try:
            with contextlib.nullcontext(changes) if own else isolated(module) as changes:
                target = getattr(importlib.import_module(module), attribute)
        except Exception as error:
            said = error.message if isinstance(error, PluginError) else f"{type(error).__name__}: {first_words(error)}"
            raise PluginError(
                f"{self.component.kind} {self.address!r} can't be imported from {self.component.target}: {said}",
                hint=f"Reinstall or upgrade {self.distribution}.",
            ) from error
        for change in changes:
            warn(f"plugin {self.distribution} {change} {UNDONE}")
        if not isinstance(target, type):
            raise PluginError(f"{self.component.kind} {self.address!r}: {self.component.target} is not a class")
        return target


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a component, read off its constructor's signature."""

    name: str
    annotation: Any
    default: Any
    range: Range | None
    injected: bool
    kind: str | None = None
    """Kind of the component that the value is; None for any other value."""

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty and not self.injected

    @property
    def many(self) -> bool:
        """Whether the value is a list of components."""
        return self.kind is not None and typing.get_origin(self.annotation) is list

    @property
    def type_name(self) -> str:
        if self.kind is None:
            return describe_type(self.annotation)
        if self.many:
            return f"list of {self.kind} with parameters"
        return f"{self.kind} with its parameters{'' if self.default is inspect.Parameter.empty else ' or null'}"


def canonical(distribution: str) -> str:
    """Return a distribution's name as packaging tools compare it (PEP 503): ``GEBM_Kit.flows`` is ``gebm-kit-flows``."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def describe_type(annotation: Any) -> str:
    """Return the readable name of an annotation: ``float``, ``'adam' or 'sgd'``, ``list of int``, ``int or null``."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return describe_type(args[0])
    if annotation is type(None):
        return "null"
    if origin is Literal:
        return " or ".join(repr(a) for a in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe_type(a) for a in args)
    if origin in (list, tuple) and args:
        return f"list of {describe_type(args[0])}"
    return getattr(annotation, "__name__", str(annotation))


def parameters(target: type) -> dict[str, Parameter]:
    """Return the parameter schema of a component class: its constructor's annotated keyword parameters.

    Raises:
        PluginError: the constructor takes ``*args`` or ``**kwargs``, or a parameter without annotation.
    """
    owner = next(cls for cls in target.__mro__ if "__init__" in vars(cls))
    if owner is object or owner.__module__ == "torch.nn.modules.module":
        return {}  # it defines no constructor; nn.Module's takes *args, which are not parameters
    constructor: Any = vars(owner)["__init__"]
    try:
        hints = typing.get_type_hints(constructor, include_extras=True)
    except Exception as error:
        raise PluginError(f"{target.__name__}: its constructor's annotations can't be read: {error}") from error
    schema = {}
    for name, parameter in list(inspect.signature(constructor).parameters.items())[1:]:
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            stars = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}.get(parameter.kind.name, "positional-only ")
            raise PluginError(
                f"{target.__name__}: a component's constructor takes named parameters only, not {stars}{name}"
            )
        if name not in hints:
            raise PluginError(f"{target.__name__}: constructor parameter {name!r} has no annotation")
        annotation, marks = hints[name], cast(tuple[Any, ...], ())
        if typing.get_origin(annotation) is typing.Annotated:
            annotation, *rest = typing.get_args(annotation)
            marks = tuple(rest)
        injected = any(m is Injected or isinstance(m, Injected) for m in marks)
        if injected and name not in INJECTED:
            raise PluginError(f"{target.__name__}: nothing is injected as {name!r}; {nearest(name, INJECTED)}")
        interval = next((m for m in marks if isinstance(m, Range)), None)
        kind = next((m.kind for m in marks if isinstance(m, OfKind)), None)
        schema[name] = Parameter(name, annotation, parameter.default, interval, injected, kind)
    return schema


def check_arguments(component: object, **values: Any) -> None:
    """Check constructor arguments against the ranges and choices that the constructor's annotations declare.

    Recipes are checked before anything is built. A constructor calls this for components built in Python.

    Raises:
        UsageError: a value is not a finite number, is not whole where a whole number is needed, lies outside its range, or
            is not one of the choices.
    """
    # a subclass may define its own constructor: look for the one that declares these parameters
    constructors = (cls for cls in type(component).__mro__ if "__init__" in vars(cls))
    declaring = next(c for c in constructors if set(values) <= set(inspect.signature(vars(c)["__init__"]).parameters))
    schema = parameters(declaring)
    for name, value in values.items():
        kinds = [kind for kind in typing.get_args(schema[name].annotation) if kind is not type(None)]
        if value is None and type(None) in typing.get_args(schema[name].annotation):
            continue
        choices = typing.get_args(schema[name].annotation)
        if typing.get_origin(schema[name].annotation) is Literal and value not in choices:
            raise UsageError(f"{type(component).__name__}: {name} {value!r} is unknown; {nearest(str(value), choices)}")
        allowed, whole = schema[name].range, schema[name].annotation is int or kinds == [int]
        is_number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if allowed is not None and not (is_number and value in allowed):
            kind = "a whole number" if whole else "a number"
            raise UsageError(f"{type(component).__name__}: {name} must be {kind} {allowed}, got {value!r}")


class Registry:
    """Registry that finds component records by name.

    A short name works as long as only one distribution provides it. A built-in keeps its short name even if a plugin
    provides the same one. ``distribution:name`` always works.
    """

    def __init__(self) -> None:
        self._records: dict[tuple[str, str], list[Registered]] = {}
        #: Why a plugin was not loaded (it failed or is blocked), for messages about unknown names, by the canonical name
        #: of the plugin's distribution.
        self.missing_notes: dict[str, str] = {}
        #: The plugin package that provides (kind, name), for components that are known before it is installed.
        self.packages: dict[tuple[str, str], str] = {}
        #: Hubs that plugins offer, by scheme; the first plugin that offers a scheme keeps it.
        self.hubs: dict[str, Hub] = {}

    def __iter__(self) -> Iterator[Registered]:
        for key in sorted(self._records):
            yield from self._records[key]

    def __len__(self) -> int:
        return sum(len(records) for records in self._records.values())

    def add(self, component: Component, distribution: str, version: str = "") -> None:
        """Register ``component``.

        Raises:
            ValueError: the same distribution registers the same kind and name twice.
        """
        records = self._records.setdefault((component.kind, component.name), [])
        if any(canonical(r.distribution) == canonical(distribution) for r in records):
            raise ValueError(f"{component.kind} {component.name!r} is registered twice by {distribution}")
        records.append(Registered(component, distribution, version))

    def of_kind(self, kind: str) -> list[Registered]:
        """Return every record of ``kind``, sorted by name."""
        return [r for r in self if r.component.kind == kind]

    def short_name(self, record: Registered) -> str:
        """Return the shortest name by which `get` finds ``record``."""
        twins = self._records[record.component.kind, record.component.name]
        shadowed = len(twins) > 1 and record.distribution != BUILTIN
        return record.address if shadowed else record.component.name

    def get(self, kind: str, name: str) -> Registered:
        """Return the record for a short name or a ``distribution:name``.

        Raises:
            RecipeError: no component has this name, or several plugins provide it.
            PluginError: no component has this name, but a plugin that may provide it failed, is blocked or is not installed.
        """
        distribution, _, short = name.rpartition(":")
        records = self._records.get((kind, short), [])
        if distribution:
            records = [r for r in records if canonical(r.distribution) == canonical(distribution)]
        if len(records) == 1:
            return records[0]
        builtin = [r for r in records if r.distribution == BUILTIN]
        if builtin:
            return builtin[0]
        if records:
            raise RecipeError(
                f"{kind} {name!r} is provided by {len(records)} plugins; "
                f"write one of {', '.join(r.address for r in records)}"
            )
        raise self._unknown(kind, name, distribution)

    def _unknown(self, kind: str, name: str, distribution: str) -> RecipeError | PluginError:
        known = {canonical(r.distribution) for r in self}
        distribution = distribution or self.packages.get((kind, name), "")
        if canonical(distribution) in self.missing_notes:
            return PluginError(f"{kind} {name!r} is not available: {self.missing_notes[canonical(distribution)]}")
        possible = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", distribution)  # the hint is a command to copy
        if possible and canonical(distribution) not in known:
            return PluginError(
                f"{kind} {name!r} needs the plugin {distribution!r}, which is not installed",
                hint=f"Install it with `pip install {distribution}`.",
            )
        names = [self.short_name(r) for r in self.of_kind(kind)]
        names += sorted(other for of_kind, other in self.packages if of_kind == kind and other not in names)
        message = f"{kind} {name!r} is unknown; {nearest(name, names)}"
        listed = {canonical(package) for package in self.packages.values()}
        notes = "; ".join(note for plugin, note in self.missing_notes.items() if plugin not in listed)
        if notes:
            return PluginError(f"{message} (these plugins were not loaded, so they may provide it: {notes})")
        return RecipeError(
            message, hint=f"`gebm-kit list {kind}` shows what is installed; a plugin package may provide more."
        )
