"""What a recipe looks like at a prompt and in a notebook."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gebm_kit.core.html import escaped, table

PARTS = ("data", "base", "energy", "loss", "sampler")
"""Components of a recipe that are named."""


def recipe_summary(recipe: Any) -> str:
    """Say in one line what a recipe trains."""
    parts = ", ".join(f"{part} {getattr(recipe, part).name}" for part in PARTS)
    return f"Recipe({recipe.name}: {parts}; {recipe.train.total_steps:,} steps)"


def recipe_sections(recipe: Any) -> Iterator[str]:
    """Yield the components with their parameters, the overrides, and the file's text."""
    rows = [(part, node.name, _parameters(node)) for part in PARTS for node in [getattr(recipe, part)]]
    rows += [("metric", node.name, _parameters(node)) for node in recipe.eval.metrics or ()]
    yield table(("part", "name", "parameters"), rows)
    if recipe.overrides:
        yield table(("override",), [(word,) for word in recipe.overrides])
    if recipe.text:
        yield f"<details><summary>{escaped(recipe.path or recipe.name)}</summary><pre>{escaped(recipe.text)}</pre></details>"


def _parameters(node: Any) -> str:
    return ", ".join(f"{name}: {value}" for name, value in node.parameters.items())
