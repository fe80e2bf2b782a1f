"""A new plugin package of one component: its files as text, and writing them."""

from __future__ import annotations

import ast
import dataclasses
import keyword
import os
import re
import sys
import tempfile
from pathlib import Path
from string import Template

from gebm_kit.core.errors import UsageError
from gebm_kit.core.files import make_directory, remove_tree, umask, write_error
from gebm_kit.core.version import __version__
from gebm_kit.scaffold.names import Names

HERE = Path(__file__).parent

USE = {
    "base": "A recipe uses it with `base={component}`: `gebm-kit train quickstart base={component}`.",
    "energy": "A recipe uses it with `energy={component}`: `gebm-kit train quickstart energy={component}`.",
    "loss": "A recipe uses it with `loss={component}`: `gebm-kit train quickstart loss={component}`.",
    "penalty": "A recipe uses it with `train.penalty={component}`: `gebm-kit train quickstart train.penalty={component}`.",
    "sampler": "A recipe uses it with `sampler={component}`, a finished run with `gebm-kit sample --sampler {component}`.",
    "dataset": "A recipe uses it with `data={component}`: `gebm-kit train quickstart data={component}`.",
    "features": "A metric uses it with its parameter `features`: `eval.metrics=[{{name: mmd, features: {component}}}]`.",
    "metric": "A recipe and `gebm-kit eval` use it with `eval.metrics={component}`.",
    "logger": "A recipe uses it with `loggers={component}`: `gebm-kit train quickstart loggers={component}`.",
}
"""Where a component of each kind is used, as a sentence of the README."""


def component_module(names: Names) -> str:
    """Return the text of the component's module."""
    return _renamed(_source("examples", names.kind), _settled(names))


def check_module(names: Names) -> str:
    """Return the text of the component's tests."""
    return _renamed(_source("tests", names.kind), _settled(names))


def summary_of(kind: str) -> str:
    """Return the example's summary for ``gebm-kit list``: the first line of its module, without the full stop."""
    first = (ast.get_docstring(ast.parse(_source("examples", kind))) or "").splitlines()[0]
    return first.rstrip(".")


def package_files(names: Names) -> dict[str, str]:
    """Return the text of every file of the package by its path in it."""
    names = _settled(names)
    noun = "feature map" if names.kind == "features" else names.kind
    with_article = f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
    words = {
        "kind": names.kind,
        "noun": noun,
        "with_article": with_article,
        "a_noun": with_article.capitalize(),
        "distribution": names.distribution,
        "component": names.component,
        "package": names.package,
        "cls": names.cls,
        "summary": summary_of(names.kind),
        "use": USE[names.kind].format(component=names.component),
        "kit_version": __version__,
    }

    def filled(name: str) -> str:
        return Template((HERE / "files" / f"{name}.txt").read_text(encoding="utf-8")).substitute(words)

    source = f"src/{names.package}"
    return {
        "pyproject.toml": filled("pyproject.toml"),
        "README.md": filled("README.md"),
        ".gitignore": filled("gitignore"),
        ".github/workflows/test.yml": filled("test.yml"),
        f"{source}/__init__.py": filled("hook.py"),
        f"{source}/{names.kind}.py": component_module(names),
        f"{source}/py.typed": "",
        f"tests/test_{names.package}.py": check_module(names),
    }


def write_package(names: Names, folder: Path) -> list[str]:
    """Write the package to ``folder``, whole or not at all, and return the paths of its files in it.

    Raises:
        UsageError: the folder exists, or can't be written.
        RunFailed: the disk is full.
    """
    if os.path.lexists(folder):
        raise UsageError(
            f"{folder} exists already", hint="Name another directory with --out, or remove that one first."
        )
    files = package_files(names)
    make_directory(folder.parent)
    beside = None
    try:
        beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        for name, content in files.items():
            path = beside / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        beside.chmod(0o777 & ~umask())  # mkdtemp makes folders private
        beside.rename(folder)
    except BaseException as error:
        if beside is not None:
            remove_tree(beside)
        if isinstance(error, OSError):
            raise write_error(folder, error) from error
        raise
    return list(files)


def _source(part: str, kind: str) -> str:
    return (HERE / part / f"{kind}.py").read_text(encoding="utf-8")


def _settled(names: Names) -> Names:
    """Return the names with a class that means nothing else in the component's modules."""
    taken = set(re.findall(r"[A-Za-z_]\w*", _source("examples", names.kind) + _source("tests", names.kind)))
    cls = names.cls
    for end in (names.kind.capitalize(), "Component"):
        if cls in taken or keyword.iskeyword(cls):
            cls = names.cls + end
    return dataclasses.replace(names, cls=cls)


def _renamed(text: str, names: Names) -> str:
    """Return an example's module, or its tests, with the names of a package."""
    text = text.replace(f"gebm_kit.scaffold.examples.{names.kind}", f"{names.package}.{names.kind}")
    text = text.replace('"example"', f'"{names.component}"').replace("example.csv", f"{names.component}.csv")
    return _sorted_imports(re.sub(r"\bExample\b", names.cls, text), names.package)


def _sorted_imports(text: str, package: str) -> str:
    """Return a module with its imports sorted as ruff sorts them where ``package`` is the only package of its own."""
    lines = text.splitlines()
    places = [place for place, line in enumerate(lines) if re.match(r"(from|import) ", line)]
    groups: dict[int, list[tuple[bool, str, str]]] = {}
    for place in places:
        start, module = lines[place].split()[:2]
        top = module.partition(".")[0]
        group = 0 if top == "__future__" else 1 if top in sys.stdlib_module_names else 3 if top == package else 2
        groups.setdefault(group, []).append((start == "from", module, lines[place]))
    blocks = ["\n".join(line for *_, line in sorted(groups[group])) for group in sorted(groups)]
    head, tail = lines[: places[0]], lines[places[-1] + 1 :]
    return "\n".join([*head, "\n\n".join(blocks), *tail]) + "\n"
