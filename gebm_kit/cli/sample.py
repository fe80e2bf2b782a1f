"""``gebm-kit sample``: draws from a trained run."""

from __future__ import annotations

import datetime
import enum
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gebm_kit.cli import ui
from gebm_kit.cli.completion import complete_class, complete_metric, complete_sampler
from gebm_kit.cli.options import (
    LARGEST_COUNT,
    LARGEST_SEED,
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
    place,
    set_trust,
    words_on_run,
)
from gebm_kit.cli.results import show_diagnostics, show_figures
from gebm_kit.cli.run_options import (
    changed_settings,
    find_run,
    overrides_with_sampler,
    sampling_recipe,
    set_up_cpu,
)
from gebm_kit.cli.trace import check_one_beta, run_trace
from gebm_kit.core.class_names import labels_of_words, titled
from gebm_kit.core.errors import GebmKitError, NotConverged, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from gebm_kit.config.schema import Recipe
    from gebm_kit.engine.run_directory.run import Run
    from gebm_kit.engine.sampling.class_shards import ClassShards
    from gebm_kit.engine.sampling.draws import Draws
    from gebm_kit.engine.sampling.settings import SampleSettings
    from gebm_kit.engine.sampling.shards import ShardedDraws

OVERRIDABLE = ("sampler", "sample")
"""Sections of the recipe that ``gebm-kit sample`` can override."""


class Start(enum.StrEnum):
    """Starting points of chains."""

    PRIOR = "prior"
    DATA = "data"


SamplerWord = Annotated[
    str | None,
    typer.Option("--sampler", metavar="NAME", help="default: the recipe's", autocompletion=complete_sampler),
]


NumSamples = Annotated[
    int | None,
    typer.Option("--num-samples", metavar="N", min=1, max=LARGEST_COUNT, help="draws to keep; default: the recipe's"),
]


Seed = Annotated[int | None, typer.Option("--seed", metavar="S", min=0, max=LARGEST_SEED, help="default: the recipe's")]


DrawsPlace = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FILE|DIR",
        parser=place("--out"),
        help="A .safetensors or .npz file; for a table .csv or .parquet, in its units; or, without a suffix, a directory of "
        "shards. Default: new in RUN/samples/.",
    ),
]


ResumeSampling = Annotated[
    bool,
    typer.Option("--resume", help="Resume an interrupted sampling into shards, or start one if there is none."),
]


ImagesFolder = Annotated[
    Path | None,
    typer.Option(
        "--images", metavar="DIR", parser=place("--images"), help="Also write the draws as PNGs, for image data."
    ),
]


RequireConverged = Annotated[
    bool,
    typer.Option("--require-converged", help="Exit with code 1 when the diagnostics say that the draws are bad."),
]


StartWord = Annotated[
    Start,
    typer.Option("--start", help="Where chains start: at draws of the prior, or at encodings of training rows."),
]


ClassWords = Annotated[
    list[str] | None,
    typer.Option(
        "--class",
        metavar="LABELS",
        help="Classes of the draws, for a model with classes: 7, or 3,5 (as many of each), or names, or all. May be "
        "given several times. Default: by the data's frequencies.",
        autocompletion=complete_class,
    ),
]


TraceMetric = Annotated[
    str | None,
    typer.Option(
        "--trace",
        metavar="METRIC",
        help="Keep no draws; record METRIC along the chains, for each of inverse_temperature=[...], and draw it.",
        autocompletion=complete_metric,
    ),
]


