"""``gebm-kit plugins``: the plugin packages that were found, and whether they loaded."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from gebm_kit.cli import ui
from gebm_kit.cli.completion import complete_plugin
from gebm_kit.cli.options import Debug, Json, Quiet
from gebm_kit.core.components import canonical
from gebm_kit.core.errors import UsageError, nearest
from gebm_kit.core.plugins import PluginStatus, installed

app = typer.Typer(help="Inspect the installed plugin packages.", rich_markup_mode="rich")


@app.command("list")
def list_plugins(json: Json = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """List the plugins that were found: loaded, failed or blocked."""
    say = ui.Ui(json=json, quiet=quiet, debug=debug)
    report = installed().report

    def show() -> None:
        if not report.plugins:
            ui.text("no plugins are installed")
            return
        rows = [[p.distribution, p.version, p.state, " ".join(p.components) or p.error] for p in report]
        ui.table("", ["distribution", "version", "state", "provides"], rows)

    say.result({"plugins": [_as_dict(p) for p in report]}, show)


@app.command("info")
def info(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="The plugin's distribution or entry point.", autocompletion=complete_plugin
        ),
    ],
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show one plugin: where it is, what it provides, and why it failed if it did."""
    say = ui.Ui(json=json, quiet=quiet, debug=debug)
    report = installed().report
    found = [p for p in report if canonical(name) in map(canonical, (p.distribution, p.name))]
    if not found:
        choices = [p.distribution for p in report]
        raise UsageError(f"no plugin {name!r} is installed; {nearest(name, choices)}")

    def show() -> None:
        for plugin in found:
            for key, value in _as_dict(plugin).items():
                ui.text(f"{key:<13} {', '.join(value) if isinstance(value, list) else value}".rstrip())

    say.result({"plugins": [_as_dict(p) for p in found]}, show)


def _as_dict(plugin: PluginStatus) -> dict[str, Any]:
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(plugin).items()
    }
