"""The keys of a recipe that an override can name. This file does not import torch."""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from gebm_kit.config.schema import COMPONENT_SECTIONS, SECTIONS


def section_of(annotation: Any) -> type | None:
    """Return the dataclass of a key that holds a section, or a section or null; None for any other key."""
    for option in (annotation, *get_args(annotation)):
        if isinstance(option, type) and is_dataclass(option):
            return option
    return None


def override_keys() -> list[str]:
    """Return the keys that an override can name: sections of components, and every key of the fixed sections."""
    found = [*COMPONENT_SECTIONS, "loggers", "device", "precision"]

    def collect(prefix: str, kind: type) -> None:
        for name, annotation in get_type_hints(kind, include_extras=True).items():
            if section := section_of(annotation):
                collect(f"{prefix}.{name}", section)
            else:
                found.append(f"{prefix}.{name}")

    for name, kind in SECTIONS.items():
        collect(name, kind)
    return found


def values_of_key(key: str) -> list[str]:
    """Return the words that a key of a fixed section may be, such as ``train.part``; [] for any other key."""
    name, *inner = key.split(".")
    annotation: Any = SECTIONS.get(name)
    for part in inner:
        section = section_of(annotation)
        annotation = None if section is None else get_type_hints(section, include_extras=True).get(part)
    return list(dict.fromkeys(_words(annotation)))


def _words(annotation: Any) -> list[str]:
    if annotation is bool:
        return ["true", "false"]
    if annotation is type(None):
        return ["null"]
    if get_origin(annotation) is Literal:
        return [str(word) for word in get_args(annotation)]
    return [] if section_of(annotation) else [word for option in get_args(annotation) for word in _words(option)]
