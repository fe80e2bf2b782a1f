"""``gebm-kit sample``: draws from a trained run."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gebm_kit.cli import ui
from gebm_kit.cli.options import (
    Debug,
    Device,
    Json,
    OverrideWords,
    Quiet,
    RunWord,
    Threads,
    complete_sampler,
    find_run,
    only_sections,
    overridden_recipe,
    set_threads,
    split_words,
)
from gebm_kit.cli.results import show_diagnostics, show_figures
from gebm_kit.cli.trace import complete_metric, run_trace, with_long_beta
from gebm_kit.core.errors import GebmKitError, NotConverged

if TYPE_CHECKING:
    from gebm_kit.engine.draws import Draws
    from gebm_kit.engine.run import Run

SECTIONS = ("sampler", "sample")


def sample(
    run_word: RunWord = None,
    override_words: OverrideWords = None,
    sampler: Annotated[
        str | None,
        typer.Option("--sampler", metavar="NAME", help="default: the recipe's", autocompletion=complete_sampler),
    ] = None,
    num_samples: Annotated[
        int | None, typer.Option("--num-samples", metavar="N", min=1, help="draws to keep; default: the recipe's")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="S", min=0, help="default: the recipe's")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="A .safetensors or .npz file; default: a new one in RUN/samples/."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option("--images", metavar="DIR", help="Also write the draws as PNGs, for image data.")
    ] = None,
    require_converged: Annotated[
        bool,
        typer.Option("--require-converged", help="Exit with code 1 when the diagnostics say that the draws are bad."),
    ] = False,
    trace: Annotated[
        str | None,
        typer.Option(
            "--trace",
            metavar="METRIC",
            help="Keep no draws; record METRIC along the chains, for each of inverse_temperature=[...], and draw it.",
            autocompletion=complete_metric,
        ),
    ] = None,
    device: Device = None,
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw from a trained RUN by MCMC in its latent space, and say how good the draws are."""
    say = ui.Ui(json=json, quiet=quiet, debug=debug)
    given = split_words([*filter(None, [run_word]), *(override_words or ())], "RUN")
    given = with_long_beta(given, sweep=trace is not None)
    changes: dict[str, Any] = {"num_samples": num_samples, "seed": seed}
    if trace is not None:
        of_draws = {"--images": images, "--require-converged": require_converged}
        run_trace(trace, given, say, sampler, changes, of_draws, out=out, device=device, threads=threads)
        return
    only_sections(given.overrides, SECTIONS, "gebm-kit sample")
    set_threads(threads)
    from gebm_kit.engine.images import check_images, save_images
    from gebm_kit.engine.sample import check_output, draw, resolve_sampler, settings_of

    run = find_run(given.target, say)
    overrides = given.overrides
    if sampler is not None and sampler != run.recipe.sampler.name:
        overrides = (f"sampler={sampler}", *overrides)  # first, so that sampler.step_size=0.1 is a value of this one
    recipe = overridden_recipe(run, overrides)
    settings = dataclasses.replace(
        settings_of(recipe.sample), **{key: value for key, value in changes.items() if value is not None}
    )
    value_range = _value_range(run)
    if out is not None:
        check_output(out)
    if images is not None:
        check_images(images, run.model.data_shape, value_range)
    kernel = resolve_sampler(None, recipe.sampler, run.model)
    with say.progress() as on_progress:
        draws = draw(run.model, kernel, settings, device=device or run.recipe.device, on_progress=on_progress)
    target = draws.save(out or _new_file(run, recipe.sampler.name, settings.seed), value_range)
    if images is not None and value_range is not None:
        save_images(draws.x, images, value_range)
    figures = _figures(run, draws, say)
    payload = {
        **draws.diagnostics.as_dict(),
        "out": str(target),
        "run": str(run.path),
        "images": str(images) if images else None,
        "figures": figures,
    }

    def show() -> None:
        show_diagnostics(draws.diagnostics)
        if images is not None:
            ui.text(f"images: {images}")
        show_figures(figures)
        ui.text(f"draws: {target}")

    refused = require_converged and not draws.diagnostics.converged
    if not (json and refused):  # the error is that one object on stdout
        say.result(payload, show)
    if refused:
        text = "the draws were written, but their diagnostics are bad:"
        raise NotConverged(text, problems=draws.diagnostics.problems, hint=f"They are in {target}.")


def _figures(run: Run, draws: Draws, say: ui.Ui) -> list[str]:
    """Pictures of the chains in RUN/figures; that they can't be written takes nothing from the draws."""
    from gebm_kit.engine.sample_figures import draw_chains

    try:
        return [str(path) for path in draw_chains(run.path / "figures", draws.records)]
    except GebmKitError as error:
        say.warn(f"no pictures of the chains: {error.message}")
        return []


def _value_range(run: Run) -> tuple[float, float] | None:
    """The data's value range, from the checkpoint, so that sampling needs no data."""
    found = run.checkpoint.state["facts"].get("value_range")
    return None if found is None else (float(found[0]), float(found[1]))


def _new_file(run: Run, sampler: str, seed: int) -> Path:
    """A name in RUN/samples that is not taken."""
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    stem = f"{sampler.replace(':', '-')}-seed{seed}-{stamp}"
    path = run.path / "samples" / f"{stem}.safetensors"
    attempt = 1
    while path.exists():
        attempt += 1
        path = path.with_name(f"{stem}-{attempt}.safetensors")
    return path
