"""Components that a caller in Python names by a node: ``{"name": "hmc", "step_size": 0.1}``. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gebm_kit.config.check import Checker
from gebm_kit.config.schema import ComponentNode
from gebm_kit.config.supplied import PYTHON_OBJECT
from gebm_kit.config.tree import Tree
from gebm_kit.core.errors import PluginError, RecipeError, UsageError, shown
from gebm_kit.core.plugins import installed


def given_node(kind: str, value: Mapping[str, Any] | ComponentNode | str, what: str) -> ComponentNode:
    """Return the component of a name or a node, with every default filled in.

    Args:
        what: what the caller's argument is called, for messages.

    Raises:
        UsageError: the node has no name.
        RecipeError, PluginError: no installed component has this name, or it has no such parameter or value.
    """
    node = (
        {"name": value}
        if isinstance(value, str)
        else value.as_dict()
        if isinstance(value, ComponentNode)
        else {**value}
    )
    if not isinstance(node.get("name"), str):
        raise UsageError(f"{what} is {shown(node)}; a node has the name of a {kind}: {{'name': ..., ...}}")
    if node["name"] == PYTHON_OBJECT:
        raise UsageError(f"{what} is {PYTHON_OBJECT!r}, which names no component: give the object itself")
    checker = Checker(Tree(what, None, "", {what: node}, {}), installed().registry)
    found = checker.node((what,), node, kind)
    problems = [text.removeprefix(f"{what}: ") for text in [*checker.problems, *checker.plugin_problems]]
    if checker.plugin_problems and not checker.problems:
        raise PluginError("; ".join(problems), hint=checker.plugin_hint)
    if found is None or problems:
        raise RecipeError("; ".join(problems))
    return found
