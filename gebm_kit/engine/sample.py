"""Draws from a trained run, or from any GEBM built by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack, overload

import numpy as np
import torch
from torch import Tensor

from gebm_kit.core.arguments import check_flag, check_path
from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Sampler
from gebm_kit.core.model import GEBM
from gebm_kit.core.progress import OnProgress
from gebm_kit.engine.likelihood.row_sources import Rows, as_seen
from gebm_kit.engine.process.distributed import joined_ranks
from gebm_kit.engine.process.progress_bar import check_progress, progress_shown
from gebm_kit.engine.process.torchrun import local_device
from gebm_kit.engine.run_directory.calibrated import Beta, beta_for
from gebm_kit.engine.run_directory.run import Run, subject_of
from gebm_kit.engine.sampling.by_class import draw_by_class, wanted_labels
from gebm_kit.engine.sampling.class_shards import ClassShards, draw_by_class_out
from gebm_kit.engine.sampling.draw import draw, draw_to
from gebm_kit.engine.sampling.draws import Draws
from gebm_kit.engine.sampling.settings import SampleSettings, resolve_sampler, settings_of
from gebm_kit.engine.sampling.shards import ShardedDraws
from gebm_kit.engine.sampling.table_files import is_table


class SampleOptions(TypedDict, total=False):
    """Keyword arguments of `sample`. One that is absent or None means the recipe's value or the default.

    Keys:
        num_samples: draws to keep.
        num_chains: chains to run; never more than ``num_samples``, unless the sampler needs more.
        warmup: steps that tune the sampler; their states are not kept.
        steps: steps of each chain after warm-up, at least.
        thin: steps from one kept state of a chain to the next.
        inverse_temperature: beta; 1 is the model itself, 0 the base, ``calibrated`` what the run's last evaluation found.
        seed: seed of starting points and sampler.
        block_size: chains on which the model is evaluated at a time, at most.
        start: rows of data. Chains start at their encodings, in turn; the base needs an encoder (`HasEncoder`). A tensor or
            array (N, *D) holds rows as the model sees them: standardised, for a run whose dataset standardises. A data
            frame, or the path of a file, holds measurements like those in the run's file. None: chains start at draws of the
            prior.
        labels: classes of the draws, for a model with classes: one class, by its index or its name; classes, which the
            draws take in turn, so that there are as many of each; ``all``, which stands for every class; or a class for each
            draw. None: classes are drawn by the weights that the model was trained with, the data's frequencies.
        device: a torch device or ``auto``; None: the recipe's device, or the device that a hand-built model is on.
        resume: with a directory as ``out``: resume an interrupted sampling, or begin when nothing is there.
        progress: True: show progress; False: do not; None: on a terminal or in a notebook.
        on_progress: called with each `gebm_kit.core.progress.Progress` of the chains; nothing is shown then.
    """

    num_samples: int | None
    num_chains: int | None
    warmup: int | None
    steps: int | None
    thin: int | None
    inverse_temperature: Beta | None
    seed: int | None
    block_size: int | None
    start: Rows | None
    labels: int | str | Sequence[int | str] | Tensor | np.ndarray | None
    device: torch.device | str | None
    resume: bool
    progress: bool | None
    on_progress: OnProgress | None


@overload
def sample(
    run_or_model: Run | GEBM | str | Path,
    sampler: str | Mapping[str, Any] | Sampler | None = None,
    *,
    out: None = None,
    **options: Unpack[SampleOptions],
) -> Draws: ...


@overload
def sample(
    run_or_model: Run | GEBM | str | Path,
    sampler: str | Mapping[str, Any] | Sampler | None = None,
    *,
    out: str | Path,
    **options: Unpack[SampleOptions],
) -> Draws | ShardedDraws | ClassShards: ...


def sample(
    run_or_model: Run | GEBM | str | Path,
    sampler: str | Mapping[str, Any] | Sampler | None = None,
    *,
    out: str | Path | None = None,
    **options: Unpack[SampleOptions],
) -> Draws | ShardedDraws | ClassShards:
    """Draw from a trained run, or from any GEBM built by hand.

    Options that are not given come from the run's recipe; for a hand-built model, from the defaults of
    `SampleSettings`. Under torchrun, or inside a process group that the caller made, the ranks share the work: call it
    on all of them.

    Args:
        run_or_model: a run, the path of its directory, or a model.
        sampler: name, node or sampler object; None: the recipe's sampler, else ``auto``. The name in the recipe
            keeps the recipe's parameters; any other name means that sampler's defaults.
        out: where to write the draws as well. A .safetensors or .npz file holds all of them. A .csv or .parquet file is a
            table with column names, in the units of the data's file. A name without a suffix is a directory into which they
            are streamed, however many there are, and `ShardedDraws` are returned; of classes, `ClassShards`.
        options: see `SampleOptions`.

    Raises:
        TypeError: an option that `SampleOptions` does not have.
        UsageError: a value is outside its range; the energy is finite nowhere; the sampler does not serve the base's
            prior, or needs more chains; ``out`` can't be written, or holds draws of another request.
        RecipeError, PluginError: no installed component is called ``sampler``.
        CheckpointError: the path is not a run, or the run is damaged.
        RunFailed: out of memory, a full disk.
        Interrupted: Ctrl-C or SIGTERM, once the state is saved in ``out``.
    """
    for name in options:
        if name not in SampleOptions.__annotations__:
            raise TypeError(f"sample() got an unexpected keyword argument {name!r}")
    if out is not None:
        check_path("out", out)
    check_flag("resume", options.get("resume", False))
    progress, on_progress = options.get("progress"), options.get("on_progress")
    check_progress(progress, on_progress)
    run, model, settings, recipe_sampler = _asked(run_or_model, options)
    device, resume, start = options.get("device"), options.get("resume", False), options.get("start")
    if run is not None and device is None:
        device = run.recipe.device
    kernel = resolve_sampler(sampler, recipe_sampler, model)
    if out is None and resume:
        raise UsageError("only draws that are streamed into a directory can be resumed: give out=DIR")
    labels = wanted_labels(model, options.get("labels"), settings.num_samples, settings.seed)
    starts = None if start is None else as_seen(start, "start", run, model)[0]
    units = None if run is None else run.measurements(needed=out is not None and is_table(out))
    with joined_ranks() as ranks, progress_shown(progress, on_progress) as report:
        place: dict[str, Any] = {
            "device": local_device(device),
            "on_progress": report,
            "ranks": ranks,
            "start": starts,
        }
        value_range = None if run is None else run.value_range
        if labels is not None:
            if out is None:
                by_class = draw_by_class(model, kernel, settings, labels, units=units, **place)
                return replace(by_class, value_range=value_range)
            return draw_by_class_out(
                out, model, kernel, settings, labels, resume=resume, value_range=value_range, units=units, **place
            )
        if out is None:
            return replace(draw(model, kernel, settings, **place), units=units, value_range=value_range)
        return draw_to(out, model, kernel, settings, resume=resume, value_range=value_range, units=units, **place)


def _asked(
    run_or_model: Run | GEBM | str | Path, options: SampleOptions
) -> tuple[Run | None, GEBM, SampleSettings, Any]:
    """Return the run (None for a model), the model, the settings with ``options`` applied, and the recipe's sampler."""
    subject = subject_of(run_or_model)
    if isinstance(subject, Run):
        run, model = subject, subject.model
        section = subject.recipe.sample
        settings, sampler, beta = settings_of(section), subject.recipe.sampler, section.inverse_temperature
    else:
        run, model, settings, sampler, beta = None, subject, SampleSettings(), None, 1.0
    names = {field.name for field in fields(SampleSettings)}
    chosen: dict[str, Any] = {name: value for name, value in options.items() if name in names and value is not None}
    chosen["inverse_temperature"] = beta_for(subject, chosen.get("inverse_temperature", beta))
    return run, model, replace(settings, **chosen), sampler
