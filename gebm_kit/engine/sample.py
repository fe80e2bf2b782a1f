"""Draws from the refined model: chains in latent space, warm-up, then draws with their diagnostics."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Sampler
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.plugins import component_name
from gebm_kit.core.progress import OnProgress, ignore
from gebm_kit.engine.blocks import PROBES, activation_bytes, automatic_block_size, chains_of, lay_out, thread_piece
from gebm_kit.engine.chains import enough_memory, placed
from gebm_kit.engine.diagnostics import Diagnostics
from gebm_kit.engine.directory import Directory, check_directory, finished
from gebm_kit.engine.distributed import ALONE, Ranks, joined, local_device
from gebm_kit.engine.draws import Draws, SampleSettings, check_output, is_directory
from gebm_kit.engine.encodings import check_starts, digest_of, encodings
from gebm_kit.engine.job import Counts, Job, Keeper, Outcome, Starts
from gebm_kit.engine.kernels import run_kernel
from gebm_kit.engine.memory import InMemory
from gebm_kit.engine.populations import run_populations
from gebm_kit.engine.request import check_sampling, requested, resolve_sampler, settings_of
from gebm_kit.engine.shards import ShardedDraws, island_rows, kernel_rows, most_rows, plan, row_bytes
from gebm_kit.engine.stop import StopSignals

if TYPE_CHECKING:
    from gebm_kit.engine.run import Run

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
    if isinstance(run_or_model, GEBM):
        run, model, settings, sampler = None, run_or_model, SampleSettings(), None
    else:
        run = _open(run_or_model)
        model, settings, sampler = run.model, settings_of(run.recipe.sample), run.recipe.sampler
    chosen = {name: value for name, value in given.items() if value is not None}
    return run, model, replace(settings, **chosen), sampler


def _open(run_or_model: Run | str | Path) -> Run:
    from gebm_kit.engine.run import Run, load_run

    if isinstance(run_or_model, str | Path):
        return load_run(run_or_model)
    if isinstance(run_or_model, Run):
        return run_or_model
    raise UsageError(f"a run, its path or a GEBM is needed, got {type(run_or_model).__name__}")


def draw(
    model: GEBM,
    sampler: Sampler,
    settings: SampleSettings,
    *,
    device: torch.device | str | None = None,
    on_progress: OnProgress = ignore,
    ranks: Ranks = ALONE,
    start: Tensor | None = None,
) -> Draws:
    """Run chains on the latent posterior ``nu(z) ∝ eta(z) exp(-beta E(G(z)))`` and keep their last states.

    Chains start from the prior, in blocks (`gebm_kit.engine.blocks`). Warm-up tunes the sampler on all of them and freezes
    it; then every chain runs ``settings.total_steps`` steps, over which the diagnostics are computed. The same seed gives
    the same draws, whatever the state of torch's default generators and the number of ranks, and the model is given back
    as it was: device, training mode, gradients.

    Args:
        device: None: the one that the model is on.
        ranks: who shares the work; all of them call this, and all get all draws.
        start: as in `sample`.

    Raises:
        UsageError: the energy is finite at no starting point or has the wrong shape, the sampler does not serve the base's
            prior, needs more chains or its step size is no positive number.
        RunFailed: the device is out of memory.

    Warns:
        GebmKitWarning: chains that have not mixed, divergences, a model whose energy is no log density ratio.
    """
    began = time.perf_counter()
    check_sampling(model, sampler, settings)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopSignals()) if ranks.size > 1 else None
        stack.enter_context(ranks.together())
        job = stack.enter_context(prepared(model, sampler, settings, device, on_progress, ranks, start))
        keeper = InMemory(settings.num_samples, ranks, stop)
        outcome = _run(job, keeper, _islands(job, 1), lambda: time.perf_counter() - began)
    outcome.diagnostics.warn()
    return keeper.draws(outcome)


def draw_to(
    out: str | Path,
    model: GEBM,
    sampler: Sampler,
    settings: SampleSettings,
    *,
    resume: bool = False,
    value_range: tuple[float, float] | None = None,
    ranks: Ranks = ALONE,
    hint: str = "Go on with resume=True.",
    **place: Any,
) -> Draws | ShardedDraws:
    """`draw` and write the draws to a file, or, where ``out`` has no suffix, `draw_into` a directory.

    Raises:
        UsageError: ``resume`` with a file; as for these two, and as for `Draws.save`.
    """
    if is_directory(out):
        return draw_into(
            out, model, sampler, settings, resume=resume, value_range=value_range, ranks=ranks, hint=hint, **place
        )
    check_output(out)
    if resume:
        raise UsageError(
            f"a sampling into one file, {out}, can't be resumed",
            hint="A name without a suffix is a directory of shards.",
        )
    with ranks.together():
        draws = draw(model, sampler, settings, ranks=ranks, **place)
        if ranks.rank == 0:
            draws.save(out, value_range)
    return draws


def draw_into(
    directory: str | Path,
    model: GEBM,
    sampler: Sampler,
    settings: SampleSettings,
    *,
    resume: bool = False,
    value_range: tuple[float, float] | None = None,
    device: torch.device | str | None = None,
    on_progress: OnProgress = ignore,
    ranks: Ranks = ALONE,
    hint: str = "Go on with resume=True.",
    start: Tensor | None = None,
) -> ShardedDraws:
    """`draw` into a directory of shards, in memory that does not grow with the number of draws.

    Ctrl-C and SIGTERM save the state first. After these or any other end, ``resume`` goes on where the last shard was
    written, and the shards are those of a sampling that was never stopped, bit for bit on the CPU.

    Args:
        directory: made if need be.
        resume: go on with what ``directory`` holds; begin when it holds nothing.
        value_range: (low, high) of the data, for whoever turns x into pictures.
        ranks: who shares the work; all of them call this, and ``directory`` is the same for all.
        hint: how to go on, for the error that tells of a signal.
        start: as in `sample`.

    Raises:
        UsageError: as for `draw`; the place can't be written, or holds something else or what was asked for otherwise.
        RunFailed: the device is out of memory, or the disk is full; what was written stays.
        Interrupted: Ctrl-C or SIGTERM.
    """
    path = Path(directory)
    check_sampling(model, sampler, settings)
    with (
        StopSignals() as stop,
        ranks.together(),
        prepared(model, sampler, settings, device, on_progress, ranks, start) as job,
    ):
        stop.hint = hint
        if ranks.rank == 0:
            check_directory(path, resume=resume)
        request = requested(job)
        ranks.gather(b"")
        if (known := finished(path, request)) is not None:
            return known
        size = row_bytes(model.data_shape, model.latent_dim, job.dtype)
        if sampler.family == "kernel":
            groups, rows = [], kernel_rows(job.layout, settings, size)
        else:
            groups = _islands(job, most_rows(size) // job.layout.rows)
            rows = island_rows(groups, job.layout.rows, settings.num_samples)
        keeper = Directory(path, request, plan(rows), ranks, stop)
        keeper.open()
        draws = keeper.draws(_run(job, keeper, groups, keeper.seconds), value_range)
    draws.diagnostics.warn()
    return draws


def _run(job: Job, keeper: Keeper, islands: Sequence[range], seconds: Callable[[], float]) -> Outcome:
    if job.sampler.family == "kernel":
        return run_kernel(job, keeper, seconds)
    return run_populations(job, keeper, islands, seconds)


def _islands(job: Job, together: int) -> list[range]:
    """The islands of a population in units of ``together``; a kernel has none."""
    if job.sampler.family == "kernel":
        return []
    count, together = -(-job.settings.num_samples // job.layout.rows), max(together, 1)
    return [range(first, min(first + together, count)) for first in range(0, count, together)]


@contextmanager
def prepared(
    model: GEBM,
    sampler: Sampler,
    settings: SampleSettings,
    device: torch.device | str | None,
    on_progress: OnProgress,
    ranks: Ranks,
    start: Tensor | None = None,
) -> Iterator[Job]:
    """The model on its device and its chains laid out, for the block; running out of memory in it becomes a `RunFailed`."""
    if start is not None:
        check_starts(model, sampler, start)
    with (
        placed(model, device) as (where, dtype),
        LatentPotential(model, settings.inverse_temperature) as potential,
    ):
        chains = chains_of(settings, sampler)
        with enough_memory(where, max(PROBES)):
            coupled = sampler.coupled or sampler.family != "kernel"
            if settings.block_size is None:
                row_bytes = activation_bytes(potential, where, dtype)
                size = automatic_block_size(potential, sampler, where, dtype, row_bytes)
                layout = lay_out(chains, size, coupled=coupled)
                layout = replace(layout, piece=thread_piece(layout, where, row_bytes))
            else:
                layout = lay_out(chains, settings.block_size, coupled=coupled)
        potential.block_size = layout.piece
        probed = Counts.of(potential)
        with enough_memory(where, layout.piece or layout.rows):
            starts = None if start is None else Starts(encodings(model, start, where, dtype), digest_of(start))
            yield Job(potential, sampler, settings, where, dtype, layout, ranks, on_progress, probed, starts)
