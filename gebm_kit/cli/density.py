"""``gebm-kit density``: log-densities of the rows of a file under a trained run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gebm_kit.cli import ui
from gebm_kit.cli.options import (
    CheckpointWord,
    Debug,
    Device,
    Json,
    Quiet,
    Threads,
    find_run,
    only_sections,
    overridden_recipe,
    set_up_cpu,
)
from gebm_kit.core.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from gebm_kit.engine.run import Run

SECTIONS = ("eval", "sample", "nll")


def density(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[RUN] FILE [KEY=VALUE ...]", help="The run (default: the newest finished one), the rows."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="A .csv, replaced if it is there; default: RUN/densities/<FILE>.csv."
        ),
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", metavar="NAME", help="The array in a .npz or .safetensors FILE.")
    ] = None,
    checkpoint: CheckpointWord = "last",
    device: Device = None,
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write the log-density of every row of FILE under a RUN whose base has a density, with the error of log Z."""
    say = ui.Ui(json=json, quiet=quiet, debug=debug)
    overrides = tuple(word for word in words if "=" in word)
    places = [word for word in words if "=" not in word]
    if not 1 <= len(places) <= 2:
        raise UsageError(
            f"a FILE, or a RUN and a FILE, are expected, got {len(places)} words: {', '.join(places) or 'none'}",
            hint="For example `gebm-kit density runs/redwine/... rows.csv`.",
        )
    only_sections(overrides, SECTIONS, "gebm-kit density")
    if out is not None and out.suffix.lower() != ".csv":
        raise UsageError(f"--out is a table in CSV format, got {out}", hint="For example --out densities.csv.")
    set_up_cpu(threads)
    from gebm_kit.cli.results import show_log_partition
    from gebm_kit.engine.density import check_density, densities
    from gebm_kit.engine.files import make_directory

    run = find_run(places[0] if len(places) == 2 else None, say, checkpoint)
    recipe = overridden_recipe(run, overrides)
    check_density(run.model, run.dataset, recipe.nll.space)
    file = Path(places[-1])
    rows, names = _read(file, key, run)
    with say.progress() as on_progress:
        found = densities(
            run.model,
            run.dataset,
            rows,
            inverse_temperature=recipe.sample.inverse_temperature,
            space=recipe.nll.space,
            method=recipe.eval.log_partition,
            seed=recipe.eval.seed,
            device=device or recipe.device,
            names=names,
            source=str(file),
            block_size=recipe.sample.block_size,
            on_progress=on_progress,
        )
    place = out or run.path / "densities" / f"{file.stem}.csv"
    make_directory(place.parent)
    found.save(place)
    payload = {
        **found.as_dict(),
        "mean_log_density": found.gebm.mean().item(),
        "run": str(run.path),
        "checkpoint": str(run.checkpoint.path),
        "file": str(file),
        "out": str(place),
    }

    def show() -> None:
        show_log_partition(found.log_partition.as_dict())
        mean = ui.number(payload["mean_log_density"])
        ui.text(f"{len(found.gebm)} rows, mean log-density {mean} nats ({found.space})")
        ui.text(f"log-densities: {place}")

    say.result(payload, show)


def _read(file: Path, key: str | None, run: Run) -> tuple[Tensor, tuple[str, ...]]:
    """Rows of a file and the names of their columns, () for data that are no table. Columns that the run was not trained on
    may hold anything, where they are told apart by name."""
    from gebm_kit.core.interfaces import HasStandardisation
    from gebm_kit.data.columns import column_names, read_table
    from gebm_kit.data.tables import load
    from gebm_kit.engine.rows import columns_of

    if len(run.model.data_shape) != 1:
        return load(file, key, None).rows, ()
    names = column_names(file, key)
    known: object = run.dataset
    wanted = known.columns if isinstance(known, HasStandardisation) else None
    places = range(len(names)) if wanted is None else columns_of(names, wanted, str(file))
    table = read_table(file, key, [names[place] for place in places])
    return table.rows, table.columns
