"""The log-partition A of a model: an estimate with its diagnostics, and importance sampling from the base.

References:
    Pareto Smoothed Importance Sampling. A. Vehtari, D. Simpson, A. Gelman, Y. Yao, J. Gabry, JMLR 25(72), 2024.
    https://arxiv.org/abs/1507.02646
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gebm_kit.core import estimators
from gebm_kit.core.estimators import PARETO_K_LIMIT, pareto_k, t_quantile
from gebm_kit.core.files import plain
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.progress import OnProgress, counted, ignore, warn

ANNEALS = "`gebm-kit eval RUN eval.log_partition=smc` estimates A by annealing"
"""How to have A annealed, in words."""

ROWS_AT_ONCE = 1024
"""Rows, or latent codes, evaluated at once where no block size is given. It bounds memory, and results do not depend on it
beyond rounding."""


SPREAD_LIMIT = 1.0
"""Standard deviation of the replicates' log Z above which their mean can't be trusted: the interval of ten log-normal Z_r
then covers the truth in less than 92 % of cases."""


@dataclass(frozen=True, slots=True)
class LogPartition:
    """An estimate of ``A(beta)``.

    Attributes:
        value: the estimate, in nats.
        se: its standard error.
        ess: effective sample size of the importance weights.
        pareto_k: shape of the generalised Pareto law fitted to the largest weights (the paper's k-hat); the weights have
            finite moments of order below 1/k. -inf when the largest weights are equal, inf when a few draws carry nearly all
            weight, NaN when there are too few weights to tell.
        num_draws: base draws behind the importance weights.
        method: the method of the estimate: ``importance-sampling`` or ``smc``.
        degrees: degrees of freedom of the standard error, for Student's t.
        reason: the reason for this method, in words.
        replicates, particles, rungs, spread: for smc, the number of populations, particles in each, levels of the
            ladder, and the standard deviation of the populations' log Z; None otherwise.
        forward, reverse: ``log mean_B exp(-beta E)`` over base draws and ``-log mean_Q exp(beta E)`` over draws of the
            model. The first tends to be too low, the second too high. NaN without draws of the model.
        bridge, bridge_se: two-state bridge sampling between these draws, as a cross-check. NaN without draws of the model,
            and where base and model are too far apart for a bridge.
        bridge_draws: the source of the model's draws: ``smc`` or ``sampler``.
    """

    value: float
    se: float
    ess: float
    pareto_k: float
    num_draws: int
    method: str = "importance-sampling"
    degrees: int = 10**6
    reason: str = ""
    replicates: int | None = None
    particles: int | None = None
    rungs: int | None = None
    spread: float | None = None
    forward: float = math.nan
    reverse: float = math.nan
    bridge: float = math.nan
    bridge_se: float = math.nan
    bridge_draws: str | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval, Student's t."""
        half = t_quantile(self.degrees) * self.se
        return self.value - half, self.value + half

    @property
    def reliable(self) -> bool:
        """Whether the weights, or the replicates, allow the estimate; see `warn_of_tail`. Unknown counts as reliable."""
        if self.method == "smc":
            return self.spread is None or self.spread <= SPREAD_LIMIT
        return not self.pareto_k >= PARETO_K_LIMIT

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON; a value that is not finite is null."""
        low, high = self.interval
        return plain(
            {
                "value": self.value,
                "se": self.se,
                "low": low,
                "high": high,
                "method": self.method,
                "reason": self.reason,
                "reliable": self.reliable,
                "ess": self.ess,
                "pareto_k": self.pareto_k,
                "num_draws": self.num_draws,
                "replicates": self.replicates,
                "particles": self.particles,
                "rungs": self.rungs,
                "spread": self.spread,
                "forward": self.forward,
                "reverse": self.reverse,
                "gap": self.reverse - self.forward,
                "bridge": self.bridge,
                "bridge_se": self.bridge_se,
                "bridge_draws": self.bridge_draws,
            }
        )


def prior_energies(model: GEBM, num: int, generator: torch.Generator, on_progress: OnProgress = ignore) -> Tensor:
    """Compute ``E(G(z))`` at ``num`` prior draws, (num,) in float64. The generator lives on the model's device."""
    z = torch.randn(num, model.latent_dim, generator=generator, device=generator.device, dtype=model.dtype)
    with LatentPotential(model, block_size=min(num, ROWS_AT_ONCE)) as potential:
        return potential.energy(z, counted(on_progress, "log Z", num)).double()


def from_tilt(tilt: Tensor) -> LogPartition:
    """Estimate ``A(beta) = log mean exp(-beta E(G(z)))`` from ``beta E`` of base draws, (N,) in float64.

    The estimate is biased low by about ``1 / (2 ess)``.
    """
    return LogPartition(
        value=float(estimators.log_partition(tilt)),
        se=float(estimators.log_partition_se(tilt)),
        ess=float(estimators.effective_sample_size(-tilt)),
        pareto_k=pareto_k(-tilt),
        num_draws=len(tilt),
        degrees=max(len(tilt) - 1, 1),
    )


def warn_of_tail(estimate: LogPartition) -> None:
    """Warn, as `GebmKitWarning`, when the weights are too heavy-tailed to estimate A."""
    if estimate.pareto_k >= PARETO_K_LIMIT:
        warn(
            f"the log-partition A and KALE are not to be trusted: a few of {estimate.num_draws:,} base draws carry most of "
            f"the weight (Pareto k {estimate.pareto_k:.2f}, below {PARETO_K_LIMIT} is wanted), so A is too low, KALE too "
            "high, and the standard error too small. Energy and base are too far apart for importance sampling; "
            f"{ANNEALS} instead, which takes longer."
        )
