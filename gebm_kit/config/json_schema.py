"""A JSON Schema (draft 2020-12) of recipes with all installed components, for editors.

Whatever `check` accepts the schema accepts, with ``distribution:name`` spelled as `gebm-kit list` does. It refuses unknown
keys and components, wrong types, values that are not allowed, and numbers out of range. What no JSON Schema can say is left
to `check`: rules between keys, requirements that are not installed, and 3.0 where a whole number is needed.

The parameters of a component come from its constructor, so all components are imported. Those that can't be imported, or
whose plugin is not installed, are accepted with any parameters.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from pathlib import Path
from typing import Any, Literal

from gebm_kit.config.augment import AUGMENT_LISTS, AUGMENTATIONS
from gebm_kit.config.check import MAX_NODES, PRECISIONS
from gebm_kit.config.class_keys import UNIFORM
from gebm_kit.config.conform import LARGEST
from gebm_kit.config.docstrings import described, summary_of
from gebm_kit.config.override_keys import section_of
from gebm_kit.config.schema import COMPONENT_SECTIONS, REQUIRED_SECTIONS, SCHEMA_VERSION, SECTIONS
from gebm_kit.config.tree import NODE_LISTS, NODES
from gebm_kit.config.yaml_values import Key
from gebm_kit.core.components import KINDS, Parameter, Range, Registered, Registry, parameters
from gebm_kit.core.errors import PluginError
from gebm_kit.core.version import __version__

Schema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_KEY = r"[A-Za-z0-9_][A-Za-z0-9_.\[\]-]*"
INTERPOLATION = rf"^\$\{{{_KEY}\}}$"
"""Pattern of text that stands for another key's value: ``${train.seed}``."""

RESOLVER = rf"\\\$\{{|\$\{{(?!{_KEY}\}})"
"""Pattern of text that asks for anything but a key's value, such as ``${oc.env:HOME}``, which no recipe may."""

REQUIREMENT = r"^\s*[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?\s*(\[[^\]]*\]\s*)?(\(.*\)\s*|[<>=!~].*)?(;.*)?$"
"""Pattern of a requirement such as ``gebm-kit-flows>=0.1``, as far as its form goes; an address is none."""

TEXT: Schema = {"type": "string", "not": {"type": "string", "pattern": RESOLVER}}

REQUIREMENTS: Schema = TEXT | {"anyOf": [{"pattern": REQUIREMENT}, {"pattern": r"\$\{"}]}


def json_schema(registry: Registry) -> Schema:
    """Return the schema of recipes that may use the components of ``registry``."""
    properties: Schema = {
        "schema": {"const": SCHEMA_VERSION, "description": "Version of the recipe format."},
        "requires": _array(REQUIREMENTS, null=True)
        | {"description": "Plugin packages with versions; checked, never installed."},
        **{name: _ref(kind) for name, kind in COMPONENT_SECTIONS.items()},
        **{name: _section((name,), kind) for name, kind in SECTIONS.items()},
        "loggers": _nodes("logger", unique=True),
        "device": {
            "type": "string",
            "anyOf": [{"pattern": "^(auto|cpu|cuda(:[0-9]{1,4})?)$"}, {"pattern": INTERPOLATION}],
        },
        "precision": _choice(PRECISIONS),
    }
    return {
        "$schema": DIALECT,
        "title": "gebm-kit recipe",
        "description": f"A recipe of gebm-kit {__version__} with the components that are installed here.",
        "type": "object",
        "properties": properties,
        "required": list(REQUIRED_SECTIONS),
        "additionalProperties": False,
        "$defs": {kind: _node(kind, registry) for kind in KINDS},
    }


# --- components ------------------------------------------------------------------------------------------------------
def _ref(kind: str) -> Schema:
    return {"$ref": f"#/$defs/{kind}"}


def _node(kind: str, registry: Registry) -> Schema:
    """Return the schema of one component of a kind: its name as text, or a mapping of name and parameters."""
    short, names, rules = [], [], []
    for record in registry.of_kind(kind):
        own = list(dict.fromkeys((registry.short_name(record), record.address)))
        names += own
        try:
            schema, required = _parameters(record)
        except PluginError:
            short += own
            continue
        short += [] if required else own
        rules.append({"if": {"properties": {"name": {"enum": own}}, "required": ["name"]}, "then": schema})
    missing = [name for of_kind, name in registry.packages if of_kind == kind and name not in names]
    return {
        "if": {"type": "string"},
        "then": _choice([*short, *missing]),
        "else": {
            "type": "object",
            "properties": {"name": _choice([*names, *missing])},
            "required": ["name"],
            "allOf": rules,
        },
    }


def _parameters(record: Registered) -> tuple[Schema, list[str]]:
    """Return the schema of a component's mapping, and the parameters that must be in it."""
    target = record.load()
    given = {name: parameter for name, parameter in parameters(target).items() if not parameter.injected}
    texts = described(target)
    properties: Schema = {"name": {}}
    for name, parameter in given.items():
        properties[name] = _described(_parameter(parameter), texts.get(name, ""), parameter.default)
    if record.component.kind == "dataset":
        properties |= CLASS_PROPERTIES
    required = [name for name, parameter in given.items() if parameter.required]
    schema = {"properties": properties, "required": required, "additionalProperties": False}
    return {"description": summary_of(target) or record.component.summary, **schema}, required


def _parameter(parameter: Parameter) -> Schema:
    if parameter.kind is None:
        return _value(parameter.annotation, parameter.range)
    if parameter.many:
        return _array(_ref(parameter.kind), null=parameter.default is None)
    return {"anyOf": [_ref(parameter.kind), {"type": "null"}]} if parameter.default is None else _ref(parameter.kind)


