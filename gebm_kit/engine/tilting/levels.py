"""Draws at one beta: their mean score, log Z, KL and diversity, each with its error."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gebm_kit.core.estimators import pareto_k
from gebm_kit.core.interfaces import Energy, Sampler
from gebm_kit.core.model import GEBM, DataPotential, LatentPotential
from gebm_kit.core.progress import OnProgress, warn
from gebm_kit.core.seeds import stream
from gebm_kit.engine.likelihood.estimate_log_partition import Method, estimate_log_partition
from gebm_kit.engine.likelihood.log_partition import ROWS_AT_ONCE, LogPartition, from_tilt
from gebm_kit.engine.process.distributed import ALONE, Ranks
from gebm_kit.engine.sampling.draw import draw
from gebm_kit.engine.sampling.draws import Draws
from gebm_kit.engine.sampling.forecasts import GRADIENT_COST
from gebm_kit.engine.sampling.settings import SampleSettings
from gebm_kit.engine.tilting.base_pool import BasePool
from gebm_kit.engine.tilting.diversity import Looks
from gebm_kit.engine.tilting.result import Estimate, Level

MANY_CHAINS = 30
"""Chains from which the spread of their means gives the error of a mean."""

GROUPS = 10
"""Groups of the model's draws for the bridge estimate of log Z."""


@dataclass(frozen=True)
class Plan:
    """How every level is drawn and measured.

    Attributes:
        model: base and scorer.
        sampler: makes a sampler; each level gets its own.
        settings: settings of the draws, at beta 1.
        method: how log Z is estimated.
        pool: scored base draws.
        looks: feature map, and data.
        on_progress: called with reports of progress.
        ranks: the processes that share the draws.
        own: the generator's own energy, which keeps its weight at every beta; None: the generator is a base alone.
    """

    model: GEBM
    sampler: Callable[[], Sampler]
    settings: SampleSettings
    method: Method
    pool: BasePool
    looks: Looks
    on_progress: OnProgress
    ranks: Ranks = ALONE
    own: Energy | None = None


class WithScorer(Energy):
    """A trained energy with a scorer at its beta, ``E(x) - beta r(x)``; (B, *D) -> (B,)."""

    def __init__(self, own: Energy, scorer: Energy, beta: float) -> None:
        super().__init__()
        self.own, self.scorer, self.beta = own, scorer, beta

    def forward(self, x: Tensor) -> Tensor:
        energy: Tensor = self.own(x)
        return energy + self.beta * self.scorer(x)


def level_at(plan: Plan, beta: float) -> Level:
    """Draw at ``beta`` and measure the draws. Problems of the draws are warned about, with the beta."""
    model, settings = plan.model, replace(plan.settings, inverse_temperature=beta)
    if plan.own is not None:
        model, settings = GEBM(model.base, WithScorer(plan.own, model.energy, beta)), plan.settings
    draws = draw(model, plan.sampler(), settings, on_progress=plan.on_progress, warns=False, ranks=plan.ranks)
    for problem in draws.diagnostics.problems:
        warn(f"at beta {beta:g}: {problem}")
    energy = energies(plan.model, draws.x)
    mean = chain_mean(energy, draws)
    partition = _log_partition(plan, beta, energy, draws)
    kl = Estimate(-partition.value - beta * mean.value, math.hypot(partition.se, beta * mean.se))
    x = draws.x.to(plan.model.device)
    counts = draws.diagnostics
    spent = counts.forward_evals + GRADIENT_COST * counts.grad_evals
    return Level(
        beta=beta,
        score=Estimate(-mean.value, mean.se),
        kl=kl,
        log_partition=partition,
        diversity=plan.looks.diversity(x),
        prdc=plan.looks.prdc(x, plan.settings.seed),
        evaluations=spent / max(len(draws.x), 1),
        draws=draws,
    )


def energies(model: GEBM, x: Tensor) -> Tensor:
    """Compute the energies of draws, (N, *D) -> (N,) float64 on the CPU."""
    rows = x.flatten(1).to(model.device, model.dtype)
    shape = tuple(x.shape[1:])
    with DataPotential(model.energy, shape, block_size=min(max(len(rows), 1), ROWS_AT_ONCE)) as potential:
        return potential.value(rows).double().cpu()


def chain_mean(values: Tensor, draws: Draws) -> Estimate:
    """Return the mean over draws, (N,), with the standard error that correlated draws have.

    With many chains of a kernel it is that of the chains' means; otherwise draws count as the effective size says.
    """
    num, diagnostics = len(values), draws.diagnostics
    chains = draws.chain.unique()
    value = float(values.mean())
    if diagnostics.family == "kernel" and len(chains) >= MANY_CHAINS:
        _, place = draws.chain.unique(return_inverse=True)
        counts = torch.bincount(place).double()
        off = torch.zeros(len(chains), dtype=torch.float64).index_add_(0, place, values - value)  # sums, not means
        spread = float(off.square().sum().sqrt()) / num
        return Estimate(value, spread * math.sqrt(len(counts) / (len(counts) - 1)))
    size = diagnostics.ess_min
    effective = num if math.isnan(size) else min(max(size, 1.0), num)
    return Estimate(value, float(values.std()) / math.sqrt(effective))


def _log_partition(plan: Plan, beta: float, energy: Tensor, draws: Draws) -> LogPartition:
    """Estimate A(beta) from the pool, half of which chooses the method."""
    model, pool = plan.model, plan.pool
    generator = torch.Generator(model.device).manual_seed(
        stream(plan.settings.seed, "tilt", "log Z", beta).initial_seed()
    )
    tilt, other = (beta * pool.energy).chunk(2)
    if plan.own is not None:
        return _by_importance(beta, tilt, other, "the draws of the run's own model are re-weighted", "draws of the run")
    if not pool.has_gradient and plan.method != "smc":
        return _by_importance(beta, tilt, other, "the scorer has no gradient, so nothing is annealed", "base draws")
    groups = (
        (beta * energy[: len(energy) // GROUPS * GROUPS]).unflatten(0, (GROUPS, -1)) if len(energy) >= GROUPS else None
    )
    size = draws.diagnostics.ess_min
    with LatentPotential(model, beta, block_size=ROWS_AT_ONCE) as potential:
        return estimate_log_partition(
            potential,
            tilt,
            other,
            generator,
            model.dtype,
            method=plan.method,
            model_tilt=groups,
            effective=size if math.isnan(size) else min(size, len(energy)),
            on_progress=plan.on_progress,
        )


def _by_importance(beta: float, tilt: Tensor, other: Tensor, why: str, what: str) -> LogPartition:
    """Estimate A(beta) where nothing can be annealed; warn where that is not reliable."""
    k = pareto_k(-other)
    reason = f"{why}; Pareto k of the weights of {what} is {k:.2f}"
    found = replace(from_tilt(tilt), pareto_k=k, reason=reason)
    if not found.reliable:
        warn(
            f"at beta {beta:g}: log Z and KL are not to be trusted: a few {what} carry most of the weight (Pareto k "
            f"{k:.2f}, below 0.7 is wanted), and nothing can be annealed ({why}). Score more of them (num_base), or lower "
            "beta."
        )
    return found
