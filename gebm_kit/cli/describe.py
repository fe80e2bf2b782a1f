"""``gebm-kit describe``: one component, its parameters and its documentation."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer

from gebm_kit.cli import ui
from gebm_kit.cli.completion import complete_component, complete_kind
from gebm_kit.cli.options import Debug, Json, Quiet
from gebm_kit.core.components import INJECTED, KINDS, Parameter, parameters
from gebm_kit.core.errors import UsageError, nearest
from gebm_kit.core.plugins import installed


def describe(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help=f"One of {', '.join(KINDS)}.", autocompletion=complete_kind)
    ],
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="The component's name, as `gebm-kit list` shows it.",
            autocompletion=complete_component,
        ),
    ],
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Describe a component: its parameters with type, default and range, and its documentation."""
    say = ui.Ui(json=json, quiet=quiet, debug=debug)
    if kind not in KINDS:
        raise UsageError(f"component kind {kind!r} is unknown; {nearest(kind, KINDS)}")
    record = installed().registry.get(kind, name)
    target = record.load()
    described = [_parameter(p) for p in parameters(target).values()]
    doc = inspect.cleandoc(target.__doc__ or "")
    component = record.component
    payload = {
        "kind": kind,
        "name": component.name,
        "summary": component.summary,
        "target": component.target,
        "distribution": record.distribution,
        "version": record.version,
        "parameters": described,
        "doc": doc,
    }

    def show() -> None:
        ui.text(f"{kind} {component.name}: {component.summary}")
        ui.text(f"{component.target}, from {record.distribution} {record.version}".rstrip())
        ui.text()
        if described:
            rows = [[p["name"], p["type"], _default(p), p["range"] or ""] for p in described]
            ui.table("", ["parameter", "type", "default", "allowed"], rows)
        else:
            ui.text("no parameters")
        if doc:
            ui.text()
            ui.text(doc)

    say.result(payload, show)


def _parameter(parameter: Parameter) -> dict[str, Any]:
    given = parameter.default is not inspect.Parameter.empty and not parameter.injected
    return {
        "name": parameter.name,
        "type": parameter.type_name,
        "default": parameter.default if given else None,
        "required": parameter.required,
        "range": str(parameter.range) if parameter.range is not None else None,
        "injected": parameter.injected,
        "meaning": INJECTED[parameter.name] if parameter.injected else None,
    }


def _default(described: dict[str, Any]) -> str:
    if described["injected"]:
        return "(filled in by the kit)"
    if described["required"]:
        return "(required)"
    default = described["default"]
    return "null" if default is None else str(default)
