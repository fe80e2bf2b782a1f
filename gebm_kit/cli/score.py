"""``gebm-kit score``: how unlike the data the rows of a file are under a trained run."""

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

OVERRIDABLE = ("eval", "sample", "nll")
"""Sections of the recipe that ``gebm-kit score`` can override."""


def score(
    words: RunFileWords,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            parser=place("--out"),
            help="A .csv or .npz, replaced if it is there; default: RUN/scores/<FILE>.csv.",
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
    """Write the energy of every row of FILE under a RUN and, where known, its log-density and class probabilities."""
    say = ui.Ui(json=json, quiet=quiet, debug=debug)
    set_trust(trust_program, trust_paths)
    given = given_rows(words, "score")
    only_sections(given.overrides, OVERRIDABLE, "gebm-kit score")
    set_up_cpu(threads)
    from gebm_kit.cli.results import INDENT, show_class_rows, show_log_partition
    from gebm_kit.engine.likelihood.run_data import known_data
    from gebm_kit.engine.score import check_score_output, row_scores

    if out is not None:
        check_score_output(out)
    run = find_run(given.run, say, checkpoint)
    label = class_of_words(class_words, run.model, EVERY_CLASS)
    recipe = sampling_recipe(run, given.overrides)
    found = compute_rows(row_scores, given, key, run, known_data(run), recipe, device, say, label, bad_rows)
    payload = {**found.as_dict(), **class_key(label), **save_rows(found, given, run, out, "scores")}
    for text in found.warnings:
        say.warn(text)

    def show() -> None:
        text = f"{len(found)} rows"
        if found.energy is not None:
            text += f", mean energy {ui.number(payload['mean_energy'])}"
        if found.log_partition is not None:
            show_log_partition(found.log_partition.as_dict())
        if found.log_density is not None:
            text += f", mean log-density {ui.number(payload['mean_log_density'])} nats ({found.space})"
        ui.text(text)
        if found.classes is not None:
            show_class_rows(payload["classes"])
        if (by := payload["rank_by"]) is not None:
            first = ", ".join(map(str, payload["most_unlikely"]))
            ui.sentence(f"rank by {by['column']}, {by['most_unlikely']} first: {by['reason']}", INDENT)
            ui.sentence(f"most unlikely rows: {first}", INDENT)
        ui.text(f"scores: {payload['out']}")

    say.result(payload, show)
