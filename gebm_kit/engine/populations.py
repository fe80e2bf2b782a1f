"""Populations and refiners: islands of particles, each stepped from prior draws until it says that it is finished.

An island is one start of the sampler on ``num_chains`` particles, with a generator of its own; islands share nothing, so any
of them can be made alone and in any order. Its last positions are its draws. There is no warm-up, no thinning and no R-hat.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gebm_kit.core import estimators
from gebm_kit.core.errors import RunFailed, UsageError
from gebm_kit.core.interfaces import Sampler
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.seeds import stream
from gebm_kit.engine.chains import decode, placed, start
from gebm_kit.engine.diagnostics import Diagnostics, equipartition
from gebm_kit.engine.draws import Draws, SampleSettings
from gebm_kit.engine.log_partition import pareto_k
from gebm_kit.engine.progress import OnProgress, Progress, ignore

MAX_STEPS = 100_000
"""Steps after which an island that is not finished never will be."""

MAX_WEIGHTS = 2**20
"""Importance weights kept for Pareto's k, over all islands."""

EFFECTIVE_SIZE = "effective_size"
"""Name in a sampler's summary of the number of independent draws that its positions are worth."""


@dataclass(frozen=True, slots=True)
class Island:
    """One finished population.

    Attributes:
        z: its positions, in normal coordinates, on the device, (C, Z).
        steps: until it was finished.
        acceptance: mean over particles and steps.
        divergences: over all particles and steps.
        log_partition: its estimate of A, nan without one.
        log_weights: of the candidates behind it, (N,), on the device, or None.
        summary: the sampler's own numbers; whole ones are counts.
    """

    z: Tensor
    steps: int
    acceptance: float
    divergences: int
    log_partition: float
    log_weights: Tensor | None
    summary: dict[str, float]


@dataclass(frozen=True, slots=True)
class PopulationRun:
    """What running the islands gave.

    Attributes:
        z: positions in normal coordinates, island after island, on the device, (N, Z).
        chain: where each draw comes from, (N,) int64 on the CPU: the number of its island when particles are coupled,
            else its own number.
        num_chains: particles of an island.
        steps: of all islands together.
        acceptance, divergences: mean, and sum, over all of them.
        effective_size: independent draws that the N are worth, nan when the sampler does not say.
        log_partition, log_partition_se: of A; nan without.
        pareto_k: of the importance weights, nan without.
        grad_evals: gradients spent, in rows.
        details: the sampler's summary, its counts added up and everything else averaged over islands; ``islands``.
    """

    z: Tensor
    chain: Tensor
    num_chains: int
    steps: int
    acceptance: float
    divergences: int
    effective_size: float
    log_partition: float
    log_partition_se: float
    pareto_k: float
    grad_evals: int
    details: dict[str, float]


def draw_population(
    model: GEBM,
    sampler: Sampler,
    name: str,
    settings: SampleSettings,
    *,
    device: torch.device | str | None = None,
    on_progress: OnProgress = ignore,
) -> Draws:
    """`engine.sample.draw` for populations and refiners.

    Args:
        name: of the sampler, for the diagnostics.

    Raises:
        UsageError: the energy is finite at no starting point or has the wrong shape.
        RunFailed: the device is out of memory; an island does not finish.
    """
    began = time.perf_counter()
    beta, num_chains = settings.inverse_temperature, max(settings.chains, sampler.min_chains)
    block = settings.block_size and min(settings.block_size, num_chains)
    with placed(model, device) as (where, dtype), LatentPotential(model, beta, block_size=block) as potential:
        try:
            run = run_populations(potential, sampler, settings, where, dtype, on_progress)
            decoded = decode(potential, run.z, num_chains)
        except torch.cuda.OutOfMemoryError as error:
            text = f"{where} is out of memory with {num_chains} particles"
            raise RunFailed(text, hint="Set block_size, or run fewer chains.") from error
        balance = equipartition(decoded.equipartition, run.effective_size)
        diagnostics = Diagnostics(
            sampler=name,
            num_samples=settings.num_samples,
            num_chains=num_chains,
            warmup_steps=0,
            steps=run.steps,
            acceptance=run.acceptance,
            divergences=run.divergences,
            rhat_max=math.nan,
            ess_min=run.effective_size,
            ess_per_grad=run.effective_size / run.grad_evals if run.grad_evals else math.nan,
            grad_evals=potential.grad_evals,
            forward_evals=potential.forward_evals,
            seconds=time.perf_counter() - began,
            inverse_temperature=float(beta),
            seed=settings.seed,
            equipartition=balance.mean,
            equipartition_se=balance.se,
            log_partition=run.log_partition,
            log_partition_se=run.log_partition_se,
            pareto_k=run.pareto_k,
            details=run.details,
            family=sampler.family,
        )
    diagnostics.warn()
    return Draws(decoded.x, decoded.z, run.chain, diagnostics)


