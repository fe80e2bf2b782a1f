"""Parameters of a component as its source says them: for completion, which must not import torch."""

from __future__ import annotations

import ast
import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path

MOST_STEPS = 8
"""Most classes and modules that are followed to a constructor or a type."""


@dataclass(frozen=True, slots=True)
class Written:
    """One parameter.

    Attributes:
        values: the words that it may be, as text; () for any other type.
        kind: kind of the component that it is, or "".
    """

    values: tuple[str, ...]
    kind: str


def written_parameters(target: str) -> dict[str, Written]:
    """Return the parameters of the class ``package.module:Class`` by name, without those that the kit injects.

    Whatever can't be found in the source is left out.
    """
    module, _, name = target.partition(":")
    for _ in range(MOST_STEPS):
        tree = _tree(module)
        found = _class(tree, name)
        if found is None:
            if (home := _imported(tree, name, module)) is None:
                return {}
            module, name = home
            continue
        for node in found.body:
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                return _parameters(node, module)
        bases = [base.id for base in found.bases if isinstance(base, ast.Name)]
        if not bases:
            return {}
        name = bases[0]
    return {}


def _parameters(constructor: ast.FunctionDef, module: str) -> dict[str, Written]:
    found = {}
    arguments = constructor.args
    for argument in [*arguments.args[1:], *arguments.kwonlyargs]:
        annotation = argument.annotation
        if annotation is None or "Injected" in ast.unparse(annotation):
            continue
        kinds = [
            str(node.args[0].value)
            for node in ast.walk(annotation)
            if isinstance(node, ast.Call)
            and ast.unparse(node.func) == "OfKind"
            and isinstance(node.args[0], ast.Constant)
        ]
        found[argument.arg] = Written(tuple(dict.fromkeys(_values(annotation, module, 0))), kinds[0] if kinds else "")
    return found


def _values(annotation: ast.AST, module: str, depth: int) -> list[str]:
    """Return the words of every Literal in an annotation, and of bool; names of types are looked up."""
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value).endswith("Literal"):
        return [_word(node.value) for node in ast.walk(annotation.slice) if isinstance(node, ast.Constant)]
    if isinstance(annotation, ast.Constant) and annotation.value is None:
        return ["null"]
    if isinstance(annotation, ast.Name):
        if annotation.id == "bool":
            return ["true", "false"]
        return _values_of_name(annotation.id, module, depth)
    return [word for node in ast.iter_child_nodes(annotation) for word in _values(node, module, depth)]


def _values_of_name(name: str, module: str, depth: int) -> list[str]:
    tree = _tree(module)
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(place) for place in node.targets] == [name]:
            return _values(node.value, module, depth + 1) if depth < MOST_STEPS else []
    home = _imported(tree, name, module)
    return _values_of_name(home[1], home[0], depth + 1) if home is not None and depth < MOST_STEPS else []


def _word(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _class(tree: ast.Module, name: str) -> ast.ClassDef | None:
    return next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), None)


def _imported(tree: ast.Module, name: str, module: str) -> tuple[str, str] | None:
    """Return module and name that a module imports as ``name`` from its own package or the kit; None for any other."""
    near = (module.partition(".")[0], "gebm_kit")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").partition(".")[0] in near:
            assert node.module is not None
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return node.module, alias.name
    return None


@functools.lru_cache(maxsize=64)
def _tree(module: str) -> ast.Module:
    """Parse a module without importing it; the packages that hold it are imported."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return ast.Module([], [])
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
