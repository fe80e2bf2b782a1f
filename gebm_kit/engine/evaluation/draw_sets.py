"""Independent sets of draws, over which intervals are computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gebm_kit.core.interfaces import Sampler, SamplerDirective
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.progress import OnProgress, counted, ignore
from gebm_kit.core.seeds import stream
from gebm_kit.engine.process.distributed import ALONE, Ranks
from gebm_kit.engine.sampling.auto import Attempt, settle
from gebm_kit.engine.sampling.diagnostics import Diagnostics
from gebm_kit.engine.sampling.draw import attempted, draw
from gebm_kit.engine.sampling.draws import Draws
from gebm_kit.engine.sampling.settings import SampleSettings, check_sampling

DRAWS_AT_ONCE = 1024
"""Draws, or chains, evaluated at once where the recipe sets no block size; it bounds memory."""


@dataclass(frozen=True, slots=True)
class DrawSets:
    """Independent sets, (num_samples, *D) each on the CPU, the diagnostics of the chains behind them, and their sampler."""

    sets: list[Tensor]
    diagnostics: Diagnostics | None = None
    sampler: Sampler | None = None


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
    with its own seed. The diagnostics are then those of the first run. Of a directive, the sampler that it settles on draws.
    """
    at_least = (num_samples, num_sets)
    place: dict[str, Any] = {"device": device, "on_progress": on_progress, "ranks": ranks}
    if not isinstance(sampler, SamplerDirective):
        runs = _runs(draw, model, sampler, settings, *at_least, **place)
        return DrawSets(_sets_of(runs, sampler, settings, *at_least), runs[0].diagnostics, sampler)
    settings = replace(settings, num_samples=num_samples)
    check_sampling(model, sampler, settings)

    def attempt(chosen: Sampler, run: SampleSettings) -> Attempt[list[Tensor]]:
        runs = _runs(attempted, model, chosen, run, *at_least, **place)
        return Attempt(_sets_of(runs, chosen, run, *at_least), runs[0].diagnostics, runs[0].records, len(runs))

    found = settle(model, sampler, settings, attempt, device=device, ranks=ranks)
    found.diagnostics.warn()
    return DrawSets(found.result, found.diagnostics, found.sampler)


def _runs(
    make: Callable[..., Draws],
    model: GEBM,
    sampler: Sampler,
    settings: SampleSettings,
    num_samples: int,
    num_sets: int,
    **place: Any,
) -> list[Draws]:
    """Draw the sets in one run, or in one for each where chains exchange information."""
    if sampler.needs_one_block():
        seeds = [stream(settings.seed, "set", index).initial_seed() for index in range(num_sets)]
        return [make(model, sampler, replace(settings, num_samples=num_samples, seed=seed), **place) for seed in seeds]
    chains = min(settings.num_chains, num_samples)
    kept = -(-num_samples // chains)
    together = replace(
        settings,
        num_chains=num_sets * chains,
        num_samples=num_sets * chains * kept,
    )
    return [make(model, sampler, together, **place)]


def _sets_of(
    runs: list[Draws], sampler: Sampler, settings: SampleSettings, num_samples: int, num_sets: int
) -> list[Tensor]:
    """Take the sets out of the runs that hold them."""
    if sampler.needs_one_block():
        return [run.x for run in runs]
    group = runs[0].chain // min(settings.num_chains, num_samples)
    return [runs[0].x[group == index][:num_samples] for index in range(num_sets)]
