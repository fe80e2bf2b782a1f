"""Independent sets of draws, over which intervals are computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from gebm_kit.core.interfaces import Sampler, SamplerDirective
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.progress import OnProgress, counted, ignore
from gebm_kit.core.seeds import stream
from gebm_kit.engine.process.distributed import ALONE, Ranks
from gebm_kit.engine.sampling.auto import Attempt, Bounds, settle
from gebm_kit.engine.sampling.chains import Chains
from gebm_kit.engine.sampling.continued import continue_chains
from gebm_kit.engine.sampling.diagnostics import Diagnostics
from gebm_kit.engine.sampling.draw import draw
from gebm_kit.engine.sampling.draws import Draws
from gebm_kit.engine.sampling.pilot import Pilot
from gebm_kit.engine.sampling.settings import SampleSettings, check_fits, check_sampling

DRAWS_AT_ONCE = 1024
"""Draws, or chains, evaluated at once where the recipe sets no block size; it bounds memory."""


@dataclass(frozen=True, slots=True)
class DrawSets:
    """Independent sets of draws.

    Attributes:
        sets: (num_samples, *D) each, on the CPU.
        diagnostics: diagnostics of the chains behind draws of the GEBM.
        chains: ends of a kernel's chains: of the one run behind all sets, or of each set's own run.
        codes: prior draws behind the base's sets, in normal coordinates, (num_samples, Z) each, on the device.
        generator: the generator of these codes, from which more can be drawn.
        sampler, settings: what drew the GEBM's sets: of a directive, the sampler that it settled on and its settings.
    """

    sets: list[Tensor]
    diagnostics: Diagnostics | None = None
    chains: Sequence[Chains] = ()
    codes: list[Tensor] = field(default_factory=list)
    generator: torch.Generator | None = None
    sampler: Sampler | None = None
    settings: SampleSettings | None = None


def base_sets(
    model: GEBM,
    settings: SampleSettings,
    num_samples: int,
    num_sets: int,
    device: torch.device,
    on_progress: OnProgress = ignore,
    labels: Tensor | None = None,
) -> DrawSets:
    """Draw sets from the base, ``x = G(z), z ~ eta``; ``labels``: the classes of a set's draws, (num_samples,)."""
    generator = torch.Generator(device).manual_seed(stream(settings.seed, "base draws").initial_seed())
    sets: list[Tensor] = []
    codes: list[Tensor] = []
    report = counted(on_progress, "base", num_sets * num_samples)
    size = min(num_samples, settings.block_size or DRAWS_AT_ONCE)
    with LatentPotential(model, block_size=size, labels=labels) as potential:
        for _ in range(num_sets):
            shape = (num_samples, model.latent_dim)
            z = torch.randn(shape, generator=generator, device=device, dtype=model.dtype)
            sets.append(potential.data(z, lambda done: report(len(sets) * num_samples + done)).cpu())
            codes.append(z)
    return DrawSets(sets, codes=codes, generator=generator)


def gebm_sets(
    model: GEBM,
    sampler: Sampler,
    settings: SampleSettings,
    num_samples: int,
    num_sets: int,
    device: torch.device,
    on_progress: OnProgress,
    ranks: Ranks = ALONE,
    *,
    keep_chains: bool = False,
    checked: bool = False,
    pilot: Pilot | None = None,
    bounds: Bounds | None = None,
    warns: bool = True,
) -> DrawSets:
    """Draw sets from the GEBM, by one run of ``num_sets`` groups of chains that share only the frozen tuning.

    Coupled samplers, whose chains exchange information, populations and refiners are run once for each set instead, each run
    with its own seed. The diagnostics are then those of the first run. Of a directive, the sampler that it settles on draws.

    Args:
        keep_chains, checked: as for `gebm_kit.engine.sampling.draw.draw`.
        warns: whether there are warnings about the draws.
        pilot, bounds: as for `gebm_kit.engine.sampling.auto.settle`.
    """
    place: dict[str, Any] = {
        "device": device, "on_progress": on_progress, "ranks": ranks, "keep_chains": keep_chains, "checked": checked,
    }  # fmt: skip
    if not isinstance(sampler, SamplerDirective):
        return _drawn(model, sampler, settings, num_samples, num_sets, warns=warns, **place)[0]
    settings = replace(settings, num_samples=num_samples)
    (check_sampling if warns else check_fits)(model, sampler, settings)

    def attempt(chosen: Sampler, run: SampleSettings) -> Attempt[DrawSets]:
        found, runs = _drawn(model, chosen, run, num_samples, num_sets, warns=False, **place)
        return Attempt(found, runs[0].diagnostics, runs[0].records, len(runs))

    found = settle(model, sampler, settings, attempt, device=device, ranks=ranks, pilot=pilot, bounds=bounds)
    if warns:
        found.diagnostics.warn()
    return replace(found.result, diagnostics=found.diagnostics)


