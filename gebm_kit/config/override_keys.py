"""The keys of a recipe that an override can name. This file does not import torch."""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import cast, get_type_hints

from gebm_kit.config.schema import COMPONENT_SECTIONS, SECTIONS


def override_keys() -> list[str]:
    """Return the keys that an override can name: sections of components, and every key of the fixed sections."""
    found = [*COMPONENT_SECTIONS, "loggers", "device", "precision"]

    def collect(prefix: str, kind: type) -> None:
        for name, annotation in get_type_hints(kind, include_extras=True).items():
            if is_dataclass(annotation):
                collect(f"{prefix}.{name}", cast(type, annotation))
            else:
                found.append(f"{prefix}.{name}")

    for name, kind in SECTIONS.items():
        collect(name, kind)
    return found
