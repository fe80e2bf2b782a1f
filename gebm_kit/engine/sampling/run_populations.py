"""Populations and refiners: islands of particles, each stepped from prior draws until it is finished.

An island is one start of the sampler on ``num_chains`` particles, with its own generator. Islands share nothing, so
each can be made alone and in any order. Its last positions are its draws. There is no warm-up, no thinning and no
R-hat.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gebm_kit.core import estimators
from gebm_kit.core.errors import RunFailed
from gebm_kit.core.estimators import pareto_k
from gebm_kit.core.interfaces import Sampler
from gebm_kit.core.model import LatentPotential
from gebm_kit.core.plugins import component_name
from gebm_kit.core.progress import Progress
from gebm_kit.core.seeds import stream
from gebm_kit.engine.sampling.diagnostics import Diagnostics
from gebm_kit.engine.sampling.draws import Decoded, Part, decode
from gebm_kit.engine.sampling.energy_checks import check_digits, check_finite_start, check_gradient
from gebm_kit.engine.sampling.interfaces import Counts, Keeper, Outcome, SamplingJob
from gebm_kit.engine.sampling.recorder import UNKNOWN, equipartition, is_flat
from gebm_kit.engine.sampling.saved_state import reading_state
from gebm_kit.engine.sampling.starting_points import start_counted, warn_of_redrawn

MAX_STEPS = 100_000
"""Most steps of an island; one that needs more is taken never to finish."""


MAX_WEIGHTS = 2**20
"""Most importance weights kept for Pareto k, over all islands."""


_NUMBERS = ("steps", "acceptance", "divergences", "log_partition", "outside")


EFFECTIVE_SIZE = "effective_size"
"""Name, in a sampler's summary, of the number of independent draws that its positions are worth."""


@dataclass(frozen=True, slots=True)
class Island:
    """One finished population.

    Attributes:
        z: its positions, in normal coordinates, on the device, (C, Z).
        steps: steps until it was finished.
        acceptance: mean over particles and steps.
        divergences: count over all particles and steps.
        log_partition: its estimate of A; NaN when it has none.
        log_weights: log-weights of the candidates behind that estimate, (N,), on the device, or None.
        summary: the sampler's own numbers; integers are counts.
        outside: prior draws at which the energy is not finite; beside such a wall there is no equipartition.
    """

    z: Tensor
    steps: int
    acceptance: float
    divergences: int
    log_partition: float
    log_weights: Tensor | None
    summary: dict[str, float]
    outside: int = 0

    def numbers(self) -> dict[str, Tensor]:
        """Return everything but positions and weights, each () int64 or float64;
        the sampler's own as ``summary.NAME``."""
        known = {name: getattr(self, name) for name in _NUMBERS}
        found = known | {f"summary.{name}": value for name, value in self.summary.items()}
        types = {int: torch.int64, float: torch.float64}
        return {name: torch.tensor(value, dtype=types[type(value)]) for name, value in found.items()}


def run_populations(job: SamplingJob, keeper: Keeper, groups: Sequence[range], seconds: Callable[[], float]) -> Outcome:
    """Make this rank's islands; all islands together hold ``num_samples`` positions. The diagnostics cover all islands.

    An island has as many particles as a block of the layout has chains. Warm-up, steps and thinning of the settings do
    not apply.

    Args:
        groups: numbers of the islands of each unit.

    Raises:
        UsageError: the potential is finite nowhere.
        RunFailed: an island does not finish.
    """
    if keeper.begun() is None:
        keeper.begin([], lambda: ({}, {}))
    units = [Islands(job, number, groups[number]) for number in job.ranks.mine(len(groups))]
    for unit in units:
        if (found := keeper.saved(unit.number)) is not None:
            with reading_state():
                unit.restore(*found)
    done, total = sum(unit.step for unit in units), sum(len(groups[unit.number]) for unit in units)
    job.on_progress(Progress("sample", done, total))
    for unit in units:
        for part in unit.parts(functools.partial(keeper.check, unit)):
            keeper.add(unit, part)
            done += 1
            job.ranks.poll()
            job.on_progress(Progress("sample", done, total, {"acceptance": unit.acceptance}))
        keeper.finish(unit)
    return Outcome(_diagnosed(job, keeper.records(len(groups)), seconds()))


