"""Draws from a model, a sampler and settings: prepare the job, run it, and keep the draws in memory or on disk."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Sampler, SamplerDirective
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.paths import user_path
from gebm_kit.core.progress import OnProgress, ignore
from gebm_kit.core.units import HasMeasured
from gebm_kit.engine.process.devices import placed
from gebm_kit.engine.process.distributed import ALONE, Ranks
from gebm_kit.engine.process.memory import enough_memory, require_disk, require_memory
from gebm_kit.engine.process.signals import StopSignals
from gebm_kit.engine.sampling.auto import Attempt, Settled, settle
from gebm_kit.engine.sampling.blocks import (
    PROBES,
    activation_bytes,
    automatic_block_size,
    chains_of,
    lay_out,
    thread_piece,
)
from gebm_kit.engine.sampling.contract import ROWS, check_contract
from gebm_kit.engine.sampling.draws import Draws, check_output, is_directory
from gebm_kit.engine.sampling.draws_in_memory import InMemory
from gebm_kit.engine.sampling.draws_on_disk import Directory, check_directory, finished, requested
from gebm_kit.engine.sampling.interfaces import Counts, Keeper, Outcome, SamplingJob, Starts
from gebm_kit.engine.sampling.rehearsal import REHEARSED, Rehearsed, recorded
from gebm_kit.engine.sampling.run_kernel import run_kernel
from gebm_kit.engine.sampling.run_populations import run_populations
from gebm_kit.engine.sampling.settings import SampleSettings, check_fits, check_sampling
from gebm_kit.engine.sampling.shards import (
    ShardedDraws,
    island_rows,
    kernel_rows,
    most_rows,
    plan_shards,
    row_bytes,
)
from gebm_kit.engine.sampling.starting_points import check_starts, digest_of, encodings

FEWER_CHAINS = "Set block_size (sample.block_size on the command line) to fewer; the draws then come in other blocks."
"""Hint for a device with too little memory for its blocks of chains."""


STATE_COPIES = 4
"""Tensors of a position's size that a chain holds at once, at least: position, gradient, momentum, proposal."""


def draw(
    model: GEBM,
    sampler: Sampler,
    settings: SampleSettings,
    *,
    device: torch.device | str | None = None,
    on_progress: OnProgress = ignore,
    ranks: Ranks = ALONE,
    start: Tensor | None = None,
    keep_chains: bool = False,
    checked: bool = False,
    warns: bool = True,
) -> Draws:
    """Run chains on the latent posterior ``nu(z) ∝ eta(z) exp(-beta E(G(z)))`` and keep their last states.

    Chains start from the prior, in blocks (`gebm_kit.engine.sampling.blocks`). Warm-up tunes the sampler on all of them
    and freezes it. Then every chain runs ``settings.total_steps`` steps, from which the diagnostics are computed. The
    same seed gives the same draws, whatever the state of torch's default generators and the number of ranks. The model
    is returned as it was: device, training mode, gradients.

    Args:
        device: where to compute; None: the device that the model is on.
        ranks: the processes that share the work. All of them call this function, and all get all draws.
        start: as in `sample`.
        keep_chains: whether the draws keep the ends of their chains, to continue a kernel's run from them.
        checked: whether the caller has checked model and sampler (`check_contract`).
        warns: whether there are warnings. `auto` makes several attempts without them, and warns about the last alone.

    Raises:
        UsageError: the energy is finite at no starting point; the sampler does not serve the base's prior or needs more
            chains; its step size is not a positive number.
        PluginError: base, energy or sampler do not do what their kind must (`gebm_kit.engine.sampling.contract`).
        RunFailed: the device is out of memory.

    Warns:
        GebmKitWarning: the chains have not mixed; steps diverged; the model's energy is not a log density ratio.
    """
    (check_sampling if warns else check_fits)(model, sampler, settings)
    _require_room(model, sampler, settings)
    if isinstance(sampler, SamplerDirective):
        place: dict[str, Any] = {"on_progress": on_progress, "keep_chains": keep_chains, "checked": checked}
        found = _settled(model, sampler, settings, device=device, ranks=ranks, start=start, **place)
        draws = replace(found.result, diagnostics=found.diagnostics)
    else:
        began = time.perf_counter()
        with contextlib.ExitStack() as stack:
            stop = stack.enter_context(StopSignals()) if ranks.size > 1 else None
            stack.enter_context(ranks.together())
            job = stack.enter_context(
                prepared(model, sampler, settings, device, on_progress, ranks, start, checked=checked)
            )
            keeper = InMemory(settings.num_samples, ranks, stop)
            outcome = _run(job, keeper, _islands(job, 1), lambda: time.perf_counter() - began)
        draws = replace(keeper.draws(outcome), chains=outcome.chains if keep_chains else None)
    if warns:
        draws.diagnostics.warn()
    return draws


