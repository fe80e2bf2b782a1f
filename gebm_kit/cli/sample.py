"""``gebm-kit sample``: draws from a trained run."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gebm_kit.cli import ui
from gebm_kit.cli.options import (
    CheckpointWord,
    Debug,
    Device,
    Json,
    OverrideWords,
    Quiet,
    RunWord,
    Threads,
    TrustProgram,
    complete_sampler,
    only_sections,
    set_trust,
    split_words,
)
from gebm_kit.cli.results import show_diagnostics, show_figures
from gebm_kit.cli.run_options import find_run, overridden_recipe, set_up_cpu
from gebm_kit.cli.trace import complete_metric, run_trace, with_long_beta
from gebm_kit.core.errors import GebmKitError, NotConverged, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from gebm_kit.config.schema import Recipe
    from gebm_kit.engine.run_directory.run import Run
    from gebm_kit.engine.sampling.draws import Draws
    from gebm_kit.engine.sampling.settings import SampleSettings
    from gebm_kit.engine.sampling.shards import ShardedDraws

SECTIONS = ("sampler", "sample")


class Start(enum.StrEnum):
    """Where chains start."""

    PRIOR = "prior"
    DATA = "data"


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
        typer.Option(
            "--out",
            metavar="FILE|DIR",
            help="A .safetensors or .npz file, or, without a suffix, a directory of shards; default: new in RUN/samples/.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the shards of an interrupted sampling; begin when there are none."),
    ] = False,
    images: Annotated[
        Path | None, typer.Option("--images", metavar="DIR", help="Also write the draws as PNGs, for image data.")
    ] = None,
    require_converged: Annotated[
        bool,
        typer.Option("--require-converged", help="Exit with code 1 when the diagnostics say that the draws are bad."),
    ] = False,
    start: Annotated[
        Start,
        typer.Option("--start", help="Where chains start: at draws of the prior, or at encodings of training rows."),
    ] = Start.PRIOR,
    trace: Annotated[
        str | None,
        typer.Option(
            "--trace",
            metavar="METRIC",
            help="Keep no draws; record METRIC along the chains, for each of inverse_temperature=[...], and draw it.",
            autocompletion=complete_metric,
        ),
    ] = None,
    checkpoint: CheckpointWord = "last",
    trust_program: TrustProgram = False,
    device: Device = None,
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw from a trained RUN by MCMC in its latent space, and say how good the draws are."""
    say = ui.Ui(json=json, quiet=quiet, debug=debug)
    set_trust(trust_program)
    given = split_words([*filter(None, [run_word]), *(override_words or ())], "RUN")
    given = with_long_beta(given, sweep=trace is not None)
    changes: dict[str, Any] = {"num_samples": num_samples, "seed": seed}
    if trace is not None:
        if resume:
            raise UsageError(
                "--trace keeps no draws, so there is nothing to --resume", hint="Leave out one of the two."
            )
        of_draws = {"--images": images, "--require-converged": require_converged, "--start": start == Start.DATA}
        run_trace(
            trace,
            given,
            say,
            sampler,
            changes,
            of_draws,
            checkpoint=checkpoint,
            out=out,
            device=device,
            threads=threads,
        )
        return
    only_sections(given.overrides, SECTIONS, "gebm-kit sample")
    set_up_cpu(threads)
    from gebm_kit.engine.process.distributed import first_rank

    run = find_run(given.target, say, checkpoint)
    overrides = given.overrides
    if sampler is not None and sampler != run.recipe.sampler.name:
        overrides = (f"sampler={sampler}", *overrides)  # first, so that sampler.step_size=0.1 is a value of this one
    recipe = overridden_recipe(run, overrides)
    place, draws = _drawn(run, recipe, overrides, changes, out, images, say, resume=resume, device=device, start=start)
    if not first_rank():
        return
    figures = _figures(run, draws, say)
    refused = require_converged and not draws.diagnostics.converged
    if not (json and refused):  # the error is that one object on stdout
        _show(say, run, place, draws, images, figures)
    if refused:
        text = "the draws were written, but their diagnostics are bad:"
        raise NotConverged(text, problems=draws.diagnostics.problems, hint=f"They are in {place}.")


