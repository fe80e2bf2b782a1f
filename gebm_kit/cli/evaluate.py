"""``gebm-kit eval``: how good a trained run's draws are, compared with draws of its base and held-out data."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated

import typer

from gebm_kit.cli import ui
from gebm_kit.cli.options import (
    CheckpointWord,
    Debug,
    Device,
    Json,
    Quiet,
    RunOverrideWords,
    RunWord,
    Threads,
    TrustPaths,
    TrustProgram,
    only_sections,
    set_trust,
    words_on_run,
)
from gebm_kit.cli.run_options import find_run, overridden_recipe, set_up_cpu
from gebm_kit.core.errors import UsageError

Budget = Annotated[
    float | None,
    typer.Option(
        "--budget",
        metavar="SECONDS",
        help="Seconds that the evaluation may take; default: eval.budget, else a third of the training time.",
    ),
]

OVERRIDABLE = ("eval", "sampler", "sample", "nll")
"""Sections of the recipe that ``gebm-kit eval`` can override."""


def evaluate(
    run_word: RunWord = None,
    override_words: RunOverrideWords = None,
    checkpoint: CheckpointWord = "last",
    budget: Budget = None,
    trust_program: TrustProgram = False,
    trust_paths: TrustPaths = False,
    device: Device = None,
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Score held-out data, the base and the GEBM of a RUN, with 95 % intervals, and redraw the pictures."""
    say = ui.Ui(json=json, quiet=quiet, debug=debug)
    if budget is not None and not 0 < budget < math.inf:
        raise UsageError(f"--budget must be a number of seconds above 0, got {budget:g}")
    set_trust(trust_program, trust_paths)
    given = words_on_run(run_word, override_words)
    only_sections(given.overrides, OVERRIDABLE, "gebm-kit eval")
    set_up_cpu(threads)
    from gebm_kit.cli.results import show_evaluation, show_figures, show_report
    from gebm_kit.engine.evaluation.evaluation import score_recipe
    from gebm_kit.engine.evaluation.evaluation_files import write_report
    from gebm_kit.engine.process.devices import resolve_device
    from gebm_kit.engine.process.distributed import joined_ranks
    from gebm_kit.engine.process.torchrun import first_rank, local_device
    from gebm_kit.engine.reporting.write import written_at_the_end

    run = find_run(given.target, say, checkpoint)
    recipe = overridden_recipe(run, given.overrides)
    if budget is not None:
        recipe = replace(recipe, eval=replace(recipe.eval, budget=budget))
    where = resolve_device(local_device(device or recipe.device))
    with joined_ranks(work="evaluation") as ranks, ranks.together(), say.progress() as on_progress:
        evaluation = score_recipe(
            run.model, run.dataset, recipe,
            device=where, training_seconds=run.training_seconds, on_progress=on_progress, ranks=ranks,
        )  # fmt: skip
        figures = [str(path) for path in write_report(run, evaluation)] if ranks.rank == 0 else []
        if ranks.rank == 0:
            written_at_the_end(run, where)
    if not first_rank():
        return
    found = evaluation.as_dict()
    payload = {**found, "run": str(run.path), "checkpoint": str(run.checkpoint.path), "figures": figures}

    def show() -> None:
        show_evaluation(found)
        show_figures(figures)
        show_report(run.path)
        ui.text(f"run: {run.path}")

    say.result(payload, show)
