"""Names of a new plugin package: what a name must be, and what is made of it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import keyword
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from gebm_kit.core.components import BUILTIN, KINDS, Registry, canonical
from gebm_kit.core.errors import UsageError, nearest, shown

LONGEST = 50
"""Most characters of a name: class and package are written into lines of code."""

YAML_WORDS = ("null", "true", "false", "yes", "no", "on", "off", "y", "n")
"""Words that YAML, in one of its versions, does not read as text."""

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Names:
    """Names in a plugin package of one component.

    Attributes:
        kind: kind of the component.
        distribution: name that pip knows, in its normal form (PEP 503); the component has the same name.
        package: name of the Python package.
        cls: name of the component's class.
    """

    kind: str
    distribution: str
    package: str
    cls: str

    @property
    def component(self) -> str:
        return self.distribution


def names_of(name: str, kind: str) -> Names:
    """Return the names in a package that is called ``name``.

    Raises:
        UsageError: the kind is unknown, or the name is not one that a distribution and a Python package can have.
    """
    if kind not in KINDS:
        raise UsageError(f"component kind {shown(kind)} is unknown; {nearest(kind, KINDS)}")
    problem = _malformed(name)
    if problem:
        raise UsageError(
            f"{shown(name)} can't be the name of a plugin package: {problem}",
            hint="Allowed are letters, digits and single hyphens, beginning with a letter, such as `gebm-kit plugins new "
            f"my-{kind} --kind {kind}`.",
        )
    distribution = canonical(name)
    cls = "".join(part.capitalize() for part in distribution.split("-"))
    return Names(kind, distribution, distribution.replace("-", "_"), cls)


def _malformed(name: str) -> str:
    """Return what is wrong with the form of a name, or ""."""
    if len(name) > LONGEST:
        return f"it has {len(name)} characters, and at most {LONGEST} are allowed"
    if not name.isascii() or not _NAME.fullmatch(name):
        return "it is not a name in the sense of PEP 503"
    package = canonical(name).replace("-", "_")
    if not package.isidentifier():
        return f"{package!r} is not an identifier of Python"
    if keyword.iskeyword(package):
        return f"{package!r} is a keyword of Python"
    if package in YAML_WORDS:
        return f"a recipe's YAML reads {package!r} as a value, not as a name"
    return ""


def check_free(names: Names, registry: Registry) -> None:
    """Check that no component, distribution or module that is installed has one of these names.

    Raises:
        UsageError: one or more have; all of them are named in one message.
    """
    clashes = list(_clashes(names, registry))
    if clashes:
        raise UsageError(
            f"the name {names.distribution!r} is taken: {'; '.join(clashes)}",
            hint=f"Choose another name, such as own-{names.distribution}.",
        )


def _clashes(names: Names, registry: Registry) -> Iterator[str]:
    article = "an" if names.kind[0] in "aeiou" else "a"
    for record in registry.of_kind(names.kind):
        if record.component.name == names.component:
            owner = "the kit" if record.distribution == BUILTIN else f"the plugin {record.distribution}"
            yield f"{owner} has {article} {names.kind} {names.component!r}"
    package = registry.packages.get((names.kind, names.component))
    if package is not None and not any(canonical(r.distribution) == canonical(package) for r in registry):
        yield f"the plugin {package} has {article} {names.kind} {names.component!r}"
    try:
        importlib.metadata.distribution(names.distribution)
        yield f"a distribution {names.distribution!r} is installed"
    except importlib.metadata.PackageNotFoundError:
        if names.distribution in map(canonical, registry.packages.values()):
            yield f"{names.distribution!r} is a plugin package of this project"
    if names.package in sys.stdlib_module_names:
        yield f"Python has a module {names.package!r}"
    elif _is_module(names.package):
        yield f"a module {names.package!r} can be imported here"


def _is_module(package: str) -> bool:
    """Return whether a module or package of that name is installed, without importing it; mere folders don't count."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError, AttributeError):
        return True
    return spec is not None and spec.origin is not None