def run_populations(
    potential: LatentPotential,
    sampler: Sampler,
    settings: SampleSettings,
    device: torch.device,
    dtype: torch.dtype,
    on_progress: OnProgress,
) -> PopulationRun:
    """Make islands until they hold ``settings.num_samples`` positions.

    Each has ``settings.chains`` particles, at least the sampler's ``min_chains``. Warm-up, steps and thinning of the
    settings do not apply.

    Raises:
        UsageError: the potential is finite nowhere.
        RunFailed: an island does not finish.
    """
    num_chains, num_samples = max(settings.chains, sampler.min_chains), settings.num_samples
    total = -(-num_samples // num_chains)
    grads_before = potential.grad_evals
    islands = []
    on_progress(Progress("sample", 0, num_samples))
    for index in range(total):
        generator = torch.Generator(device)
        generator.manual_seed(stream(settings.seed, "sample", "population", index).initial_seed())
        island = run_island(potential, sampler, num_chains, generator, dtype)
        islands.append(island)
        done = min((index + 1) * num_chains, num_samples)
        on_progress(Progress("sample", done, num_samples, {"acceptance": island.acceptance}))
    return combined(islands, num_samples, coupled=sampler.coupled, grad_evals=potential.grad_evals - grads_before)


def run_island(
    potential: LatentPotential, sampler: Sampler, num_chains: int, generator: torch.Generator, dtype: torch.dtype
) -> Island:
    """Start ``num_chains`` particles from the prior and step them until they are finished.

    Refiners start from points of finite potential. Populations give points without one weight zero, so that the
    log-partition counts them.

    Raises:
        UsageError: the potential is finite nowhere.
        RunFailed: they are not finished after `MAX_STEPS` steps.
    """
    if sampler.family == "population":
        state = start_population(potential, sampler, num_chains, generator, dtype)
    else:
        state = start(potential, sampler, num_chains, generator, dtype)
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
    estimate = sampler.log_partition(state)
    return Island(
        z=state.position,
        steps=steps,
        acceptance=float(acceptance) / steps if steps else math.nan,
        divergences=int(diverged),
        log_partition=math.nan if estimate is None else float(estimate),
        log_weights=sampler.log_weights(state),
        summary={name: value.item() for name, value in sampler.summary(state).items()},
    )


def combined(islands: Sequence[Island], num_samples: int, *, coupled: bool, grad_evals: int) -> PopulationRun:
    """The islands as one run: their first ``num_samples`` positions, and their numbers put together."""
    num_chains, steps = len(islands[0].z), sum(island.steps for island in islands)
    chain = torch.arange(len(islands) * num_chains)
    summary = _together([island.summary for island in islands])
    weights = _some_weights(islands)
    value, error = _log_partition([island.log_partition for island in islands], weights)
    return PopulationRun(
        z=torch.cat([island.z for island in islands])[:num_samples],
        chain=(chain // num_chains if coupled else chain)[:num_samples],
        num_chains=num_chains,
        steps=steps,
        acceptance=_mean([island.acceptance for island in islands]),
        divergences=sum(island.divergences for island in islands),
        effective_size=summary.pop(EFFECTIVE_SIZE, math.nan) * num_samples / num_chains,
        log_partition=value,
        log_partition_se=error,
        pareto_k=math.nan if weights is None else pareto_k(weights),
        grad_evals=grad_evals,
        details={"islands": len(islands), **summary},
    )


def has_finished(sampler: Sampler, state: Any) -> bool:
    """Whether a population or refiner has arrived; waits for the device."""
    flag = sampler.finished(state)
    if flag is None:
        raise TypeError(f"{type(sampler).__name__} is a {sampler.family} and must say when it is finished")
    return bool(flag)


def start_population(
    potential: LatentPotential, sampler: Sampler, num_chains: int, generator: torch.Generator, dtype: torch.dtype
) -> Any:
    """The population's state at prior draws, (C, Z).

    Raises:
        UsageError: the potential is finite nowhere.
    """
    shape = (num_chains, potential.model.latent_dim)
    z = torch.randn(shape, generator=generator, device=generator.device, dtype=dtype)
    state = sampler.init(z, potential, generator)
    if not bool(torch.isfinite(state.value).any()):
        raise UsageError(
            f"the energy is not finite at any of {num_chains} points drawn from the base: it returned "
            f"{float(state.value[0])} at the first",
            hint="Look at energy(base(z)) for z drawn from the prior; training may have diverged.",
        )
    return state


def _together(summaries: Sequence[dict[str, float]]) -> dict[str, float]:
    """Counts added up, everything else averaged."""
    columns = {name: [summary[name] for summary in summaries] for name in summaries[0]}
    return {name: sum(c) if isinstance(c[0], int) else _mean(c) for name, c in columns.items()}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _some_weights(islands: Sequence[Island]) -> Tensor | None:
    """The importance weights of as many islands as `MAX_WEIGHTS` allows, at least one; (N,) on the CPU."""
    if islands[0].log_weights is None:
        return None
    parts = [island.log_weights.cpu() for island in islands if island.log_weights is not None]
    return torch.cat(parts[: max(MAX_WEIGHTS // len(parts[0]), 1)])


def _log_partition(estimates: Sequence[float], log_weights: Tensor | None) -> tuple[float, float]:
    """Logarithm of the mean of the islands' Z, and its standard error by the delta method.

    Between islands where there are several; within the only one when it has weights. The delta method knows no error above
    1: where one island outweighs the rest, the error of the mean of their logarithms is taken, which is larger.
    """
    values = torch.tensor(estimates, dtype=torch.float64)
    if len(values) > 1:
        spread = float(values.std()) / math.sqrt(len(values))
        return float(estimators.log_partition(-values)), max(float(estimators.log_partition_se(-values)), spread)
    error = math.nan if log_weights is None else float(estimators.log_partition_se(-log_weights.double()))
    return float(values[0]), error
