"""Write docs/interfaces.md from the interfaces and the examples of new plugin packages; `docs/generate.py` calls it."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import re
import textwrap
import typing
from typing import Any

from gebm_kit.core import components, interfaces, sources
from gebm_kit.core.components import KINDS
from gebm_kit.core.model import GEBM
from gebm_kit.core.priors import Prior
from gebm_kit.scaffold.names import names_of
from gebm_kit.scaffold.package import check_module, component_module
from gebm_kit.testing.registered import CHECKS

HEADER = """# Interfaces

Every protocol, field, method and shape that a component of your own meets, and one whole tested example of each kind. This
page is generated from the code by `make docs`. Everything on it is imported from `gebm_kit.core.interfaces`, unless the line
below its heading names another module.

The examples are what `gebm-kit plugins new NAME --kind KIND` writes, with its tests; the kit's own tests run them. How a
plugin is made, installed and found: [plugins](plugins.md).

Shapes: B batch, C chains, Z latent size, N and M rows, F features, `*D` the shape of one data point: `(2,)` for points,
`(channels, height, width)` for images. Labels of classes are int64.
"""

INTRODUCTIONS = {
    "base": "A base is the generator `x = G(z)` with the prior of z. What else it can do is said by protocols of their own.",
    "energy": "An energy is a scalar function of a data point, low on data.",
    "loss": "What a loss receives: the model, a `GEBM`, and a `Batch`. What it returns: `LossTerms`. The engine fills the "
    "batch, so that nothing is computed twice. A loss declares the fields that it reads (`needs` and `base_needs`).",
    "penalty": "A penalty receives the energy, the `Batch` of an energy step and a generator of random numbers.",
    "sampler": "A sampler receives chains in latent space and a `Potential`. A gradient-based one calls its "
    "`value_and_grad(z)`, which returns a `ValueAndGrad`: values, (C,), and gradients, (C, Z), without a graph.",
    "dataset": "A dataset has three parts that share no row. What else it knows is said by protocols of their own.",
    "features": "A feature map turns rows into features, on which metrics compare draws and data.",
    "metric": "A metric receives an `EvalContext`: draws, data to score them against, and whatever else it may ask for.",
    "logger": "A logger receives a run's numbers, pictures and tables. Its exceptions become warnings.",
}

SECTIONS: dict[str, list[Any]] = {
    "base": [interfaces.Base, Prior, interfaces.HasDensity, interfaces.HasEncoder, interfaces.HasPretraining,
             interfaces.HasSource, interfaces.HoldsWeights],
    "energy": [interfaces.Energy, interfaces.OnCodes, interfaces.HasFitting],
    "loss": [interfaces.Loss, interfaces.Batch, interfaces.LossTerms, interfaces.NegativeSettings, GEBM],
    "penalty": [interfaces.Penalty, interfaces.SlopePenalty],
    "sampler": [interfaces.Sampler, interfaces.Potential, interfaces.ValueAndGrad, interfaces.TiltedPotential,
                interfaces.State, interfaces.Info, interfaces.Tunable, interfaces.Adaptation, interfaces.AnnealedSampler,
                interfaces.SamplerDirective],
    "dataset": [interfaces.Dataset, interfaces.Split, interfaces.HasLabels, interfaces.HasClassNames, interfaces.HasModes,
                interfaces.HasReading, interfaces.HasStandardisation, interfaces.HasStoredRows, interfaces.HasUnits,
                interfaces.TableUnits, sources.HasSources],
    "features": [interfaces.FeatureMap, interfaces.HasLogits, interfaces.HasClassNetwork],
    "metric": [interfaces.Metric, interfaces.EvalContext],
    "logger": [interfaces.Logger],
}  # fmt: skip
"""What is described under each kind of component, the class to derive from first; `_classes` adds what is new."""

HOMES = {
    "networks": "base",
    "objectives": "loss",
    "sampling": "sampler",
    "datasets": "dataset",
    "units": "dataset",
    "scoring": "metric",
    "loggers": "logger",
}
"""The kind under which the other classes of a module of `gebm_kit.core` are described."""

MARKS = [components.Component, components.Range, components.OfKind, components.Injected]

SPECIAL = ("__call__", "__len__")


def page() -> str:
    """Return the whole page."""
    rows = "\n".join(
        f"| [{kind}](#{kind}) | `{SECTIONS[kind][0].__name__}` | `{CHECKS[kind].__name__}` | [example](#example-{kind}) |"
        for kind in KINDS
    )
    table = f"| kind | derive from | check with `gebm_kit.testing` | |\n|---|---|---|---|\n{rows}\n"
    return "\n".join([HEADER, table, *(_section(kind) for kind in KINDS), _rest()])


def _classes(kind: str) -> list[Any]:
    """Return the classes to describe under a kind."""
    listed = [cls for classes in SECTIONS.values() for cls in classes]
    public = [member for name in interfaces.__all__ if isinstance(member := getattr(interfaces, name), type)]
    new = [cls for cls in public if cls not in listed and HOMES[cls.__module__.rpartition(".")[2]] == kind]
    return SECTIONS[kind] + new


def _section(kind: str) -> str:
    names = names_of(f"my-{kind}", kind)
    check = _doc(inspect.getdoc(CHECKS[kind]) or "", skip=("Example:",))
    parts = [f"## {kind}\n", INTRODUCTIONS[kind] + "\n", *map(_class, _classes(kind))]
    parts += [f"### What is checked: {kind}\n", f"**`{_signature(CHECKS[kind])}`**\n\n{check}\n"]
    parts += [
        f"### Example: {kind}\n",
        f"`gebm-kit plugins new {names.distribution} --kind {kind}` writes this component to",
    ]
    parts += [f"`src/{names.package}/{kind}.py`:\n", f"```python\n{component_module(names)}```\n"]
    parts += [f"and these tests to `tests/test_{names.package}.py`:\n", f"```python\n{check_module(names)}```\n"]
    return "\n".join(parts)


def _rest() -> str:
    """Return the part about parameters, and about names that are no classes."""
    parts = ["## Parameters of a constructor\n", "These are in `gebm_kit.core.components`.\n", *map(_class, MARKS)]
    parts += [
        _function(components.check_arguments.__name__, components.check_arguments, ""),
        "| injected name | meaning |",
    ]
    parts += ["|---|---|", *(f"| `{name}` | {text} |" for name, text in components.INJECTED.items()), ""]
    parts += ["## Other names\n"]
    parts += [
        f"- `DIVERGENCE_THRESHOLD` = {interfaces.DIVERGENCE_THRESHOLD:g}: energy error above which a proposal diverged."
    ]
    for name in ("Part", "SplitName"):
        words = ", ".join(f"`{word}`" for word in typing.get_args(getattr(interfaces, name)))
        parts.append(f"- `{name}`: one of {words}.")
    summary = (inspect.getdoc(interfaces.named_scalars) or "").splitlines()[0]
    parts += [f"- `{_signature(interfaces.named_scalars)}`: {summary}", ""]
    return "\n".join(parts)


# --- one class -------------------------------------------------------------------------------------------------------
def _class(cls: type) -> str:
    kind = "protocol" if getattr(cls, "_is_protocol", False) else "record" if _is_record(cls) else "class"
    home = "" if cls.__name__ in interfaces.__all__ or cls in MARKS else f", `{cls.__module__}`"
    doc = inspect.getdoc(cls) if cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}(") else ""
    parts = [f"### `{cls.__name__}`\n", f"*A {kind}{home}.* {_doc(doc or '', skip=('Attributes:',))}\n"]
    if fields := _fields(cls):
        parts += ["| field | type | default | meaning |", "|---|---|---|---|", *fields, ""]
    for name, member in vars(cls).items():
        function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        shown = not name.startswith("_") or (name in SPECIAL and not _is_record(cls))
        if inspect.isfunction(function) and shown and not (_is_record(cls) and name in ("_asdict", "_replace")):
            parts.append(
                _function(name, function, "class method" if isinstance(member, classmethod) else _duty(cls, function))
            )
    return "\n".join(parts)


def _is_record(cls: type) -> bool:
    return dataclasses.is_dataclass(cls) or hasattr(cls, "_fields")


def _duty(cls: type, function: Any) -> str:
    if getattr(cls, "_is_protocol", False) or getattr(function, "__isabstractmethod__", False):
        return "required"
    return "to implement" if "raise NotImplementedError" in inspect.getsource(function) else ""


def _fields(cls: type) -> list[str]:
    """Return a table's row for each field, class attribute and property."""
    texts: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        if owner.__module__.startswith("gebm_kit"):
            texts |= _written_beside(owner) | _entries(inspect.cleandoc(owner.__doc__ or ""), "Attributes:")
    rows = []
    for name, annotation in vars(cls).get("__annotations__", {}).items():
        if not name.startswith("_"):
            kind = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
            kind = re.sub(r"^ClassVar\[(.*)\]$", r"\1", re.sub(r"ForwardRef\('(.*)'\)", r"\1", kind))
            rows.append(_row(name, kind, _default(cls, name), texts.get(name, "")))
    for name, member in vars(cls).items():
        if isinstance(member, property) and not name.startswith("_"):
            kind = str(member.fget.__annotations__.get("return", "")) if member.fget else ""
            rows.append(_row(name, kind, "", texts.get(name) or " ".join((inspect.getdoc(member) or "").split())))
    return rows


