"""Continued runs: chains of a finished run make more steps with the same frozen sampler, exactly as one longer run would."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from gebm_kit.core.interfaces import Sampler
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.progress import OnProgress, ignore
from gebm_kit.engine.process.devices import placed
from gebm_kit.engine.process.distributed import ALONE, Ranks
from gebm_kit.engine.process.memory import enough_memory
from gebm_kit.engine.sampling.chains import Chains
from gebm_kit.engine.sampling.draws import Draws
from gebm_kit.engine.sampling.draws_in_memory import InMemory
from gebm_kit.engine.sampling.interfaces import Counts, SamplingJob
from gebm_kit.engine.sampling.run_kernel import BlockRun, Warm, block_run, chains_at_end, diagnosed, run_blocks

STAGE = "continue"
"""The stage of progress reports while chains are continued."""


def continue_chains(
    model: GEBM,
    chains: Chains,
    steps: int,
    num_samples: int,
    *,
    device: torch.device | str | None = None,
    on_progress: OnProgress = ignore,
    ranks: Ranks = ALONE,
) -> Draws:
    """Make ``steps`` more steps of every chain and keep ``num_samples`` of the last states, as `draw` does.

    A run of S steps that is continued for T steps ends in the same draws as a run of S + T steps, bit for bit on the CPU and
    on any number of ranks. Its diagnostics are those of the T steps; they are not warned about.

    Args:
        chains: the ends of the chains on this rank, from `draw` with ``keep_chains`` or from an earlier call.
        steps: at least as many as the kept states need: ``thin`` times one less than the states kept of each chain, plus 1.
        num_samples: draws to keep over all chains.
    """
    began = time.perf_counter()
    settings = replace(chains.settings, warmup=0, steps=steps, num_samples=num_samples, num_chains=chains.layout.chains)
    assert settings.total_steps == steps, "too few steps for the states to keep"
    with (
        ranks.together(),
        placed(model, device) as (where, dtype),
        LatentPotential(model, settings.inverse_temperature, block_size=chains.layout.piece) as potential,
        enough_memory(where, f"with blocks of {chains.layout.rows} chains", "Set block_size to fewer."),
    ):
        sampler, layout = chains.sampler, chains.layout
        job = SamplingJob(potential, sampler, settings, where, dtype, layout, ranks, on_progress, Counts())
        runs = _runs(job, sampler, chains)
        keeper = InMemory(num_samples, ranks)
        run_blocks(job, runs, keeper, STAGE)
        found = keeper.records(layout.num_blocks)
        outcome = diagnosed(job, Warm(sampler, 0, Counts()), found, time.perf_counter() - began)
        return replace(keeper.draws(outcome), chains=chains_at_end(job, sampler, runs, chains.length))


def _runs(job: SamplingJob, sampler: Sampler, chains: Chains) -> list[BlockRun]:
    """Return the runs of this rank's blocks from where they ended."""
    runs = []
    for number, ends in chains.ends.items():
        generator = torch.Generator(job.device)
        generator.set_state(ends.generator)
        runs.append(block_run(job, sampler, number, ends.state, generator))
    return runs
