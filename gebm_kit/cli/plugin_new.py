"""``gebm-kit plugins new``: a plugin package of one component, with its tests."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from gebm_kit.cli import ui
from gebm_kit.cli.completion import complete_kind
from gebm_kit.cli.options import Debug, Json, Quiet, place
from gebm_kit.core.components import KINDS


def new(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of the package and of its component, such as my-sampler.")
    ],
    kind: Annotated[
        str,
        typer.Option(
            "--kind", metavar="KIND", help=f"Kind of the component: {', '.join(KINDS)}.", autocompletion=complete_kind
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", parser=place("--out"), help="The package's directory; default: ./NAME."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a plugin package of one component: a working example with its hook, tests, README and CI workflow.

    It can be installed and tested at once. An existing directory is never touched.
    """
    from gebm_kit.core.plugins import installed
    from gebm_kit.scaffold.names import check_free, names_of
    from gebm_kit.scaffold.package import write_package

    say = ui.Ui(json=json, quiet=quiet, debug=debug)
    names = names_of(name, kind)
    check_free(names, installed().registry)
    folder = Path(names.distribution) if out is None else out
    files = write_package(names, folder)
    payload = {
        "name": names.distribution,
        "kind": names.kind,
        "component": names.component,
        "package": names.package,
        "path": str(folder),
        "files": files,
    }
    where = str(folder) if folder.is_absolute() else f"./{folder}"  # pip takes a bare word for a package's name

    def show() -> None:
        ui.text(f"{folder}: the {names.kind} {names.component!r}, in {len(files)} files")
        ui.text(f"  pip install -e {shlex.quote(where)}")
        ui.text(f"  pytest {shlex.quote(where)}")
        ui.text(f"  gebm-kit plugins check {names.distribution}")

    say.result(payload, show)
