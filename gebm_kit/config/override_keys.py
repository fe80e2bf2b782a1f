"""The keys of a recipe that an override can name. This file does not import torch."""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import Any, get_args, get_type_hints

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