def _drawn(
    run: Run,
    recipe: Recipe,
    overrides: Sequence[str],
    changes: Mapping[str, Any],
    out: Path | None,
    images: Path | None,
    say: ui.Ui,
    *,
    resume: bool,
    device: str | None,
    start: Start,
) -> tuple[Path, Draws | ShardedDraws]:
    """The draws, and where they have been written."""
    from gebm_kit.engine.figures.png_files import check_images, save_images
    from gebm_kit.engine.process.distributed import joined_ranks, local_device
    from gebm_kit.engine.sampling.draw import draw_to
    from gebm_kit.engine.sampling.settings import resolve_sampler, settings_of

    settings = dataclasses.replace(
        settings_of(recipe.sample), **{key: value for key, value in changes.items() if value is not None}
    )
    if images is not None:
        check_images(images, run.model.data_shape, run.value_range)
    kernel = resolve_sampler(None, recipe.sampler, run.model)
    rows = _training_rows(run, settings) if start == Start.DATA else None
    with joined_ranks() as ranks, ranks.together(), say.progress() as on_progress:
        place = Path(ranks.from_first(str(out or _new_place(run, recipe.sampler.name, settings, resume=resume))))
        draws = draw_to(
            place,
            run.model,
            kernel,
            settings,
            resume=resume,
            value_range=run.value_range,
            device=local_device(device or run.recipe.device),
            on_progress=on_progress,
            ranks=ranks,
            start=rows,
            hint=f"Go on with `{_resuming(run, overrides, settings, place, device, start)}`.",
        )
        if images is not None and run.value_range is not None and ranks.rank == 0:
            save_images(draws.pictures(), settings.num_samples, images, run.value_range)
    return place, draws


def _training_rows(run: Run, settings: SampleSettings) -> Tensor:
    """One for each chain, chosen at random by the seed."""
    import torch

    from gebm_kit.core.seeds import stream

    train = run.dataset.split("train")
    order = torch.randperm(len(train), generator=stream(settings.seed, "sample", "start"))
    return train.batch(order[: settings.num_chains])


def _show(
    say: ui.Ui, run: Run, place: Path, draws: Draws | ShardedDraws, images: Path | None, figures: list[str]
) -> None:
    shards = draws.num_shards
    payload = {
        **draws.diagnostics.as_dict(),
        "out": str(place),
        "shards": shards,
        "run": str(run.path),
        "checkpoint": str(run.checkpoint.path),
        "images": str(images) if images else None,
        "figures": figures,
    }

    def show() -> None:
        show_diagnostics(draws.diagnostics)
        if images is not None:
            ui.text(f"images: {images}")
        show_figures(figures)
        ui.text(f"draws: {place}" + ("" if shards is None else f" ({shards} shards)"))

    say.result(payload, show)


def _figures(run: Run, draws: Draws | ShardedDraws, say: ui.Ui) -> list[str]:
    """Pictures of the chains in RUN/figures; that they can't be written takes nothing from the draws."""
    from gebm_kit.engine.figures.chain_figures import draw_chains

    try:
        return [str(path) for path in draw_chains(run.path / "figures", draws.records)]
    except GebmKitError as error:
        say.warn(f"no pictures of the chains: {error.message}")
        return []


def _new_place(run: Run, sampler: str, settings: SampleSettings, *, resume: bool) -> Path:
    """The newest unfinished sampling in RUN/samples to ``resume``; else a name there that is not taken.

    A file; a directory for more draws than one should hold in memory, and for those that may have to be resumed.
    """
    from gebm_kit.engine.sampling.draws_on_disk import newest_unfinished
    from gebm_kit.engine.sampling.shards import too_many

    folder = run.path / "samples"
    if resume and (found := newest_unfinished(folder)) is not None:
        return found
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    stem = f"{sampler.replace(':', '-')}-seed{settings.seed}-{stamp}"
    suffix = "" if resume or too_many(settings.num_samples, run.model) else ".safetensors"
    path, attempt = folder / f"{stem}{suffix}", 1
    while path.exists():
        attempt += 1
        path = folder / f"{stem}-{attempt}{suffix}"
    return path


def _resuming(
    run: Run, overrides: Sequence[str], settings: SampleSettings, place: Path, device: str | None, start: Start
) -> str:
    """The command that goes on with an interrupted sampling."""
    from gebm_kit.core.trust import trust_words
    from gebm_kit.engine.process.distributed import launcher

    options = [
        "--num-samples",
        str(settings.num_samples),
        "--seed",
        str(settings.seed),
        "--out",
        str(place),
        "--resume",
    ]
    options += ["--checkpoint", run.which] if run.which != "last" else []
    options += ["--device", device] if device else []
    options += ["--start", start] if start == Start.DATA else []
    options += trust_words()
    return shlex.join([*launcher(), "sample", str(run.path), *overrides, *options])
