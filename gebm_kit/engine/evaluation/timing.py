"""The time of each stage's unit, measured on a few rows before an evaluation begins."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from gebm_kit.core.errors import GebmKitError
from gebm_kit.core.interfaces import Metric, Sampler
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.preserved import preserved
from gebm_kit.core.progress import OnProgress, Progress
from gebm_kit.engine.evaluation.budget import Costs
from gebm_kit.engine.evaluation.score_table import Known, Scorer
from gebm_kit.engine.likelihood.annealing import PARTICLES, PILOT_PARTICLES, REPLICATES
from gebm_kit.engine.sampling.forecasts import GRADIENT_COST
from gebm_kit.engine.sampling.run_populations import run_island
from gebm_kit.engine.sampling.settings import SampleSettings

T = TypeVar("T")

FEWEST_ROWS, MOST_ROWS = 16, 1024
"""Rows, or chains, of a timing: as few as possible, and at most those of the largest block of chains."""

LONG_ENOUGH = 0.02
"""Seconds from which a timing is long enough to be believed."""

RUNGS = 20
"""Rungs of an annealed population, of 8 gradients each, as far as its cost can be guessed beforehand."""


def time_units(
    model: GEBM,
    settings: SampleSettings,
    num_samples: int,
    device: torch.device,
    *,
    rows: int,
    anneals: bool,
) -> Costs:
    """Time base and energy on some rows, and work out what a set of ``num_samples`` draws costs without its chains.

    The model and torch's default generators stay as they are. A model that can't be timed costs nothing here; the
    evaluation itself raises what is wrong with it.

    Args:
        rows: rows of data whose energies are computed.
        anneals: whether A is estimated by annealing.
    """
    timed = _measured(model, settings, device, lambda potential: _time_model(potential, device))
    if timed is None:
        return Costs()
    forward, energy = timed
    both = forward + energy
    annealed = (REPLICATES * PARTICLES + PILOT_PARTICLES) * RUNGS * 8 * GRADIENT_COST * both if anneals else 0.0
    return Costs(
        base_set=num_samples * forward,
        gebm_set=lambda draws: draws * (forward + GRADIENT_COST * both),
        energies=2 * num_samples * energy,
        log_partition=rows * energy + annealed,
        base_draw=both,
    )


def with_sampling(
    costs: Costs,
    model: GEBM,
    sampler: Sampler,
    settings: Callable[[int], SampleSettings],
    num_samples: int,
    device: torch.device,
    *,
    processes: int,
) -> Costs:
    """Time a step of the sampler, and add to the costs what its chains take.

    Args:
        settings: returns how chains are run for a set of so many draws.
        processes: ranks that share the sampling.
    """
    step = _measured(model, settings(num_samples), device, lambda potential: _time_step(potential, sampler, device))
    if step is None:
        return costs
    kernel, without = sampler.family == "kernel", costs.gebm_set

    def gebm_set(draws: int) -> float:
        run = replace(settings(draws), num_samples=draws)
        chains = max(run.chains, sampler.min_chains)
        moves = run.warmup + run.total_steps if kernel else -(-draws // chains)
        return chains * moves * step / processes + without(draws)

    further = {1: 0.0, 2: 1.0, 4: 3.0} if kernel else {1: 0.0, 2: 2.0, 4: 6.0}
    return replace(costs, gebm_set=gebm_set, further=further)


def _measured(
    model: GEBM, settings: SampleSettings, device: torch.device, measure: Callable[[LatentPotential], T]
) -> T | None:
    """Return what is measured on the model, which stays as it is; None where it can't be."""
    try:
        with (
            warnings.catch_warnings(),
            preserved(model, device=device),
            LatentPotential(model, settings.inverse_temperature) as potential,
        ):
            warnings.simplefilter("ignore")  # what is worth saying, the evaluation itself says
            return measure(potential)
    except (GebmKitError, RuntimeError, ValueError, TypeError):
        return None


def _codes(potential: LatentPotential, count: int, generator: torch.Generator) -> Tensor:
    shape = (count, potential.model.latent_dim)
    return torch.randn(shape, generator=generator, device=generator.device, dtype=potential.model.dtype)


def _time_model(potential: LatentPotential, device: torch.device) -> tuple[float, float]:
    """Return the seconds a row of the base, and of the energy."""
    generator = torch.Generator(device).manual_seed(0)

    def decode(count: int) -> Callable[[], Any]:
        z = _codes(potential, count, generator)
        return lambda: potential.data(z)

    def evaluate(count: int) -> Callable[[], Any]:
        x = potential.data(_codes(potential, count, generator))
        return lambda: potential.model.energy(x.clone())

    with torch.no_grad():
        return _seconds_a_row(decode, device), _seconds_a_row(evaluate, device)


def _time_step(potential: LatentPotential, sampler: Sampler, device: torch.device) -> float:
    """Return the seconds of a step of one chain, or of all steps of a population a row."""
    generator = torch.Generator(device).manual_seed(0)

    def step(count: int) -> Callable[[], Any]:
        if sampler.family != "kernel":
            return lambda: run_island(potential, sampler, count, generator, potential.model.dtype, lambda: None)
        start = sampler.init(_codes(potential, count, generator), potential, generator)
        state, _ = sampler.step(start, potential, generator)
        return lambda: sampler.step(state, potential, generator)

    return _seconds_a_row(step, device, sampler.min_chains)


def _seconds_a_row(prepare: Callable[[int], Callable[[], Any]], device: torch.device, least: int = 1) -> float:
    """Return the seconds a row of some work, on as many rows as `LONG_ENOUGH` or `MOST_ROWS` allows.

    A small network takes as long for one row as for a thousand, so a few rows say nothing about it. The first call, which
    loads code, is not counted.
    """
    count = max(FEWEST_ROWS, least)
    prepare(count)()
    while True:
        spent = _seconds(prepare(count), device)
        if spent >= LONG_ENOUGH or 4 * count > MOST_ROWS:
            return spent / count
        count *= 4


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Return how long some work takes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def time_scores(
    metrics: Mapping[str, Metric], scorer: Scorer, floor: Sequence[Tensor], on_progress: OnProgress
) -> tuple[float, float, Known]:
    """Score held-out data, one set or two; return the seconds of all metrics on a set and of the first, and the values.

    The first set also pays for what all sets share, such as the reference's features or a classifier that is trained first.
    So the second is timed, or the first one again where there is no other. The values are part of the evaluation and are
    not computed again.
    """
    known: Known = {}
    spent, first = 0.0, 0.0
    of_draws = {name: metric for name, metric in metrics.items() if not metric.of_model}
    sets = list(floor[:2]) if len(floor) > 1 else [rows for only in floor for rows in (only, only.clone())]
    for index, rows in enumerate(sets):
        spent, first = 0.0, 0.0
        for number, (name, metric) in enumerate(of_draws.items()):
            began = time.perf_counter()
            found = scorer.values(name, metric, rows, index)
            if index < len(floor):
                known[name, "data", index] = found
            spent += time.perf_counter() - began
            first = first or spent
            on_progress(Progress("features", index * len(of_draws) + number + 1, len(of_draws) * len(sets)))
    return spent, first, known