class Islands:
    """A `Unit`: islands made one after another. When draws are streamed, they fill one shard.

    Attributes:
        number: number of the unit.
        step: islands finished so far.
    """

    def __init__(self, job: SamplingJob, number: int, islands: range) -> None:
        self.number, self.step = number, 0
        self._job, self._islands = job, islands
        self._records: dict[str, list[Tensor]] = defaultdict(list)

    def parts(self, check: Callable[[], None]) -> Iterator[Part]:
        """Make the islands that are not finished, and yield the decoded draws of each.

        Args:
            check: called after every step; what it raises abandons the island that is being made.
        """
        job = self._job
        while self.step < len(self._islands):
            index = self._islands[self.step]
            generator = torch.Generator(job.device)
            generator.manual_seed(stream(job.settings.seed, "sample", "population", index).initial_seed())
            before = Counts.of(job.potential)
            island = run_island(job.potential, job.sampler, job.layout.rows, generator, job.dtype, check)
            spent = Counts.of(job.potential) - before
            part, decoded = self._decoded(index, island)
            total = Counts.of(job.potential) - before
            found = island.numbers() | {"spent": spent.tensor(), "total": total.tensor(), "balance": decoded.balance}
            found["slope"] = decoded.slope
            weights = island.log_weights
            if weights is not None and index < max(MAX_WEIGHTS // len(weights), 1):
                found["log_weights"] = weights.cpu()
            for name, tensor in found.items():
                self._records[name].append(tensor)
            self.step += 1
            yield part

    def _decoded(self, index: int, island: Island) -> tuple[Part, Decoded]:
        """Decode an island into its draws.

        Coupled particles count as one chain, others as one each.
        """
        job, first = self._job, index * len(island.z)
        rows = min(len(island.z), job.settings.num_samples - first)
        decoded = decode(job.potential, island.z, len(island.z))
        chain = torch.full((rows,), index) if job.sampler.coupled else torch.arange(first, first + rows)
        return Part(first, decoded.x[:rows], decoded.z[:rows], chain), decoded

    @property
    def acceptance(self) -> float:
        """Acceptance of the last island."""
        return float(self._records["acceptance"][-1])

    def state(self) -> dict[str, Tensor]:
        """Return nothing: an island is made whole or not at all."""
        return {}

    def records(self) -> dict[str, Tensor]:
        """Return the records of the islands so far; each island is a row of every tensor.

        Importance weights are those of the first islands: as many as `MAX_WEIGHTS` allows, and at least one. ``spent``
        counts the evaluations of steps; ``total`` also those of decoding draws.
        """
        return {name: torch.stack(rows) for name, rows in self._records.items()}

    def restore(self, step: int, records: Mapping[str, Tensor]) -> None:
        """Resume after ``step`` islands, from their `records`."""
        self.step = step
        for name, rows in records.items():
            self._records[name] = list(rows)


def run_island(
    potential: LatentPotential,
    sampler: Sampler,
    num_chains: int,
    generator: torch.Generator,
    dtype: torch.dtype,
    check: Callable[[], None],
) -> Island:
    """Start ``num_chains`` particles from the prior and step them until they are finished.

    Refiners start from points with a finite potential. Populations keep points without one, at weight zero, so that the
    log-partition counts them.

    Args:
        check: called after every step.

    Raises:
        UsageError: the potential is finite nowhere.
        RunFailed: the particles are not finished after `MAX_STEPS` steps.
    """
    if sampler.family == "population":
        state = start_population(potential, sampler, num_chains, generator, dtype)
        outside = int((~torch.isfinite(state.value)).sum())
    else:
        state, outside = start_counted(potential, sampler, num_chains, generator, dtype)
        warn_of_redrawn(outside, num_chains)
    check_digits(state.value)
    check_gradient(potential, sampler, state)
    acceptance = torch.zeros((), dtype=torch.float64, device=generator.device)
    diverged = torch.zeros((), dtype=torch.int64, device=generator.device)
    steps = 0
    while not has_finished(sampler, state):
        if steps == MAX_STEPS:
            raise RunFailed(
                f"the population of {num_chains} particles is not finished after {MAX_STEPS:,} steps",
                hint="Lower inverse_temperature, or run more chains.",
            )
        state, info = sampler.step(state, potential, generator)
        acceptance += info.acceptance.mean()
        diverged += info.diverged.sum()
        steps += 1
        check()
    estimate = sampler.log_partition(state)
    return Island(
        z=state.position,
        steps=steps,
        acceptance=float(acceptance) / steps if steps else math.nan,
        divergences=int(diverged),
        log_partition=math.nan if estimate is None else float(estimate),
        log_weights=sampler.log_weights(state),
        summary={name: value.item() for name, value in sampler.summary(state).items()},
        outside=outside if hasattr(state, "grad") else outside + int(diverged),  # gradient-free: nothing else diverges
    )


def has_finished(sampler: Sampler, state: Any) -> bool:
    """Return whether a population or refiner has finished; waits for the device."""
    flag = sampler.finished(state)
    if flag is None:
        raise TypeError(f"{type(sampler).__name__} is a {sampler.family} and must say when it is finished")
    return bool(flag)


def start_population(
    potential: LatentPotential, sampler: Sampler, num_chains: int, generator: torch.Generator, dtype: torch.dtype
) -> Any:
    """Return the population's state at prior draws, (C, Z).

    Raises:
        UsageError: the potential is finite nowhere.
    """
    shape = (num_chains, potential.model.latent_dim)
    z = torch.randn(shape, generator=generator, device=generator.device, dtype=dtype)
    state = sampler.init(z, potential, generator)
    check_finite_start(state.value, getattr(state, "grad", None))
    return state


def _diagnosed(job: SamplingJob, units: Sequence[Mapping[str, Tensor]], seconds: float) -> Diagnostics:
    """Compute the diagnostics of all islands. Of the sampler's own numbers, counts are added up and others averaged."""
    settings, num_chains = job.settings, job.layout.rows
    found = {name: torch.cat([unit[name] for unit in units if name in unit]) for name in units[0]}
    summary = {
        name.removeprefix("summary."): int(rows.sum()) if rows.dtype == torch.int64 else _mean(rows)
        for name, rows in found.items()
        if name.startswith("summary.")
    }
    effective = summary.pop(EFFECTIVE_SIZE, math.nan) * settings.num_samples / num_chains
    weights = found["log_weights"].flatten() if "log_weights" in found else None
    value, error = _log_partition(found["log_partition"], weights)
    spent = Counts.read(found["spent"].sum(0))
    total = Counts.read(found["total"].sum(0)) + job.probed
    wall = "outside" in found and bool(found["outside"].any())
    flat = is_flat(list(found["slope"])) if "slope" in found else False
    balance = UNKNOWN if flat or wall else equipartition(found["balance"].sum(0), effective)
    return Diagnostics(
        sampler=component_name("sampler", job.sampler),
        num_samples=settings.num_samples,
        num_chains=num_chains,
        warmup_steps=0,
        steps=int(found["steps"].sum()),
        acceptance=_mean(found["acceptance"]),
        divergences=int(found["divergences"].sum()),
        rhat_max=math.nan,
        ess_min=effective,
        ess_per_grad=effective / spent.grad_evals if spent.grad_evals else math.nan,
        grad_evals=total.grad_evals,
        forward_evals=total.forward_evals,
        seconds=seconds,
        inverse_temperature=float(settings.inverse_temperature),
        seed=settings.seed,
        equipartition=balance.mean,
        equipartition_se=balance.se,
        log_partition=value,
        log_partition_se=error,
        pareto_k=math.nan if weights is None else pareto_k(weights),
        details={"islands": len(found["steps"]), **summary},
        family=job.sampler.family,
    )


def _mean(rows: Tensor) -> float:
    return float(rows.double().mean())


def _log_partition(values: Tensor, log_weights: Tensor | None) -> tuple[float, float]:
    """Compute the logarithm of the mean of the islands' Z, and its standard error by the delta method.

    With several islands the error comes from their spread; with one, from its weights, if it has any. The delta method
    never gives an error above 1. When one island outweighs the rest, the error of the mean of their logarithms, which
    is larger, is used instead.
    """
    if len(values) > 1:
        spread = float(values.std()) / math.sqrt(len(values))
        return float(estimators.log_partition(-values)), max(float(estimators.log_partition_se(-values)), spread)
    error = math.nan if log_weights is None else float(estimators.log_partition_se(-log_weights.double()))
    return float(values[0]), error
