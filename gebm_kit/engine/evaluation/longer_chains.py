"""Draws after 2x and 4x the chain length, and the metric that is followed along them: half of the equilibrium test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gebm_kit.core.interfaces import Metric, Sampler
from gebm_kit.core.model import GEBM
from gebm_kit.core.progress import OnProgress, Progress
from gebm_kit.engine.evaluation.budget import Plan
from gebm_kit.engine.evaluation.draw_sets import DrawSets, continued_sets, whole_groups
from gebm_kit.engine.evaluation.equilibrium import LENGTHS, along_the_chains
from gebm_kit.engine.evaluation.score_table import AGAINST_TRAIN, Scorer
from gebm_kit.engine.process.distributed import Ranks
from gebm_kit.engine.sampling.settings import SampleSettings


def followed(metrics: Mapping[str, Metric]) -> str | None:
    """Return the first metric of draws that has a better and a worse; None: there is none."""
    known = ((name, m) for name, m in metrics.items() if not m.of_model and m.lower_is_better is not None)
    return next((name for name, _ in known), None)


def longer_sets(
    model: GEBM,
    sampler: Sampler,
    sampling: SampleSettings,
    gebm: DrawSets,
    plan: Plan,
    device: torch.device,
    on_progress: OnProgress,
    ranks: Ranks,
    draw_sets: Callable[..., DrawSets],
) -> dict[int, list[Tensor]]:
    """Return sets of draws after 2x and 4x the chain length, by length, as far as planned and possible.

    Args:
        sampler, sampling: what drew ``gebm``, the sets at 1x.
        draw_sets: `gebm_kit.engine.evaluation.draw_sets.gebm_sets`, which draws a population anew.
    """
    if plan.longest == 1 or sampler.family == "refiner":
        return {}
    lengths, found = [length for length in LENGTHS[1:] if length <= plan.longest], {}
    if sampler.family == "population":
        for length in lengths:
            longer = sampler.longer(length)
            if longer is None:
                return {}
            found[length] = draw_sets(
                model, longer, sampling, len(gebm.sets[0]), plan.groups, device, on_progress, ranks, checked=True
            ).sets
        return found
    ends, done = gebm, 1
    groups, once = whole_groups(gebm, plan.groups), gebm.chains[0].length
    for length in lengths:
        ends = continued_sets(model, ends, groups, (length - done) * once, device, on_progress, ranks)
        found[length], done = ends.sets, length
    return found


def followed_values(
    name: str,
    metric: Metric,
    scorer: Scorer,
    once: Sequence[Mapping[str, float]],
    longer: Mapping[int, list[Tensor]],
    place: torch.device,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Score the longer chains; return the fields of `gebm_kit.engine.evaluation.equilibrium.Equilibrium` about them.

    Args:
        name, metric: the metric that is followed.
        once: its values of every set at 1x.
        longer: sets by length.
    """
    key = next(key for key in once[0] if not key.endswith(f".{AGAINST_TRAIN}"))
    groups = min((len(sets) for sets in longer.values()), default=len(once))
    values = {1: [row[key] for row in once[:groups]]}
    done, total = 0, groups * len(longer)
    for factor, sets in longer.items():
        values[factor] = []
        for index, x in enumerate(sets[:groups]):
            values[factor].append(metric(scorer.context(name, x.to(place), index))[key])
            done += 1
            on_progress(Progress("longer", done, total))
    return {"metric": key, **along_the_chains(values), "lower_is_better": bool(metric.lower_is_better)}


def unit_of(families: Sequence[str]) -> str:
    """Say what is 2x and 4x as much."""
    return "the chain length" if all(family == "kernel" for family in families) else "the effort for a draw"


def why_not(name: str | None, families: Sequence[str], plan: Plan, continues: bool, *, done: bool) -> str:
    """Say why lengths are missing; "" where none is.

    Args:
        name: the metric that is followed, or None.
        families: families of the samplers that drew.
        continues: whether the evaluation continues chains at all.
        done: whether there are draws at longer lengths.
    """
    if name is None:
        return "no metric knows better from worse"
    if "refiner" in families:
        return "a refiner moves points and has no law that it runs to"
    if not continues:
        return "a look during training does not continue chains"
    if "population" in families and plan.longest > 1 and not done:
        return "this sampler has no longer version of itself"
    return "" if plan.longest == LENGTHS[-1] else "the budget allows no more"