def sample(
    run_word: RunWord = None,
    override_words: RunOverrideWords = None,
    sampler: SamplerWord = None,
    num_samples: NumSamples = None,
    seed: Seed = None,
    out: DrawsPlace = None,
    resume: ResumeSampling = False,
    images: ImagesFolder = None,
    require_converged: RequireConverged = False,
    start: StartWord = Start.PRIOR,
    class_words: ClassWords = None,
    trace: TraceMetric = None,
    checkpoint: CheckpointWord = "last",
    trust_program: TrustProgram = False,
    trust_paths: TrustPaths = False,
    device: Device = None,
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw from a trained RUN by MCMC in its latent space, and say how good the draws are."""
    say = ui.Ui(json=json, quiet=quiet, debug=debug)
    set_trust(trust_program, trust_paths)
    given = words_on_run(run_word, override_words)
    changes: dict[str, Any] = {"num_samples": num_samples, "seed": seed}
    if trace is not None:
        if resume:
            raise UsageError(
                "--trace keeps no draws, so there is nothing to --resume", hint="Leave out one of the two."
            )
        of_draws = {"--images": images, "--require-converged": require_converged, "--start": start == Start.DATA}
        place: dict[str, Any] = {
            "checkpoint": checkpoint,
            "out": out,
            "device": device,
            "threads": threads,
            "class_words": class_words or (),
        }
        run_trace(trace, given, say, sampler, changes, of_draws, **place)
        return
    check_one_beta(given.overrides)
    only_sections(given.overrides, OVERRIDABLE, "gebm-kit sample")
    set_up_cpu(threads)
    run = find_run(given.target, say, checkpoint)
    wanted = _Wanted(out, images, start, device, resume, require_converged, tuple(class_words or ()))
    _sample(run, overrides_with_sampler(run, sampler, given.overrides), changes, wanted, say)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Options about draws.

    Attributes:
        out: file or directory of the draws; None for a new one in the run directory.
        images: a directory for PNGs, or None.
        start: where chains start.
        device: replaces the recipe's, unless None.
        resume: whether an interrupted sampling is continued.
        require_converged: whether bad diagnostics end the command with code 1.
        classes: the words of --class.
    """

    out: Path | None
    images: Path | None
    start: Start
    device: str | None
    resume: bool
    require_converged: bool
    classes: tuple[str, ...] = ()


def _sample(run: Run, overrides: Sequence[str], changes: Mapping[str, Any], wanted: _Wanted, say: ui.Ui) -> None:
    """Draw, write the draws and pictures of the chains, and show the diagnostics.

    Args:
        changes: settings from options; None keeps the recipe's.
    """
    from gebm_kit.engine.process.torchrun import first_rank

    recipe = sampling_recipe(run, overrides)
    place, draws = _drawn(run, recipe, overrides, changes, wanted, say)
    if not first_rank():
        return
    figures = _figures(run, draws, say)
    refused = wanted.require_converged and not draws.diagnostics.converged
    if not (say.json and refused):  # with --json the error is the one object on stdout
        _show(say, run, place, draws, wanted.images, figures)
    if refused:
        text = "the draws were written, but their diagnostics are bad:"
        raise NotConverged(text, problems=draws.diagnostics.problems, hint=f"They are in {place}.")


def _drawn(
    run: Run, recipe: Recipe, overrides: Sequence[str], changes: Mapping[str, Any], wanted: _Wanted, say: ui.Ui
) -> tuple[Path, Draws | ShardedDraws | ClassShards]:
    """Draw, and return the file or directory of the draws with the draws themselves."""
    from gebm_kit.engine.figures.png_files import check_images, save_images
    from gebm_kit.engine.process.distributed import joined_ranks
    from gebm_kit.engine.process.torchrun import local_device
    from gebm_kit.engine.sampling.by_class import wanted_labels
    from gebm_kit.engine.sampling.class_shards import ClassShards, draw_by_class_out
    from gebm_kit.engine.sampling.draw import draw_to
    from gebm_kit.engine.sampling.settings import resolve_sampler
    from gebm_kit.engine.sampling.table_files import is_table

    settings = changed_settings(recipe, changes)
    if wanted.images is not None:
        check_images(wanted.images, run.model.data_shape, run.value_range)
    kernel = resolve_sampler(None, recipe.sampler, run.model)
    asked: object = ", ".join(wanted.classes) if wanted.classes else None
    if wanted.classes and run.model.conditional:
        asked = labels_of_words(wanted.classes, run.model.class_names)
    labels = wanted_labels(run.model, asked, settings.num_samples, settings.seed)
    rows = _training_rows(run, settings) if wanted.start == Start.DATA else None
    with joined_ranks() as ranks, ranks.together(), say.progress() as on_progress:
        place = Path(
            ranks.from_first(str(wanted.out or _new_place(run, recipe.sampler.title, settings, resume=wanted.resume)))
        )
        options: dict[str, Any] = {
            "resume": wanted.resume,
            "value_range": run.value_range,
            "device": local_device(wanted.device or run.recipe.device),
            "on_progress": on_progress,
            "ranks": ranks,
            "start": rows,
            "units": run.measurements(needed=is_table(place)),
        }
        draws: Draws | ShardedDraws | ClassShards
        options["hint"] = f"Resume with `{_resuming(run, overrides, settings, place, wanted)}`."
        if labels is not None:
            draws = draw_by_class_out(place, run.model, kernel, settings, labels, **options)
        else:
            draws = draw_to(place, run.model, kernel, settings, **options)
        if wanted.images is not None and run.value_range is not None and ranks.rank == 0:
            of_images = draws.in_order if isinstance(draws, ClassShards) else labels
            save_images(draws.pictures(), settings.num_samples, wanted.images, run.value_range, of_images)
    return place, draws


def _training_rows(run: Run, settings: SampleSettings) -> Tensor:
    """Return one training row for each chain, chosen at random by the seed."""
    import torch

    from gebm_kit.core.seeds import stream

    train = run.dataset.split("train")
    order = torch.randperm(len(train), generator=stream(settings.seed, "sample", "start"))
    return train.batch(order[: settings.num_chains])


def _show(
    say: ui.Ui,
    run: Run,
    place: Path,
    draws: Draws | ShardedDraws | ClassShards,
    images: Path | None,
    figures: list[str],
) -> None:
    from gebm_kit.engine.sampling.by_class import counts_by_class

    shards = draws.num_shards
    labels = getattr(draws, "labels", None)
    counts = {} if labels is None else {str(label): num for label, num in counts_by_class(labels).items()}
    names = getattr(draws, "class_names", None)
    payload = {
        **draws.diagnostics.as_dict(),
        **({"classes": counts} if counts else {}),
        **({"class_names": {label: names[int(label)] for label in counts}} if names is not None else {}),
        "out": str(place),
        "shards": shards,
        "run": str(run.path),
        "checkpoint": str(run.checkpoint.path),
        "images": str(images) if images else None,
        "figures": figures,
    }

    def show() -> None:
        show_diagnostics(draws.diagnostics)
        if counts:
            each = (f"{titled(int(label), names)}: {count}" for label, count in counts.items())
            ui.text("draws of each class: " + ", ".join(each))
        if images is not None:
            ui.text(f"images: {images}")
        show_figures(figures)
        ui.text(f"draws: {place}" + ("" if shards is None else f" ({shards} shards)"))

    say.result(payload, show)


def _figures(run: Run, draws: Draws | ShardedDraws | ClassShards, say: ui.Ui) -> list[str]:
    """Draw pictures of the chains in RUN/figures; a failure to write them is only a warning."""
    from gebm_kit.engine.figures.chain_figures import draw_chains
    from gebm_kit.engine.run_directory.run import remove_leftovers

    remove_leftovers(run)
    try:
        return [str(path) for path in draw_chains(run.figures, draws.records)]
    except GebmKitError as error:
        say.warn(f"no pictures of the chains: {error.message}")
        return []


def _new_place(run: Run, sampler: str, settings: SampleSettings, *, resume: bool) -> Path:
    """Return the newest unfinished sampling in RUN/samples to ``resume``, otherwise a free name there.

    The name is that of a directory of shards with ``resume`` or for more draws than should be held in memory, otherwise
    that of a file.
    """
    from gebm_kit.engine.sampling.class_shards import newest_to_resume
    from gebm_kit.engine.sampling.shards import too_many

    folder = run.outputs / "samples"
    if resume and (found := newest_to_resume(folder)) is not None:
        return found
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    stem = f"{sampler.replace(':', '-')}-seed{settings.seed}-{stamp}"
    suffix = "" if resume or too_many(settings.num_samples, run.model) else ".safetensors"
    path, attempt = folder / f"{stem}{suffix}", 1
    while path.exists():
        attempt += 1
        path = folder / f"{stem}-{attempt}{suffix}"
    return path


def _resuming(run: Run, overrides: Sequence[str], settings: SampleSettings, place: Path, wanted: _Wanted) -> str:
    """Return the command that resumes an interrupted sampling."""
    from gebm_kit.core.trust import trust_words
    from gebm_kit.engine.process.torchrun import launcher

    options = [
        "--num-samples",
        str(settings.num_samples),
        "--seed",
        str(settings.seed),
        "--out",
        str(place),
        "--resume",
    ]
    for word in wanted.classes:
        options += ["--class", word]
    options += ["--checkpoint", run.which] if run.which != "last" else []
    options += ["--device", wanted.device] if wanted.device else []
    options += ["--start", wanted.start] if wanted.start == Start.DATA else []
    options += trust_words()
    return shlex.join([*launcher(), "sample", str(run.path), *overrides, *options])
