"""Drawing from a trained run, or from any GEBM built by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Sampler
from gebm_kit.core.model import GEBM
from gebm_kit.core.plugins import component_name
from gebm_kit.core.progress import OnProgress, ignore
from gebm_kit.engine.process.distributed import joined, local_device
from gebm_kit.engine.run_directory.run import Run, subject_of
from gebm_kit.engine.sampling.diagnostics import Diagnostics
from gebm_kit.engine.sampling.draw import draw, draw_into, draw_to
from gebm_kit.engine.sampling.draws import Draws, check_output
from gebm_kit.engine.sampling.settings import SampleSettings, resolve_sampler, settings_of
from gebm_kit.engine.sampling.shards import ShardedDraws

__all__ = [
    "Diagnostics",
    "Draws",
    "SampleSettings",
    "ShardedDraws",
    "check_output",
    "component_name",
    "draw",
    "draw_into",
    "draw_to",
    "resolve_sampler",
    "sample",
    "settings_of",
]


@overload
def sample(
    run_or_model: Run | GEBM | str | Path,
    sampler: str | Sampler | None = None,
    *,
    num_samples: int | None = None,
    num_chains: int | None = None,
    warmup: int | None = None,
    steps: int | None = None,
    thin: int | None = None,
    inverse_temperature: float | None = None,
    seed: int | None = None,
    block_size: int | None = None,
    start: Tensor | None = None,
    device: torch.device | str | None = None,
    out: None = None,
    resume: bool = False,
    on_progress: OnProgress = ignore,
) -> Draws: ...


@overload
def sample(
    run_or_model: Run | GEBM | str | Path,
    sampler: str | Sampler | None = None,
    *,
    num_samples: int | None = None,
    num_chains: int | None = None,
    warmup: int | None = None,
    steps: int | None = None,
    thin: int | None = None,
    inverse_temperature: float | None = None,
    seed: int | None = None,
    block_size: int | None = None,
    start: Tensor | None = None,
    device: torch.device | str | None = None,
    out: str | Path,
    resume: bool = False,
    on_progress: OnProgress = ignore,
) -> Draws | ShardedDraws: ...


def sample(
    run_or_model: Run | GEBM | str | Path,
    sampler: str | Sampler | None = None,
    *,
    num_samples: int | None = None,
    num_chains: int | None = None,
    warmup: int | None = None,
    steps: int | None = None,
    thin: int | None = None,
    inverse_temperature: float | None = None,
    seed: int | None = None,
    block_size: int | None = None,
    start: Tensor | None = None,
    device: torch.device | str | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    on_progress: OnProgress = ignore,
) -> Draws | ShardedDraws:
    """Draw from a trained run, or from any GEBM built by hand.

    What is not given comes from the run's recipe, for a hand-built model from `SampleSettings`. Under torchrun, or where
    the caller made a process group, the ranks share the work: call it on all of them.

    Args:
        run_or_model: a run, the path of its directory, or a model.
        sampler: component name, or a sampler object; None: the recipe's sampler, else ``hmc``. The recipe's own name keeps
            the recipe's parameters, any other name means that sampler's defaults.
        start: rows of data, (N, *D), at whose encodings chains start, in turn, for bases with an encoder (`HasEncoder`);
            None: draws of the prior.
        device: a torch device or ``auto``; None: the recipe's device, for a hand-built model the one that it is on.
        out: a .safetensors or .npz file to write the draws to as well; or, by a name without suffix, a directory to stream
            them into, whatever their number, and `ShardedDraws` are returned.
        resume: with a directory: go on with an interrupted sampling; begin when there is none.

    Raises:
        UsageError: a value outside its range, an energy that is finite nowhere, a prior that the sampler does not serve,
            fewer chains than it needs; ``out`` can't be written or was asked for otherwise.
        RecipeError, PluginError: no installed component is called ``sampler``.
        CheckpointError: the path is no run, or the run is damaged.
        RunFailed: out of memory, a full disk.
        Interrupted: Ctrl-C or SIGTERM, once the state is saved in ``out``.
    """
    given: dict[str, Any] = {
        "num_samples": num_samples,
        "num_chains": num_chains,
        "warmup": warmup,
        "steps": steps,
        "thin": thin,
        "inverse_temperature": inverse_temperature,
        "seed": seed,
        "block_size": block_size,
    }
    run, model, settings, recipe_sampler = _asked(run_or_model, given)
    if run is not None and device is None:
        device = run.recipe.device
    kernel = resolve_sampler(sampler, recipe_sampler, model)
    if out is None and resume:
        raise UsageError("only draws that are streamed into a directory can be resumed: give out=DIR")
    with joined() as ranks:
        place: dict[str, Any] = {"device": local_device(device), "on_progress": on_progress, "ranks": ranks}
        place["start"] = start
        if out is None:
            return draw(model, kernel, settings, **place)
        value_range = None if run is None else run.value_range
        return draw_to(out, model, kernel, settings, resume=resume, value_range=value_range, **place)


def _asked(
    run_or_model: Run | GEBM | str | Path, given: Mapping[str, Any]
) -> tuple[Run | None, GEBM, SampleSettings, Any]:
    """The run, if it is one; the model; the settings, with what was ``given``; and the recipe's sampler."""
    subject = subject_of(run_or_model)
    if isinstance(subject, Run):
        run, model, settings, sampler = (
            subject,
            subject.model,
            settings_of(subject.recipe.sample),
            subject.recipe.sampler,
        )
    else:
        run, model, settings, sampler = None, subject, SampleSettings(), None
    chosen = {name: value for name, value in given.items() if value is not None}
    return run, model, replace(settings, **chosen), sampler
