"""``gebm-kit train``: train a recipe into a run directory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gebm_kit.cli import ui
from gebm_kit.cli.options import (
    Debug,
    Device,
    DryRun,
    Json,
    OverrideWords,
    Quiet,
    RecipeWord,
    ResumeRun,
    RunDirectory,
    Threads,
    TrustPaths,
    TrustProgram,
    set_trust,
    split_words,
)
from gebm_kit.cli.run_options import set_up_cpu
from gebm_kit.core.errors import UsageError
from gebm_kit.core.progress_lines import duration

if TYPE_CHECKING:
    from gebm_kit.engine.run_directory.run import Run


def train(
    recipe_word: RecipeWord,
    override_words: OverrideWords = None,
    out: RunDirectory = None,
    resume: ResumeRun = False,
    dry_run: DryRun = False,
    trust_program: TrustProgram = False,
    trust_paths: TrustPaths = False,
    device: Device = None,
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a base and an energy from a RECIPE, evaluate them and draw pictures.

    Ctrl-C and SIGTERM save the state and print the command that resumes training.
    """
    say = ui.Ui(json=json, quiet=quiet, debug=debug)
    set_trust(trust_program, trust_paths)
    given = split_words([recipe_word, *(override_words or ())], "RECIPE")
    if given.target is None:
        raise UsageError(
            "no RECIPE given, only overrides",
            hint="For example `gebm-kit train quickstart`; `gebm-kit recipes ls` lists the recipes.",
        )
    from gebm_kit.config.load import load_recipe

    recipe = load_recipe(
        given.target, given.overrides
    )  # first, so that a misspelt key is reported before any work is done
    set_up_cpu(threads)
    from gebm_kit.cli.results import show_evaluation, show_figures, show_report
    from gebm_kit.engine.process.torchrun import first_rank
    from gebm_kit.engine.train import train as engine_train
    from gebm_kit.engine.training.dry_run import plan

    if dry_run:
        planned = plan(recipe, device=device)
        if not first_rank():
            return
        say.result(planned, lambda: show_plan(planned))
        return
    with say.progress() as on_progress:
        run = engine_train(recipe, out=out, resume=resume, device=device, on_progress=on_progress)
    if not first_rank():
        return
    evaluation, payload = run.evaluation or {}, train_payload(run)
    figures = payload["figures"]

    def show() -> None:
        ui.text(f"{run.recipe.name}: {run.step} steps in {duration(float(run.status.get('seconds') or 0))}")
        if evaluation:
            show_evaluation(evaluation)
        show_figures(figures)
        show_report(run.path)
        ui.text(f"run: {run.path}")

    say.result(payload, show)


def train_payload(run: Run) -> dict[str, Any]:
    """Return the JSON of a finished run."""
    from gebm_kit.cli.results import figure_paths

    return {
        "run": str(run.path),
        "step": run.step,
        "seconds": run.status.get("seconds"),
        "seed": run.recipe.train.seed,
        "metrics": (run.evaluation or {}).get("metrics", {}),
        "figures": figure_paths(run.figures),
        "checkpoint": str(run.checkpoint.path),
    }


def gradient_line(cost: dict[str, Any]) -> str:
    """Describe what a gradient with respect to one latent code costs."""
    return f"{cost['seconds']:.3g} s and {cost['memory_bytes'] / 2**20:,.1f} MiB for one latent code"


def show_plan(planned: dict[str, Any]) -> None:
    """Print what a dry run found."""
    parameters, data = planned["parameters"], planned["data"]
    ui.text(f"recipe      {planned['recipe']}")
    ui.text(f"device      {planned['device']}")
    state = ", prepared" if data["prepared"] else ", random ones in their place" if data["stand_in"] else ""
    ui.text(f"data        {data['train']:,} training points of shape {tuple(data['shape'])}{state}")
    ui.text("parameters  " + ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in parameters.items()))
    ui.text(f"memory      {planned['memory_bytes'] / 2**20:,.1f} MiB before activations")
    ui.text(f"gradient    {gradient_line(planned['gradient'])}")
    ui.text(f"speed       {planned['steps_per_second']:.3g} steps/s")
    ui.text(f"time        {duration(planned['seconds'])} for {planned['steps']:,} steps, before the evaluation")