def _written_beside(cls: type) -> dict[str, str]:
    """Return what is said of fields in a text below them or a comment behind them."""
    source = textwrap.dedent(inspect.getsource(cls))
    (tree,), lines = ast.parse(source).body, source.splitlines()
    found: dict[str, str] = {}
    for field, after in itertools.pairwise([*getattr(tree, "body", []), ast.Pass()]):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            said = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            comment = lines[(field.end_lineno or 1) - 1].partition("  # ")[2]
            found |= {field.target.id: " ".join(str(said or comment).split())} if said or comment else {}
    return found


def _row(name: str, kind: str, default: str, text: str) -> str:
    kind = kind.replace("|", "\\|")
    return f"| `{name}` | `{kind}` | {default} | {text.replace('``', '`').replace('|', chr(92) + '|')} |"


def _default(cls: type, name: str) -> str:
    if dataclasses.is_dataclass(cls):
        field = next((f for f in dataclasses.fields(cls) if f.name == name), None)
        if field is not None and field.default_factory is not dataclasses.MISSING:
            return f"`{field.default_factory()!r}`"
        return "" if field is None or field.default is dataclasses.MISSING else f"`{field.default!r}`"
    defaults = getattr(cls, "_field_defaults", None)
    value = (
        defaults.get(name, inspect.Parameter.empty)
        if defaults is not None
        else vars(cls).get(name, inspect.Parameter.empty)
    )
    if isinstance(value, frozenset):
        return f"`{{{', '.join(repr(item) for item in sorted(value))}}}`"
    return "" if value is inspect.Parameter.empty else f"`{value!r}`"


