"""``gebm-kit density``: log-densities of the rows of a file under a trained run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gebm_kit.cli import ui
from gebm_kit.cli.options import (
    CheckpointWord,
    Debug,
    Device,
    Json,
    Quiet,
    Threads,
    TrustPaths,
    TrustProgram,
    only_sections,
    place,
    set_trust,
)
from gebm_kit.cli.rows import (
    EVERY_CLASS,
    BadRowsOption,
    BadRowsWord,
    ClassOfRows,
    Key,
    RunFileWords,
    class_key,
    class_of_words,
    compute_rows,
    given_rows,
    save_rows,
)
from gebm_kit.cli.run_options import find_run, sampling_recipe, set_up_cpu
from gebm_kit.core.paths import check_ending

OVERRIDABLE = ("eval", "sample", "nll")
"""Sections of the recipe that ``gebm-kit density`` can override."""


def density(
    words: RunFileWords,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            parser=place("--out"),
            help="A .csv, replaced if it exists; default: RUN/densities/<FILE>.csv.",
        ),
    ] = None,
    key: Key = None,
    class_words: ClassOfRows = None,
    bad_rows: BadRowsOption = BadRowsWord.STOP,
    checkpoint: CheckpointWord = "last",
    trust_program: TrustProgram = False,
    trust_paths: TrustPaths = False,
    device: Device = None,
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write the log-density of every row of FILE under a RUN whose base has a density, and the error of log Z."""
    say = ui.Ui(json=json, quiet=quiet, debug=debug)
    set_trust(trust_program, trust_paths)
    given = given_rows(words, "density")
    only_sections(given.overrides, OVERRIDABLE, "gebm-kit density")
    if out is not None:
        check_ending(out, (".csv",), "--out must be a CSV file", "For example --out densities.csv.")
    set_up_cpu(threads)
    from gebm_kit.cli.results import show_class_rows, show_log_partition
    from gebm_kit.engine.likelihood.log_densities import check_density, densities
    from gebm_kit.engine.likelihood.run_data import known_data

    run = find_run(given.run, say, checkpoint)
    label = class_of_words(class_words, run.model, EVERY_CLASS)
    recipe = sampling_recipe(run, given.overrides)
    data = known_data(run)
    check_density(run.model, data, recipe.nll.space)
    found = compute_rows(densities, given, key, run, data, recipe, device, say, label, bad_rows)
    payload = {
        **found.as_dict(),
        "mean_log_density": found.gebm.mean().item(),
        **class_key(label),
        **save_rows(found, given, run, out, "densities"),
    }

    def show() -> None:
        if found.log_partition is not None:
            show_log_partition(found.log_partition.as_dict())
        mean = ui.number(payload["mean_log_density"])
        ui.text(f"{len(found.gebm)} rows, mean log-density {mean} nats ({found.space})")
        if found.classes is not None:
            show_class_rows(payload["classes"])
        ui.text(f"log-densities: {payload['out']}")

    say.result(payload, show)
