"""Write docs/components.md and docs/interfaces.md from the code: ``make docs``. A test fails when one is out of date."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

from gebm_kit.core.builtins import FIRST_PARTY
from gebm_kit.core.components import BUILTIN, KINDS, Parameter, Registered, parameters
from gebm_kit.core.plugins import discover

HEADER = """# Components

Every built-in component, by kind. This page is generated from the code by `make docs`; `gebm-kit describe KIND NAME` prints
the whole documentation of one, of plugins' too. Where each kind goes in a recipe: [recipes](recipes.md).
"""

WHERE = {
    "base": "The generator `x = G(z)` with its latent prior. Recipe section `base`.",
    "energy": "The scalar `E(x)`, low on data. Recipe section `energy`.",
    "loss": "Objectives of energy and base. Recipe section `loss`.",
    "penalty": "Regularisers of the energy, one or a list. Recipe keys `train.penalty` and `train.final.penalty`.",
    "sampler": "Latent MCMC. Recipe section `sampler`, `--sampler` on the command line; see [samplers](samplers.md).",
    "dataset": "Data with fixed train, validation and test parts. Recipe section `data`.",
    "features": "Feature maps that metrics compare sets of draws on. Parameter `features` of a metric.",
    "metric": "Figures of merit of draws. Recipe key `eval.metrics`.",
    "logger": "Where a run's numbers, pictures and tables go. Recipe key `loggers`; see [trackers](trackers.md).",
}


PAGES = {("gebm-kit-flows", "base"): "flows", ("gebm-kit-flows", "energy"): "flows"}
PAGES |= {
    ("gebm-kit-inception", "features"): "metrics",
    ("gebm-kit-hf", "dataset"): "data",
    ("gebm-kit-hf", "base"): "generator",
}
"""Where what a plugin package of this project brings, of each kind, is described."""


def page() -> str:
    """The whole page."""
    registry = discover({}, []).registry
    parts = [HEADER]
    for kind in KINDS:
        parts.append(f"## {kind}\n\n{WHERE[kind]}\n")
        parts += [_component(r) for r in registry.of_kind(kind) if r.distribution == BUILTIN]
        for package, brought in FIRST_PARTY.items():
            names = [f"`{name}`" for of_kind, name in brought if of_kind == kind]
            if names:
                where = PAGES[package, kind]
                parts.append(f"The plugin package `{package}` adds {', '.join(names)}; see [{where}]({where}.md).\n")
    return "\n".join(parts)


def _component(record: Registered) -> str:
    target = record.load()
    doc = inspect.cleandoc(target.__doc__ or "").split("\n\n")[0]
    rows = [_row(p) for p in parameters(target).values() if not p.injected]
    table = (
        "| parameter | type | default | allowed |\n|---|---|---|---|\n" + "\n".join(rows) if rows else "No parameters."
    )
    formula = doc if "``" not in doc else doc.replace("``", "`")
    return f"### `{record.component.name}`\n\n{record.component.summary}.\n\n{formula}\n\n{table}\n"


def _row(parameter: Parameter) -> str:
    default = "required" if parameter.required else "null" if parameter.default is None else f"`{parameter.default}`"
    allowed = str(parameter.range) if parameter.range is not None else ""
    return f"| `{parameter.name}` | {parameter.type_name} | {default} | {allowed} |"


if __name__ == "__main__":
    import generate_interfaces

    for name, text in (("components.md", page()), ("interfaces.md", generate_interfaces.page())):
        path = Path(__file__).parent / name
        path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"wrote {path}\n")