CLASS_PROPERTIES: Schema = {
    "class_weights": {
        "description": "How often each class is drawn: weights in the order of the classes, by name, or `uniform`.",
        "anyOf": [
            {"type": "null"},
            {"const": UNIFORM},
            {"type": "string", "pattern": INTERPOLATION},
            {
                "type": "array",
                "items": {"type": ["number", "string"], "minimum": 0, "pattern": INTERPOLATION},
                "minItems": 1,
            },
            {
                "type": "object",
                "additionalProperties": {"type": ["number", "string"], "minimum": 0, "pattern": INTERPOLATION},
            },
        ],
    },
    "class_names": {
        "description": "Names of the classes in their order.",
        "type": ["array", "null", "string"],
        "items": TEXT,
        "minItems": 1,
        "uniqueItems": True,
        "pattern": INTERPOLATION,
    },
}
"""The keys of ``data`` about classes, which belong to no dataset."""


def _nodes(kind: str, *, unique: bool = False) -> Schema:
    """Return the schema of one component or a list of them, or null."""
    return {
        "if": {"type": ["array", "null"]},
        "then": {"items": _ref(kind), "maxItems": MAX_NODES, "uniqueItems": unique},
        "else": _ref(kind),
    }


# --- sections --------------------------------------------------------------------------------------------------------
def _section(key: Key, kind: type) -> Schema:
    """Return the schema of a fixed section, whose dataclass is ``kind``."""
    hints, texts = typing.get_type_hints(kind, include_extras=True), described(kind)
    properties: Schema = {}
    for field in dataclasses.fields(kind):
        place = (*key, field.name)
        if section := section_of(hints[field.name]):
            special = _special(place)
            schema = _section(place, section) if special is None else special
        else:
            schema = _special(place) or _value(hints[field.name])
        properties[field.name] = _described(schema, texts.get(field.name, ""), field.default)
    return {
        "type": ["object", "null", "string"],
        "pattern": INTERPOLATION,
        "description": summary_of(kind),
        "properties": properties,
        "additionalProperties": False,
    }


def _special(key: Key) -> Schema | None:
    """Return the schema of a key that holds components, or augmentations; None for any other key."""
    if key in NODE_LISTS:
        return _nodes(NODE_LISTS[tuple(str(part) for part in key)])
    if key in AUGMENT_LISTS:
        item = _augmentation()
        return {"if": {"type": ["array", "null"]}, "then": {"items": item, "maxItems": MAX_NODES}, "else": item}
    if key in NODES:
        return {"anyOf": [{"type": "null"}, _ref(NODES[key])]}
    return None


def _augmentation() -> Schema:
    rules = []
    for name, kind in AUGMENTATIONS.items():
        schema = _section((), kind)
        then = {
            "description": schema["description"],
            "properties": {"name": {}, **schema["properties"]},
            "additionalProperties": False,
        }
        rules.append({"if": {"properties": {"name": {"const": name}}, "required": ["name"]}, "then": then})
    node = {"type": "object", "properties": {"name": _choice(AUGMENTATIONS)}, "required": ["name"], "allOf": rules}
    return {"if": {"type": "string"}, "then": _choice(AUGMENTATIONS), "else": node}


# --- values ----------------------------------------------------------------------------------------------------------
def _value(annotation: Any, interval: Range | None = None) -> Schema:
    """Return the schema of a value that `conform` turns into what ``annotation`` asks for."""
    if typing.get_origin(annotation) is typing.Annotated:
        annotation, *marks = typing.get_args(annotation)
        interval = next((mark for mark in marks if isinstance(mark, Range)), interval)
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        options = [_value(arg, interval) for arg in args if arg is not type(None)]
        null = [{"type": "null"}] if type(None) in args else []
        if len(options) == 1 and "type" in options[0] and null:
            kind = options[0]["type"]
            return options[0] | {"type": [*([kind] if isinstance(kind, str) else kind), "null"]}
        return {"anyOf": [*options, *null]}
    if origin is Literal:
        return _choice(args)
    if origin in (list, tuple) or annotation in (list, tuple):
        return _array(_value(args[0], interval) if args else {})
    if annotation is type(None):
        return {"type": "null"}
    if annotation in (str, Path):
        return TEXT
    if annotation is bool:
        return {"type": ["boolean", "string"], "pattern": INTERPOLATION}
    if annotation is int:
        whole: Schema = {"minimum": -LARGEST, "maximum": LARGEST} | _range(interval)
        return {"type": ["integer", "string"], **whole, "pattern": INTERPOLATION}
    if annotation is float:
        return {"type": ["number", "string"], **_range(interval), "pattern": INTERPOLATION}
    return {}


def _range(interval: Range | None) -> Schema:
    found: Schema = {}
    if interval is not None and interval.low is not None:
        found["exclusiveMinimum" if interval.low_open else "minimum"] = interval.low
    if interval is not None and interval.high is not None:
        found["exclusiveMaximum" if interval.high_open else "maximum"] = interval.high
    return found


def _array(items: Schema, *, null: bool = False) -> Schema:
    kinds = ["array", "string", *(["null"] if null else [])]
    return {"type": kinds, "items": items, "pattern": INTERPOLATION}


def _choice(values: typing.Iterable[Any]) -> Schema:
    return {"anyOf": [{"enum": list(values)}, {"type": "string", "pattern": INTERPOLATION}]}


def _described(schema: Schema, text: str, default: Any) -> Schema:
    """Return a schema with a description, and with the default if JSON can hold it."""
    words = {"description": text} if text else {}
    if isinstance(default, tuple):
        default = list(default)
    plain = default is not inspect.Parameter.empty and default is not dataclasses.MISSING
    plain = plain and (default is None or isinstance(default, str | int | float | list))
    return schema | words | ({"default": default} if plain else {})
