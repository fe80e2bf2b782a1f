"""How good the draws are: R-hat, effective sample size, divergences, acceptance, equipartition.

References:
    Rank-normalization, folding, and localization: an improved R-hat for assessing convergence of MCMC.
    A. Vehtari et al., Bayesian Analysis 2021. https://arxiv.org/abs/1903.08008
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gebm_kit.core.interfaces import Info
from gebm_kit.engine.progress import warn

RHAT_LIMIT = 1.05
"""Above it, the chains disagree about some coordinate (the paper's 1.01 is for a few long chains)."""

MAX_TRACE_STEPS = 200
MAX_TRACE_COORDINATES = 32
MAX_TRACE_NUMBERS = 2**22
MAX_RHAT_NUMBERS = 100_000
MIN_TRACE_STEPS = 4  # fewer have no split R-hat


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """What a sampling call reports beside its draws.

    Attributes:
        sampler: its component name.
        num_samples, num_chains: draws kept, chains they come from.
        warmup_steps, steps: steps of each chain before and after the tuning was frozen.
        acceptance: mean acceptance probability over chains and steps after warm-up.
        divergences: divergent steps after warm-up, over all chains.
        rhat_max: largest rank-normalised split R-hat over coordinates and the potential; nan when there are fewer than
            four recorded steps, inf when chains never moved.
        ess_min: smallest bulk effective sample size over the same, of all steps after warm-up.
        ess_per_grad: ``ess_min`` for each gradient evaluation spent after warm-up.
        grad_evals, forward_evals: rows on which the model was evaluated with and without gradient, warm-up included.
        seconds: wall-clock time, warm-up included.
        inverse_temperature, seed: as asked for.
        step_size: the frozen value of what warm-up tuned, or nan when there is nothing to tune.
        warmup_divergences: divergent steps during warm-up.
        equipartition: mean of ``z_i dU/dz_i`` over draws and coordinates, 1 under the target.
        log_partition, log_partition_se: estimate of A that came with the draws (population methods), nan without.
        pareto_k: of the importance weights behind the draws (population methods), nan without.
        details: what the sampler says besides, by name.
    """

    sampler: str
    num_samples: int
    num_chains: int
    warmup_steps: int
    steps: int
    acceptance: float
    divergences: int
    rhat_max: float
    ess_min: float
    ess_per_grad: float
    grad_evals: int
    forward_evals: int
    seconds: float
    inverse_temperature: float
    seed: int
    step_size: float = math.nan
    warmup_divergences: int = 0
    equipartition: float = math.nan
    log_partition: float = math.nan
    log_partition_se: float = math.nan
    pareto_k: float = math.nan
    details: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: numbers that are not finite are None."""
        return _finite_or_none(dataclasses.asdict(self))

    def warn(self) -> None:
        """Say in words, as `GebmKitWarning`, what is wrong with the draws, if anything is."""
        if self.rhat_max > RHAT_LIMIT:
            moved = "some do not move at all" if math.isinf(self.rhat_max) else f"R-hat is {self.rhat_max:.3f}"
            warn(
                f"the chains have not mixed: {moved} (at most {RHAT_LIMIT} is wanted), so each has seen little of what all "
                "of them have together, and the draws may depend on where they started; raise `warmup` and `steps`."
            )
        if self.divergences:
            share = self.divergences / (self.num_chains * self.steps)
            warn(
                f"{self.divergences} steps diverged ({share:.1%} of all): the energy was not finite there, or its error "
                "exceeded 1000. They were rejected; regions that the chains can't enter are missing from the draws. Use a "
                "smaller step size."
            )


def _finite_or_none(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _finite_or_none(value)
        if isinstance(value, dict)
        else None
        if isinstance(value, float) and not math.isfinite(value)
        else value
        for key, value in values.items()
    }


class Recorder:
    """Gathers what the diagnostics need while chains run, on their device, without waiting for it.

    To bound memory, the trace holds every step up to `MAX_TRACE_STEPS` of them, evenly spaced beyond; of the coordinates,
    `MAX_TRACE_COORDINATES` evenly spaced ones; and of the chains the first so many that it has `MAX_TRACE_NUMBERS`
    entries at most.
    """

    def __init__(self, steps: int, example: Any) -> None:
        position = example.position
        self._every = -(-steps // MAX_TRACE_STEPS)
        rows = steps // self._every
        num_chains, latent_dim = position.shape
        chosen = np.unique(np.linspace(0, latent_dim - 1, min(latent_dim, MAX_TRACE_COORDINATES)).round().astype(int))
        self._coordinates = torch.as_tensor(chosen, device=position.device)
        self._chains = max(min(num_chains, MAX_TRACE_NUMBERS // (rows * (len(chosen) + 1))), 1)
        self._trace = position.new_empty(rows, self._chains, len(chosen) + 1)
        self._acceptance = torch.zeros((), dtype=torch.float64, device=position.device)
        self._diverged = torch.zeros((), dtype=torch.int64, device=position.device)
        self._steps = self._recorded = 0

    def add(self, state: Any, info: Info) -> None:
        """Take in one step."""
        self._steps += 1
        self._acceptance += info.acceptance.mean()
        self._diverged += info.diverged.sum()
        if self._steps % self._every == 0 and self._recorded < len(self._trace):
            row = self._trace[self._recorded]
            row[:, :-1] = state.position[: self._chains].index_select(1, self._coordinates)
            row[:, -1] = state.value[: self._chains]
            self._recorded += 1

    @property
    def acceptance(self) -> float:
        """Mean over chains and steps so far; waits for the device."""
        return float(self._acceptance) / max(self._steps, 1)

    @property
    def divergences(self) -> int:
        """Count so far; waits for the device."""
        return int(self._diverged)

    def convergence(self, num_chains: int) -> Convergence:
        """R-hat and effective sample size of what was recorded, the latter scaled up to ``num_chains``."""
        found = convergence(self._trace[: self._recorded])
        return Convergence(found.rhat_max, found.ess_min * num_chains / self._chains)


@dataclass(frozen=True, slots=True)
class Convergence:
    """Largest rank-normalised split R-hat and smallest bulk effective sample size over the quantities of a trace."""

    rhat_max: float
    ess_min: float


def convergence(trace: Tensor) -> Convergence:
    """Diagnostics of a trace (steps, chains, quantities).

    R-hat and the effective sample size come from arviz-stats. When one quantity has more than `MAX_RHAT_NUMBERS` entries
    they are computed on the first chains that fit, and the effective sample size is scaled up in proportion: chains
    are exchangeable. A single chain is cut into two halves. Quantities that never change give an R-hat of inf and an
    effective sample size of 0, but for a last one that is the same in every chain: the tilt of a flat potential (beta = 0),
    which has nothing to say. Fewer than four steps give nan.
    """
    steps, num_chains, _ = trace.shape
    if steps < MIN_TRACE_STEPS * (2 if num_chains == 1 else 1):
        return Convergence(math.nan, math.nan)
    used = min(num_chains, max(MAX_RHAT_NUMBERS // steps, 4))
    draws = trace[:, :used].double().permute(1, 0, 2).cpu().numpy()  # (chains, steps, quantities)
    if used == 1:
        half = steps // 2
        draws = draws[:, : 2 * half].reshape(2, half, -1)
    if draws.shape[2] > 1 and (draws[..., -1] == draws[0, 0, -1]).all():
        draws = draws[..., :-1]
    if not np.isfinite(draws).all() or (draws == draws[:, :1]).all(axis=(0, 1)).any():
        return Convergence(math.inf, 0.0)
    from arviz_stats.base.array import array_stats  # slow to import

    with np.errstate(invalid="ignore", divide="ignore"):
        rhat = array_stats.rhat(draws, chain_axis=0, draw_axis=1, method="rank")
        ess = array_stats.ess(draws, chain_axis=0, draw_axis=1, method="bulk")
    return Convergence(float(np.max(rhat)), float(np.min(ess)) * num_chains / used)


def equipartition(z: Tensor, grad: Tensor) -> float:
    """Mean of ``z_i dU/dz_i`` over rows and coordinates; (N, Z), (N, Z).

    Integration by parts gives E[z_i dU/dz_i] = 1 for every coordinate under exp(-U). ULA with step h on a standard normal
    shows 1 / (1 - h/2).
    """
    return float((z * grad).mean())
