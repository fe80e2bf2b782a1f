"""``gebm-kit plugins check``: the conformance checks of every component of installed plugins."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Annotated, Any

import typer

from gebm_kit.cli import ui
from gebm_kit.cli.completion import complete_plugin
from gebm_kit.cli.options import Debug, Json, Quiet
from gebm_kit.core.components import canonical
from gebm_kit.core.errors import PluginError, UsageError, nearest
from gebm_kit.core.plugins import PluginStatus, installed

PASSED = "Every check passed."
"""What the table says of a component without a fault."""


def check(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="A plugin's distribution or entry point; default: all plugins.",
            autocompletion=complete_plugin,
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Check every component of a plugin: its signature, and what its kind must do as far as it can be built.

    The exit code is 3 if a check fails.
    """
    say = ui.Ui(json=json, quiet=quiet, debug=debug)
    found = installed()
    chosen = [p for p in found.report if name is None or canonical(name) in map(canonical, (p.distribution, p.name))]
    if name is not None and not chosen:
        choices = [p.distribution for p in found.report]
        raise UsageError(f"no plugin {name!r} is installed; {nearest(name, choices)}")
    results = [(plugin, _outcomes(plugin, say)) for plugin in chosen]
    payload = {
        "plugins": [
            {
                "name": plugin.name,
                "distribution": plugin.distribution,
                "version": plugin.version,
                "state": plugin.state,
                "error": plugin.error,
                "components": outcomes,
            }
            for plugin, outcomes in results
        ]
    }
    say.result(payload, lambda: _show(results))
    wrong = sum(o["state"] == "failed" for _, outcomes in results for o in outcomes)
    if wrong or any(plugin.state == "failed" for plugin in chosen):
        raise typer.Exit(PluginError.exit_code)


def _outcomes(plugin: PluginStatus, say: ui.Ui) -> list[dict[str, Any]]:
    """Check the components of one plugin."""
    from gebm_kit.testing.registered import check_registered

    registry = installed().registry
    outcomes = []
    for word in plugin.components:
        kind, _, name = word.partition(":")
        record = registry.get(kind, f"{plugin.distribution}:{name}")
        if canonical(record.distribution) == canonical(plugin.distribution):
            say.note(f"checking {kind} {record.address}")
            outcome = dataclasses.asdict(check_registered(record))
            outcome.pop("distribution")
            outcomes.append(outcome)
    return outcomes


def _show(results: list[tuple[PluginStatus, list[dict[str, Any]]]]) -> None:
    if not results:
        ui.text("no plugins are installed")
        return
    rows = []
    for plugin, outcomes in results:
        if plugin.state != "ok":
            rows.append([plugin.distribution, "", "", "", plugin.state, plugin.error])
        elif not outcomes:
            rows.append([plugin.distribution, "", "", "", plugin.state, "It has no components."])
        rows += [
            [plugin.distribution, o["kind"], o["name"], ", ".join(o["checks"]), o["state"], o["detail"] or PASSED]
            for o in outcomes
        ]
    ui.table("", ["plugin", "kind", "name", "checks", "result", "what was found"], rows)
    for state, count in Counter(o["state"] for _, outcomes in results for o in outcomes).items():
        ui.text(f"{state}: {count}")
