"""Reading of docstrings: the summary, and what is said of each parameter or field. This file does not import torch."""

from __future__ import annotations

import inspect
import re

_ENTRY = re.compile(r"([A-Za-z_]\w*(?:, [A-Za-z_]\w*)*): (.*)")


def summary_of(target: type) -> str:
    """Return the first paragraph of a class's docstring on one line, or ""."""
    return " ".join(inspect.cleandoc(target.__doc__ or "").split("\n\n")[0].split()).replace("``", "`")


def described(target: type) -> dict[str, str]:
    """Return what the sections ``Args`` and ``Attributes`` of a class's docstring say of each name, on one line."""
    found: dict[str, str] = {}
    names: list[str] = []
    inside = False
    for line in inspect.cleandoc(target.__doc__ or "").splitlines():
        text, depth = line.strip(), len(line) - len(line.lstrip())
        if depth == 0 and text:
            inside = text in ("Args:", "Attributes:")
            names = []
        elif inside and depth == 4 and (entry := _ENTRY.fullmatch(text)):
            names = entry[1].split(", ")
            found |= dict.fromkeys(names, entry[2])
        elif inside and text and depth > 4:
            found |= {name: f"{found[name]} {text}" for name in names}
    return {name: text.replace("``", "`") for name, text in found.items()}