def _settled(
    model: GEBM,
    directive: SamplerDirective,
    settings: SampleSettings,
    *,
    device: torch.device | str | None,
    ranks: Ranks,
    start: Tensor | None,
    **place: Any,
) -> Settled[Draws]:
    """Return what `auto` settles on, with the draws of its last attempt."""
    place |= {"device": device, "ranks": ranks, "start": start}

    def attempt(sampler: Sampler, run: SampleSettings) -> Attempt[Draws]:
        draws = draw(model, sampler, run, **place, warns=False)
        return Attempt(draws, draws.diagnostics, draws.records)

    with ranks.together():
        return settle(model, directive, settings, attempt, device=device, ranks=ranks, chains_only=start is not None)


def draw_to(
    out: str | Path,
    model: GEBM,
    sampler: Sampler,
    settings: SampleSettings,
    *,
    resume: bool = False,
    value_range: tuple[float, float] | None = None,
    units: HasMeasured | None = None,
    ranks: Ranks = ALONE,
    hint: str = "Continue with resume=True.",
    **place: Any,
) -> Draws | ShardedDraws:
    """Call `draw` and write the draws to a file; when ``out`` has no suffix, call `draw_into` with that directory.

    ``units`` are the names and units of a table's columns, in which .csv and .parquet files are written.

    Raises:
        UsageError: ``resume`` was given with a file; or as for these two functions and `Draws.save`.
    """
    if is_directory(out):
        place |= {"value_range": value_range, "units": units, "hint": hint}
        return draw_into(out, model, sampler, settings, resume=resume, ranks=ranks, **place)
    check_output(out, tuple(model.data_shape))
    if resume:
        raise UsageError(
            f"a sampling into one file, {out}, can't be resumed",
            hint="A name without a suffix is a directory of shards.",
        )
    with ranks.together():
        draws = draw(model, sampler, settings, ranks=ranks, **place)
        draws = replace(draws, units=units, value_range=value_range)
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
    units: HasMeasured | None = None,
    device: torch.device | str | None = None,
    on_progress: OnProgress = ignore,
    ranks: Ranks = ALONE,
    hint: str = "Continue with resume=True.",
    start: Tensor | None = None,
    warns: bool = True,
) -> ShardedDraws:
    """Draw into a directory of shards, in memory that does not grow with the number of draws.

    Ctrl-C and SIGTERM save the state first. After these or any other end, ``resume`` continues from where the last
    shard was written. The shards are then the same as those of an uninterrupted sampling, bit for bit on the CPU.

    Args:
        directory, resume: where the shards go, created if needed; whether to resume what it holds, if anything.
        value_range, units: (low, high) of the data, for pictures; names and units of a table's columns, for the index.
        ranks: the processes that share the work. All of them call this function with the same ``directory``.
        hint, start, warns: how to resume, for the error after a signal; as in `sample`; whether there are warnings.

    Raises:
        UsageError: as for `draw`; the directory can't be written, or holds something else, or another request's draws.
        RunFailed, Interrupted: out of memory, or a full disk; Ctrl-C or SIGTERM. What was written stays.
    """
    path = user_path(directory)
    (check_sampling if warns else check_fits)(model, sampler, settings)
    _require_room(model, sampler, settings, path)
    with StopSignals() as stop, ranks.together():
        stop.hint = hint
        if ranks.rank == 0:
            check_directory(path, resume=resume)
        ranks.wait()
        rehearsed = None
        if isinstance(sampler, SamplerDirective):
            place: dict[str, Any] = {"device": device, "on_progress": on_progress, "ranks": ranks, "start": start}
            rehearsed = _rehearsed(path, model, sampler, settings, stop, **place)
            sampler, settings = rehearsed.sampler(model), rehearsed.settings(settings)
            check_fits(model, sampler, settings)
        with prepared(model, sampler, settings, device, on_progress, ranks, start) as job:
            request = requested(job) | ({} if rehearsed is None else {REHEARSED: rehearsed.as_dict()})
            ranks.wait()
            if (known := finished(path, request)) is not None:
                return known
            groups, rows = _planned_rows(job)
            keeper = Directory(path, request, plan_shards(rows), ranks, stop)
            keeper.open()
            outcome = _run(job, keeper, groups, keeper.seconds)
            if rehearsed is not None:
                outcome = outcome._replace(diagnostics=rehearsed.added_to(outcome.diagnostics))
            draws = keeper.draws(outcome, value_range, units)
    if warns:
        draws.diagnostics.warn()
    return draws


