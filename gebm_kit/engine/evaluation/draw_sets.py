"""Independent sets of draws, over which intervals are computed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gebm_kit.core.interfaces import Sampler
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.progress import OnProgress, counted, ignore
from gebm_kit.core.seeds import stream
from gebm_kit.engine.process.distributed import ALONE, Ranks
from gebm_kit.engine.sampling.diagnostics import Diagnostics
from gebm_kit.engine.sampling.draw import draw
from gebm_kit.engine.sampling.settings import SampleSettings

DRAWS_AT_ONCE = 1024
"""Draws, or chains, evaluated at once where the recipe sets no block size; it bounds memory."""


@dataclass(frozen=True, slots=True)
class DrawSets:
    """Independent sets, (num_samples, *D) each on the CPU, and the diagnostics of the chains behind them."""

    sets: list[Tensor]
    diagnostics: Diagnostics | None = None


def base_sets(
    model: GEBM,
    settings: SampleSettings,
    num_samples: int,
    num_sets: int,
    device: torch.device,
    on_progress: OnProgress = ignore,
) -> DrawSets:
    """Draw sets from the base, ``x = G(z), z ~ eta``."""
    generator = torch.Generator(device).manual_seed(stream(settings.seed, "base draws").initial_seed())
    example = next((p for p in model.base.parameters() if p.is_floating_point()), torch.empty(0))
    sets: list[Tensor] = []
    report = counted(on_progress, "base", num_sets * num_samples)
    with LatentPotential(model, block_size=min(num_samples, settings.block_size or DRAWS_AT_ONCE)) as potential:
        for _ in range(num_sets):
            shape = (num_samples, model.latent_dim)
            z = torch.randn(shape, generator=generator, device=device, dtype=example.dtype)
            sets.append(potential.data(z, lambda done: report(len(sets) * num_samples + done)).cpu())
    return DrawSets(sets)


def gebm_sets(
    model: GEBM,
    sampler: Sampler,
    settings: SampleSettings,
    num_samples: int,
    num_sets: int,
    device: torch.device,
    on_progress: OnProgress,
    ranks: Ranks = ALONE,
) -> DrawSets:
    """Draw sets from the GEBM, by one run of ``num_sets`` groups of chains that share only the frozen tuning.

    Coupled samplers, whose chains exchange information, populations and refiners are run once for each set instead, each run
    with its own seed. The diagnostics are then those of the first run.
    """
    if sampler.needs_one_block():
        runs = []
        for index in range(num_sets):
            seed = stream(settings.seed, "set", index).initial_seed()
            once = replace(settings, num_samples=num_samples, seed=seed)
            runs.append(draw(model, sampler, once, device=device, on_progress=on_progress, ranks=ranks))
        return DrawSets([run.x for run in runs], runs[0].diagnostics)
    chains = min(settings.num_chains, num_samples)
    kept = -(-num_samples // chains)
    together = replace(
        settings,
        num_chains=num_sets * chains,
        num_samples=num_sets * chains * kept,
    )
    draws = draw(model, sampler, together, device=device, on_progress=on_progress, ranks=ranks)
    group = draws.chain // chains
    return DrawSets([draws.x[group == index][:num_samples] for index in range(num_sets)], draws.diagnostics)