def _drawn(
    model: GEBM,
    sampler: Sampler,
    settings: SampleSettings,
    num_samples: int,
    num_sets: int,
    *,
    checked: bool,
    **place: Any,
) -> tuple[DrawSets, list[Draws]]:
    """Draw the sets in one run, or in one for each where chains exchange information; return the runs too."""
    if sampler.needs_one_block():
        runs = []
        for index in range(num_sets):
            seed = stream(settings.seed, "set", index).initial_seed()
            once = replace(settings, num_samples=num_samples, seed=seed)
            runs.append(draw(model, sampler, once, checked=checked or index > 0, **place))
        sets = [run.x for run in runs]
        ends = [run.chains for run in runs if run.chains is not None]
        return DrawSets(sets, runs[0].diagnostics, ends, sampler=sampler, settings=settings), runs
    chains = min(settings.num_chains, num_samples)
    kept = -(-num_samples // chains)
    together = replace(
        settings,
        num_chains=num_sets * chains,
        num_samples=num_sets * chains * kept,
    )
    draws = draw(model, sampler, together, checked=checked, **place)
    sets = _groups(draws, chains, num_sets, num_samples)
    kept_ends = () if draws.chains is None else (draws.chains,)
    return DrawSets(sets, draws.diagnostics, kept_ends, sampler=sampler, settings=settings), [draws]


def continued_sets(
    model: GEBM,
    gebm: DrawSets,
    groups: int,
    steps: int,
    device: torch.device,
    on_progress: OnProgress,
    ranks: Ranks = ALONE,
) -> DrawSets:
    """Continue the chains of the first ``groups`` sets for ``steps`` steps, and draw as many sets from their new ends.

    The sets have as many draws as those before. The chains of a set stay those of the set with the same number.
    """
    num_samples = len(gebm.sets[0])

    def run(chains: Chains, count: int) -> Draws:
        return continue_chains(model, chains, steps, count, device=device, on_progress=on_progress, ranks=ranks)

    if len(gebm.chains) > 1 or len(gebm.sets) == 1:  # each set was a run of its own
        runs = [run(chains, num_samples) for chains in gebm.chains[:groups]]
        return DrawSets(
            [found.x for found in runs],
            runs[0].diagnostics,
            [found.chains for found in runs if found.chains is not None],
        )
    (chains,) = gebm.chains
    size = chains.layout.chains // len(gebm.sets)
    draws = run(chains.first(groups * size), groups * size * -(-num_samples // size))
    sets = _groups(draws, size, groups, num_samples)
    return DrawSets(sets, draws.diagnostics, () if draws.chains is None else (draws.chains,))


def _groups(draws: Draws, size: int, num_sets: int, num_samples: int) -> list[Tensor]:
    """Sort draws into sets by their chains: ``size`` consecutive chains make one."""
    group = draws.chain // size
    return [draws.x[group == index][:num_samples] for index in range(num_sets)]


def _blocks(gebm: DrawSets, groups: int) -> tuple[int, int]:
    """Return the blocks that hold the chains of the first groups, and the chains of a group."""
    (chains,) = gebm.chains
    size = chains.layout.chains // len(gebm.sets)
    return -(-groups * size // chains.layout.rows), size


def _together(gebm: DrawSets) -> bool:
    """Return whether all sets come from one run."""
    return len(gebm.chains) == 1 and len(gebm.sets) > 1


def whole_groups(gebm: DrawSets, groups: int) -> int:
    """Return how many groups to continue: at least ``groups``, and all others whose chains are in the same blocks anyway."""
    if not _together(gebm):
        return min(groups, len(gebm.sets))
    blocks, size = _blocks(gebm, groups)
    return min(blocks * gebm.chains[0].layout.rows // size, len(gebm.sets))


def shared_by(gebm: DrawSets, groups: int) -> float:
    """Return the share of the first run's time that one more of its length takes for the first ``groups`` sets."""
    if not _together(gebm):
        return groups / len(gebm.sets)
    return _blocks(gebm, groups)[0] / gebm.chains[0].layout.num_blocks
