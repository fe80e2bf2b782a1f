"""``gebm-kit push``: pass an exported folder on through a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gebm_kit.cli import ui
from gebm_kit.cli.options import Debug, Json, Quiet, place

Folder = Annotated[
    Path, typer.Argument(metavar="DIR", parser=place("DIR"), help="A folder that gebm-kit export wrote.")
]


Repository = Annotated[
    str, typer.Argument(metavar="REPO", help="OWNER/NAME on the Hugging Face hub, perhaps with @BRANCH after it.")
]


WithProgram = Annotated[
    bool, typer.Option("--with-program", help="Push program.pt2 too, which is code to whoever loads it.")
]


Private = Annotated[
    bool | None, typer.Option("--private/--public", help="Whether a new repository is private; default: the hub's.")
]


def push(
    folder: Folder,
    repository: Repository,
    with_program: WithProgram = False,
    private: Private = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Push DIR, an exported folder, to the repository REPO; `gk.load("hub://REPO")` loads it anywhere.

    Needs the plugin gebm-kit-hf, and a login: `hf auth login`.
    """
    say = ui.Ui(json=json, quiet=quiet, debug=debug)
    from gebm_kit.engine.export import push as engine_push

    found = engine_push(folder, repository, program=with_program, private=private)

    def show() -> None:
        ui.text(f"pushed {len(found['files'])} files: {found['url']}")
        ui.text(f'load them with gk.load("hub://{found["repository"]}")')

    say.result(found, show)
