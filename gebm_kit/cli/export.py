"""``gebm-kit export``: write a folder from which a run's model can be drawn without its run directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gebm_kit.cli import ui
from gebm_kit.cli.completion import complete_run_or_override
from gebm_kit.cli.options import (
    CheckpointWord,
    Debug,
    Device,
    Json,
    Quiet,
    Threads,
    TrustProgram,
    place,
    set_trust,
)
from gebm_kit.cli.run_options import set_up_cpu
from gebm_kit.core.reading import amount

Run = Annotated[str, typer.Argument(metavar="RUN", help="A run directory.", autocompletion=complete_run_or_override)]


Folder = Annotated[Path, typer.Argument(metavar="DIR", parser=place("DIR"), help="The folder to write, new or empty.")]


NoProgram = Annotated[
    bool, typer.Option("--no-program", help="Leave out program.pt2, which maps noise to draws by torch alone.")
]


ProgramSteps = Annotated[
    int | None,
    typer.Option(
        "--program-steps",
        metavar="N",
        min=1,
        max=100_000,
        help="Sampler steps of the program; default: those of the recipe's chains, at most 200.",
    ),
]


Licence = Annotated[
    str | None, typer.Option("--license", metavar="NAME", help="Licence of the model, such as mit, for its card.")
]


Force = Annotated[bool, typer.Option("--force", help="Replace an exported folder in DIR; nothing else is replaced.")]


def export(
    run_word: Run,
    folder: Folder,
    no_program: NoProgram = False,
    program_steps: ProgramSteps = None,
    license: Licence = None,
    force: Force = False,
    checkpoint: CheckpointWord = "last",
    trust_program: TrustProgram = False,
    device: Device = None,
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a folder DIR that holds all that it takes to draw from RUN: weights, recipe, model card, and a program.

    `gebm-kit sample DIR` draws from it, and `gebm-kit push DIR REPO` passes it on.
    """
    say = ui.Ui(json=json, quiet=quiet, debug=debug)
    set_trust(trust_program, False)
    set_up_cpu(threads)
    from gebm_kit.engine.export import export as engine_export
    from gebm_kit.engine.run_directory.run import load_run

    run = load_run(run_word, checkpoint)
    with say.progress() as on_progress:
        found = engine_export(
            run,
            folder,
            program=not no_program,
            program_steps=program_steps,
            license=license,
            force=force,
            device=device,
            on_progress=on_progress,
        )

    def show() -> None:
        ui.table("", ["file", "size"], [[name, amount(size)] for name, size in found.files.items()])
        kernel = found.sampler
        if found.program is not None:
            ui.text(
                f"program: {kernel['steps']} steps of {kernel['name']}; its draws differ from gebm-kit's by at most "
                f"{found.program['largest_difference']:.2g}"
            )
        ui.text(f"exported: {found.path}")

    say.result(found.as_dict(), show)
