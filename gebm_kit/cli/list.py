"""``gebm-kit list``: the installed components."""

from __future__ import annotations

from typing import Annotated

import typer

from gebm_kit.cli import ui
from gebm_kit.cli.completion import complete_kind
from gebm_kit.cli.options import Debug, Json, Quiet
from gebm_kit.core.components import KINDS
from gebm_kit.core.errors import UsageError, nearest
from gebm_kit.core.plugins import installed


def list_components(
    kind: Annotated[
        str | None,
        typer.Argument(metavar="KIND", help=f"One of {', '.join(KINDS)}.", autocompletion=complete_kind),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """List the installed components, built-in and from plugins."""
    say = ui.Ui(json=json, quiet=quiet, debug=debug)
    if kind is not None and kind not in KINDS:
        raise UsageError(f"component kind {kind!r} is unknown; {nearest(kind, KINDS)}")
    found = installed()
    records = [r for r in found.registry if kind is None or r.component.kind == kind]
    payload = {
        "components": [
            {
                "kind": r.component.kind,
                "name": r.component.name,
                "summary": r.component.summary,
                "target": r.component.target,
                "distribution": r.distribution,
                "version": r.version,
            }
            for r in records
        ]
    }
    records.sort(key=lambda r: KINDS.index(r.component.kind))
    rows = [
        [r.component.kind, found.registry.short_name(r), f"{r.distribution} {r.version}".strip(), r.component.summary]
        for r in records
    ]
    say.result(payload, lambda: ui.table("", ["kind", "name", "from", "summary"], rows))