def _function(name: str, function: Any, duty: str) -> str:
    call = "" if name == "__call__" else name
    doc = _doc(inspect.getdoc(function) or "", skip=("Example:",))
    return f"**`{_signature(function, call)}`**{f' *{duty}*' if duty else ''}\n\n{doc}\n"


def _signature(function: Any, name: str | None = None) -> str:
    """Return a function's name and parameters as they are written, without ``self``."""
    signature = inspect.signature(function)
    kept = [parameter for parameter in signature.parameters.values() if parameter.name not in ("self", "cls")]
    text = str(signature.replace(parameters=kept))
    return (function.__name__ if name is None else name) + text.replace("'", "")


# --- docstrings ------------------------------------------------------------------------------------------------------
def _entries(doc: str, title: str) -> dict[str, str]:
    """Return the entries of a docstring's section, each text on one line."""
    found: dict[str, str] = {}
    names: list[str] = []
    block = re.split(r"\n(?=\S)", doc.partition(f"{title}\n")[2])[0] if f"{title}\n" in doc else ""
    for line in block.splitlines():
        entry = re.fullmatch(r" {4}([A-Za-z_]\w*(?:, [A-Za-z_]\w*)*): (.*)", line)
        if entry:
            names = entry[1].split(", ")
            found |= dict.fromkeys(names, entry[2])
        elif line.strip():
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def _doc(doc: str, *, skip: tuple[str, ...] = ()) -> str:
    """Return a docstring as Markdown; sections of entries become lists."""
    parts = []
    for block in re.split(r"\n\n(?=\S)", doc):
        title = block.splitlines()[0].strip() if block else ""
        if title in skip:
            continue
        if title in ("Args:", "Raises:", "Attributes:", "Returns:"):
            lines = re.sub(r"\n {8}", " ", block).splitlines()[1:]
            entries = [re.sub(r"^([\w, ]+): ", r"`\1`: ", line.strip()) for line in lines if line.strip()]
            parts.append("\n".join([f"{title}\n", *(f"- {entry}" for entry in entries)]))
        else:
            parts.append(re.sub(r"::\n", ":\n", block))
    return "\n\n".join(parts).replace("``", "`")
