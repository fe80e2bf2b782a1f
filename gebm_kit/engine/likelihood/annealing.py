"""The log-partition by tempered sequential Monte Carlo: a pilot finds a ladder, and replicates climb it.

The pilot is one population on an adaptive ladder; it chooses levels, step sizes and preconditioners. These are then frozen.
Each replicate is a separate population, so its estimate ``Z_r`` is unbiased: E[Z_r] = Z. All replicates move in one batch,
and nothing waits for the device between the first rung and the last.

References:
    Sequential Monte Carlo samplers. P. Del Moral, A. Doucet, A. Jasra, JRSS B 2006. https://arxiv.org/abs/cond-mat/0212648
    An invitation to sequential Monte Carlo samplers. C. Dai, J. Heng, P. E. Jacob, N. Whiteley, JASA 2022.
    https://arxiv.org/abs/2007.11936
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gebm_kit.config.build import build
from gebm_kit.config.schema import ComponentNode
from gebm_kit.core.errors import RunFailed
from gebm_kit.core.estimators import t_quantile
from gebm_kit.core.interfaces import AnnealedSampler
from gebm_kit.core.model import LatentPotential
from gebm_kit.core.progress import OnProgress, Progress, ignore
from gebm_kit.engine.sampling.run_populations import EFFECTIVE_SIZE, has_finished, start_population

REPLICATES = 10
"""Independent populations behind an estimate: enough for an interval with Student's t (9 degrees of freedom)."""


PARTICLES = 256
"""Particles of a replicate in the first attempt."""


PILOT_PARTICLES = 512
"""Fewest particles of the pilot: more than a replicate has at first, since all replicates depend on the pilot's ladder."""

LADDER = {"ess_target": 0.9, "num_moves": 2, "num_leapfrog": 4, "final_rounds": 0}
"""Parameters of the sampler smc for the ladder. Rungs are short. For a model wider than its base, weights at the last rungs
with 70 % effective have a Pareto k of 0.42. Few particles do not show that, so the pilot would jump too far; with 90 %
effective, k is 0.3."""


GROWTH = 4
"""Factor by which the particles grow from one attempt to the next; it about halves the spread of log Z_r."""


SPREAD_WANTED = 0.3
"""Standard deviation of log Z_r above which more particles are tried. Up to this value, the t interval on the mean of ten
log-normal Z_r covers the truth in 95 % of cases; at 1 it would cover it in 92 %, at 2 in 80 %."""


MAX_EVALS = 2**23
"""Most gradients that an attempt after the first may cost: a bound on time, about 8.4 million."""


MAX_RUNGS = 2000
"""Most rungs of the pilot's ladder. A ladder that long means that the energy is too far from the base."""


@dataclass(frozen=True)
class Annealed:
    """The result of the replicates.

    Attributes:
        log_z: each replicate's log Z_r, (R,) float64 on the CPU.
        tilt: ``beta E`` of the final particles, (R, N) float64 on the CPU.
        effective: independent draws that the final particles are worth; particles with a common ancestor count as one.
        rungs: rungs of the ladder.
        acceptance: mean acceptance of the moves.
    """

    log_z: Tensor
    tilt: Tensor
    effective: float
    rungs: int
    acceptance: float

    @property
    def value(self) -> float:
        """The estimate of A, ``log mean_r Z_r``."""
        return float(torch.logsumexp(self.log_z, 0)) - math.log(len(self.log_z))

    @property
    def spread(self) -> float:
        """Standard deviation of log Z_r."""
        return float(self.log_z.std())

    @property
    def se(self) -> float:
        """Standard error of `value`: the jackknife's, but at least ``spread / sqrt(R)``.

        The delta method's error never exceeds 1, which is too small where one Z_r outweighs the others.
        """
        num = len(self.log_z)
        rest = self.log_z.expand(num, num).masked_fill(torch.eye(num, dtype=torch.bool), -math.inf)
        left_out = torch.logsumexp(rest, 1)
        jackknife = math.sqrt((num - 1) * float(left_out.var(correction=0)))
        return max(jackknife, self.spread / math.sqrt(num))

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of `value`, Student's t with R - 1 degrees of freedom."""
        half = t_quantile(len(self.log_z) - 1) * self.se
        return self.value - half, self.value + half


def anneal(
    potential: LatentPotential,
    generator: torch.Generator,
    dtype: torch.dtype,
    *,
    replicates: int = REPLICATES,
    particles: int = PARTICLES,
    on_progress: OnProgress = ignore,
) -> Annealed:
    """Run a pilot and its replicates, and repeat with `GROWTH` times the particles while log Z_r varies too much.

    Attempts are independent: an estimate uses nothing from an earlier attempt.

    Args:
        generator: a generator on the potential's device.

    Raises:
        UsageError: no starting point has a finite potential.
        RunFailed: the pilot needs more than `MAX_RUNGS` rungs.
    """
    while True:
        found, evals = _attempt(potential, generator, dtype, replicates, particles, on_progress)
        if found.spread <= SPREAD_WANTED or GROWTH * evals > MAX_EVALS:
            return found
        particles *= GROWTH


def _attempt(
    potential: LatentPotential,
    generator: torch.Generator,
    dtype: torch.dtype,
    replicates: int,
    particles: int,
    on_progress: OnProgress,
) -> tuple[Annealed, int]:
    """Run one pilot and its replicates; return their result and the replicates' number of gradients."""
    pilot: AnnealedSampler = build("sampler", ComponentNode("smc", LADDER))
    plan = learn_ladder(pilot, potential, max(PILOT_PARTICLES, particles), generator, dtype, on_progress)
    climber = pilot.frozen(plan, replicates)
    before = potential.grad_evals
    state = start_population(potential, climber, replicates * particles, generator, dtype)
    accepted = torch.zeros((), dtype=torch.float64, device=generator.device)
    for rung in range(len(plan)):
        state, info = climber.step(state, potential, generator)
        accepted += info.acceptance.double().mean()
        on_progress(Progress("anneal", rung + 1, len(plan)))
    found = Annealed(
        log_z=climber.log_partitions(state).double().cpu(),
        tilt=state.value.double().cpu().unflatten(0, (replicates, particles)),
        effective=float(climber.summary(state)[EFFECTIVE_SIZE]),
        rungs=len(plan),
        acceptance=float(accepted) / len(plan),
    )
    return found, potential.grad_evals - before


def learn_ladder(
    pilot: AnnealedSampler,
    potential: LatentPotential,
    particles: int,
    generator: torch.Generator,
    dtype: torch.dtype,
    on_progress: OnProgress = ignore,
) -> Tensor:
    """Let one population choose a ladder; return its plan, (K, ...), one row for each rung."""
    state = start_population(potential, pilot, particles, generator, dtype)
    rows: list[Tensor] = []
    while not has_finished(pilot, state):
        if len(rows) == MAX_RUNGS:
            raise RunFailed(
                f"the ladder from the base to the model has more than {MAX_RUNGS:,} rungs",
                hint="The energy is too far from the base; lower inverse_temperature.",
            )
        state, _ = pilot.step(state, potential, generator)
        rows.append(pilot.learnt(state))
        on_progress(Progress("ladder", len(rows), -1))
    return torch.stack(rows)