def _planned_rows(job: SamplingJob) -> tuple[list[range], list[list[int]]]:
    """Return the islands of each unit (none of a kernel), and the rows of each unit's shards."""
    model, settings = job.potential.model, job.settings
    size = row_bytes(model.data_shape, model.latent_dim, job.dtype)
    if job.sampler.family == "kernel":
        return [], kernel_rows(job.layout, settings, size)
    groups = _islands(job, most_rows(size) // job.layout.rows)
    return groups, island_rows(groups, job.layout.rows, settings.num_samples)


def _rehearsed(
    path: Path,
    model: GEBM,
    directive: SamplerDirective,
    settings: SampleSettings,
    stop: StopSignals,
    *,
    device: torch.device | str | None,
    ranks: Ranks,
    start: Tensor | None,
    **place: Any,
) -> Rehearsed:
    """Return the sampler and settings that ``path`` was begun with, or settle on them with few draws in memory."""
    with stop.at_once():
        known = recorded(path, directive, settings, ranks)
        if known is not None:
            return known
        few = Rehearsed.few(settings)
        found = _settled(model, directive, few, device=device, ranks=ranks, start=start, **place)
        return Rehearsed.of(found, directive, settings)


def _require_room(model: GEBM, sampler: Sampler, settings: SampleSettings, folder: Path | None = None) -> None:
    """Raise before anything is allocated if the chains, or the draws, take more room than there is.

    Args:
        folder: where draws are streamed; None: they stay in memory.

    Raises:
        UsageError: they do.
    """
    chains = chains_of(settings, sampler)
    states = chains * model.latent_dim * model.dtype.itemsize * STATE_COPIES
    require_memory(
        states, f"{chains:,} chains", "Run fewer chains: num_chains (sample.num_chains on the command line)."
    )
    size = settings.num_samples * row_bytes(model.data_shape, model.latent_dim, model.dtype)
    what = f"{settings.num_samples:,} draws"
    if folder is not None:
        require_disk(folder, size, what)
    else:
        hint = "Draw fewer, or stream them into a directory: a name without a suffix as out (--out DIR on the command line)."
        require_memory(size + states, what, hint)


def _run(job: SamplingJob, keeper: Keeper, islands: Sequence[range], seconds: Callable[[], float]) -> Outcome:
    if job.sampler.family == "kernel":
        return run_kernel(job, keeper, seconds)
    return run_populations(job, keeper, islands, seconds)


def _islands(job: SamplingJob, together: int) -> list[range]:
    """Group the islands of a population into units of ``together``; a kernel has none."""
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
    *,
    checked: bool = False,
) -> Iterator[SamplingJob]:
    """Put the model on its device and lay out its chains, for the block, in which running out of memory raises `RunFailed`.

    ``checked`` is as in `draw`.
    """
    if start is not None:
        check_starts(model, sampler, start)
    with contextlib.ExitStack() as stack:
        where, dtype = stack.enter_context(placed(model, device))
        if not checked:
            with enough_memory(where, f"with {ROWS} rows", FEWER_CHAINS):
                check_contract(model, sampler, where)
        potential = stack.enter_context(LatentPotential(model, settings.inverse_temperature))
        chains = chains_of(settings, sampler)
        with enough_memory(where, f"with blocks of {max(PROBES)} chains", FEWER_CHAINS):
            coupled = sampler.needs_one_block()
            if settings.block_size is None:
                row_bytes = activation_bytes(potential, where, dtype)
                size = automatic_block_size(potential, sampler, where, dtype, row_bytes)
                layout = lay_out(chains, size, coupled=coupled)
                sampler = sampler.in_blocks(layout.rows, size)
                at_once = layout.rows * sampler.rows_a_chain
                layout = replace(layout, piece=thread_piece(replace(layout, rows=at_once), where, row_bytes))
            else:
                layout = lay_out(chains, settings.block_size, coupled=coupled)
                sampler = sampler.in_blocks(layout.rows, settings.block_size)
        potential.block_size = layout.piece
        probed = Counts.of(potential)
        with enough_memory(where, f"with blocks of {layout.piece or layout.rows} chains", FEWER_CHAINS):
            starts = None if start is None else Starts(encodings(model, start, where, dtype), digest_of(start))
            yield SamplingJob(potential, sampler, settings, where, dtype, layout, ranks, on_progress, probed, starts)
