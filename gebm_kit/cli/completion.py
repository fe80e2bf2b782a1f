"""Completion of a command's words in the shell: recipes, runs, components and overrides.

Nothing here imports torch, and whatever goes wrong leads to no suggestion.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from gebm_kit.engine.run_directory.record import RunRecord


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
    """Complete the keys of a recipe, the component names of ``sampler=``, ``base.name=`` and their like, and values."""
    from gebm_kit.config.override_keys import override_keys, values_of_key
    from gebm_kit.config.schema import COMPONENT_SECTIONS
    from gebm_kit.config.tree import NODE_LISTS, NODES

    key, value, whole = _parts(incomplete)
    if key is None:
        return [f"{name}=" for name in override_keys() if name.startswith(value)]
    lists = {".".join(map(str, path)): kind for path, kind in (NODE_LISTS | NODES).items()}
    kind = (COMPONENT_SECTIONS | lists).get(key.removesuffix(".name"))
    choices = FIXED_VALUES.get(key) or values_of_key(key)
    names = [word for word in choices if word.startswith(value)] if kind is None else _components(kind, value)
    return [f"{whole}{name}" for name in names]


def complete_word_of_recipe(context: typer.Context, incomplete: str) -> list[str]:
    """Complete an override, the parameters of the recipe's or the run's components and their values among them."""
    from gebm_kit.cli.written_parameters import written_parameters
    from gebm_kit.config.schema import COMPONENT_SECTIONS
    from gebm_kit.core.plugins import installed

    found = complete_override(incomplete)
    key, value, whole = _parts(incomplete)
    section, dot, wanted = (value if key is None else key).partition(".")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            name = _chosen(context, section) if dot and section in COMPONENT_SECTIONS else None
            record = installed().registry.get(COMPONENT_SECTIONS[section], name) if name else None
            parameters = {} if record is None else written_parameters(record.component.target)
        except Exception:  # a recipe, a run or a source that can't be read suggests nothing
            parameters = {}
    if key is None:
        found += [f"{section}.{parameter}=" for parameter in parameters if parameter.startswith(wanted)]
    elif (parameter := parameters.get(wanted)) is not None:
        names = _components(parameter.kind, value) if parameter.kind else parameter.values
        found += [f"{whole}{word}" for word in names if word.startswith(value)]
    allowed = _overridable(context)
    return _shown(
        [word for word in found if key is not None or allowed is None or word.partition(".")[0].strip("=") in allowed]
    )


def complete_run_or_override(context: typer.Context, incomplete: str) -> list[str]:
    """Complete the first word of a command on a run, which is the run or, for the newest run, an override."""
    runs = [] if "=" in incomplete or _split_by_bash() is not None else complete_run(incomplete)
    return runs + complete_word_of_recipe(context, incomplete)


def complete_class(context: typer.Context, incomplete: str) -> list[str]:
    """Complete classes of the run that a command is about, by name or else by index; after a comma, the next one."""
    before, comma, start = incomplete.rpartition(",")
    try:
        record = _record(context)
        classes = {} if record is None else record.classes or {}
    except Exception:
        return []
    words = [name or label for label, name in classes.items()] + ([] if comma or not classes else ["all"])
    return _shown([f"{before}{comma}{word}" for word in words if word.startswith(start)])


def complete_checkpoint(context: typer.Context, incomplete: str) -> list[str]:
    """Complete the checkpoints of the run that a command is about."""
    try:
        record = _record(context)
        steps = [] if record is None else sorted(path.name for path in (record.path / "checkpoints").glob("step-*"))
    except Exception:
        steps = []
    words = ["last", "best", *(f"step-{int(name.removeprefix('step-'))}" for name in steps if name[5:].isdigit())]
    return [word for word in words if word.startswith(incomplete)]


FIXED_VALUES = {"device": ["auto", "cpu", "cuda"], "precision": ["float32", "float64", "bfloat16"]}
"""Words that the keys outside the sections may be."""


def _parts(incomplete: str) -> tuple[str | None, str, str]:
    """Return the key of an override (None: it is not whole yet), what follows, and what each suggestion begins with."""
    if (split := _split_by_bash()) is not None:
        return split, incomplete, ""
    key, equals, value = incomplete.partition("=")
    return (key, value, f"{key}=") if equals else (None, incomplete, "")


def _words(context: typer.Context) -> list[str]:
    """Return the words of the command so far, in one piece each: bash hands over ``sampler=h`` as three."""
    given: list[str] = []
    for name in ("recipe_word", "run_word", "override_words", "words"):
        value = context.params.get(name)
        given += [value] if isinstance(value, str) else list(value or ())
    return " ".join(given).replace(" = ", "=").split()


def _chosen(context: typer.Context, section: str) -> str | None:
    """Return the name of the component in a section: by an override or an option before, else of the recipe or the run."""
    from gebm_kit.config.schema import DEFAULT_COMPONENTS

    words = _words(context)
    for word in reversed(words):
        key, equals, value = word.partition("=")
        if equals and key.removesuffix(".name") == section and value:
            return value
    if section == "sampler" and context.params.get("sampler"):
        return str(context.params["sampler"])
    if context.params.get("recipe_word"):
        from gebm_kit.config.load import read_tree

        values = read_tree(next(word for word in words if "=" not in word)).values
    else:
        record = _record(context)
        values = {} if record is None else record.resolved
    node = values.get(section, DEFAULT_COMPONENTS.get(section))
    return node.get("name") if isinstance(node, dict) else node


def _record(context: typer.Context) -> RunRecord | None:
    """Return the record of the run that a command is about: the one named, or the newest finished one."""
    from gebm_kit.engine.run_directory.record import find_records, read_record

    if "run_word" not in context.params and "words" not in context.params:
        return None
    for word in _words(context):
        if "=" not in word and (Path(word) / "resolved.yaml").is_file():
            return read_record(word)
    return next((record for record in find_records(Path("runs")) if record.state == "finished"), None)


def _overridable(context: typer.Context) -> tuple[str, ...] | None:
    """Return the sections that the command lets its words override; None: all."""
    module = sys.modules.get(str(getattr(context.command.callback, "__module__", "")))
    found: tuple[str, ...] | None = getattr(module, "OVERRIDABLE", None)
    return found


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
