"""Completion of a command's words in the shell: recipes, runs, components and overrides.

Nothing here imports torch, and whatever goes wrong leads to no suggestion.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import typer


def complete_recipe(incomplete: str) -> list[str]:
    """Complete names of shipped recipes and the paths of recipe files in the shell."""
    from gebm_kit.config.load import shipped_recipes

    names = [name for name in shipped_recipes() if name.startswith(incomplete)]
    return names + complete_path(incomplete, lambda path: path.suffix in (".yaml", ".yml"))


def complete_run(incomplete: str) -> list[str]:
    """Complete paths of run directories in the shell."""
    return complete_path(incomplete, lambda path: (path / "resolved.yaml").is_file())


def complete_path(incomplete: str, wanted: Callable[[Path], bool]) -> list[str]:
    """Complete paths that are ``wanted``, and the folders that lead there, which end with a slash."""
    folder, _, start = incomplete.rpartition("/")
    found = []
    try:
        root = Path(folder + "/").expanduser() if folder or incomplete.startswith("/") else Path()
        for path in sorted(root.iterdir()):
            if not path.name.startswith(start) or (path.name.startswith(".") and not start) or "=" in path.name:
                continue
            name = incomplete[: len(incomplete) - len(start)] + path.name
            found += [name] if wanted(path) else [f"{name}/"] if path.is_dir() else []
    except (OSError, RuntimeError, ValueError):  # no such folder, no such home
        return []
    return _shown(found)


def complete_override(incomplete: str) -> list[str]:
    """Complete the keys of a recipe, and the component names of ``sampler=``, ``base.name=`` and their like."""
    from gebm_kit.config.override_keys import override_keys
    from gebm_kit.config.schema import COMPONENT_SECTIONS
    from gebm_kit.config.tree import NODE_LISTS

    key, equals, value = incomplete.partition("=")
    split = _split_by_bash()
    if split is not None:
        key, equals, value = split, "", incomplete
    elif not equals:
        return [f"{name}=" for name in override_keys() if name.startswith(key)]
    kinds = COMPONENT_SECTIONS | {".".join(path): kind for path, kind in NODE_LISTS.items()}
    kind = kinds.get(key.removesuffix(".name"))
    names = [] if kind is None else _components(kind, value)
    return [f"{key}={name}" if equals else name for name in names]


def _split_by_bash() -> str | None:
    """Return the word before ``=``: bash takes ``sampler=h`` for three words, and replaces the last one alone."""
    words = os.environ.get("COMP_WORDS", "").split()
    here = os.environ.get("COMP_CWORD", "")
    place = int(here) if here.isascii() and here.isdigit() and len(here) < 6 else 0
    return words[place - 2] if 3 <= place <= len(words) and words[place - 1] == "=" else None


def complete_component(context: typer.Context, incomplete: str) -> list[str]:
    """Complete names of components of the kind that stands before."""
    kind = context.params.get("kind")
    return _components(str(kind), incomplete)


def complete_sampler(incomplete: str) -> list[str]:
    """Complete names of samplers in the shell."""
    return _components("sampler", incomplete)


def complete_metric(incomplete: str) -> list[str]:
    """Complete names of metrics in the shell."""
    return _components("metric", incomplete)


def complete_plugin(incomplete: str) -> list[str]:
    """Complete names of installed plugin packages in the shell."""
    from gebm_kit.core.plugins import installed

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = [plugin.distribution for plugin in installed().report]
    return _shown([name for name in names if name.startswith(incomplete)])


def _components(kind: str, incomplete: str) -> list[str]:
    from gebm_kit.core.plugins import installed

    with warnings.catch_warnings():  # a shell shows what a completion writes on stderr
        warnings.simplefilter("ignore")
        registry = installed().registry
    names = [registry.short_name(record) for record in registry.of_kind(kind)]
    return _shown([name for name in names if name.startswith(incomplete)])


def _shown(names: Sequence[str]) -> list[str]:
    """Return the names without those that would do something to the terminal."""
    return [name for name in names if name.isprintable()]


def complete_kind(incomplete: str) -> list[str]:
    """Complete kinds of component in the shell."""
    from gebm_kit.core.components import KINDS

    return [kind for kind in KINDS if kind.startswith(incomplete)]
