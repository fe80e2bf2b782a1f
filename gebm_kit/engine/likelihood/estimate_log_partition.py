"""The log-partition by the method that is reliable: importance sampling while its weights allow it, else annealing.

References:
    Pareto Smoothed Importance Sampling. A. Vehtari, D. Simpson, A. Gelman, Y. Yao, J. Gabry, JMLR 25(72), 2024.
    https://arxiv.org/abs/1507.02646
    Simulating ratios of normalizing constants via a simple identity: a theoretical exploration. X.-L. Meng, W. H. Wong,
    Statistica Sinica 1996. https://www3.stat.sinica.edu.tw/statistica/j6n4/j6n43/j6n43.htm
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import torch
from torch import Tensor

from gebm_kit.core.errors import RunFailed, UsageError
from gebm_kit.core.estimators import pareto_k, t_quantile
from gebm_kit.core.interfaces import OnCodes
from gebm_kit.core.model import LatentPotential
from gebm_kit.core.progress import OnProgress, ignore, warn
from gebm_kit.engine.likelihood.annealing import Annealed, anneal
from gebm_kit.engine.likelihood.bridge import bridge
from gebm_kit.engine.likelihood.log_partition import ANNEALS, SPREAD_LIMIT, LogPartition, from_tilt, warn_of_tail

Method = Literal["auto", "importance-sampling", "smc"]


IMPORTANCE_LIMIT = 0.5
"""Pareto k at which the variance of importance weights becomes infinite, so that a standard error means nothing."""


LEAST_OVERLAP = 50.0
"""Effective number of draws in the overlap of base and model below which the two are too far apart for a bridge."""


LEAST_GROUPS = 5
"""Fewest independent groups of draws for a warning from the bridge; with fewer, its error is not known well enough."""


ON_CODES = "annealing costs little for an energy on codes"
"""The reason given for annealing whatever Pareto k says, where the energy is a function of latent codes."""

DISAGREEMENT = 3.0
"""Distance between bridge and estimate, in half-widths of a 95 % interval, beyond which they disagree."""


def estimate_log_partition(
    potential: LatentPotential,
    tilt: Tensor,
    other: Tensor,
    generator: torch.Generator,
    dtype: torch.dtype,
    *,
    method: Method = "auto",
    may_anneal: bool = True,
    model_tilt: Tensor | None = None,
    effective: float = math.nan,
    on_progress: OnProgress = ignore,
) -> LogPartition:
    """Estimate A(beta) and its standard error, by importance sampling while Pareto k is below 0.5, else by annealing.

    The Pareto k that decides comes from other base draws than the estimate. On the same draws it would be small exactly when
    the large weights happen to be missing, so the estimates kept would be those that are too low. With ``auto``, an
    energy on codes is always annealed: that costs little, and finds dips of the energy that no base draw reaches.

    Args:
        potential: the potential at beta.
        tilt: ``beta E`` at base draws, (N,) float64 on the CPU, for the estimate.
        other: ``beta E`` at as many other base draws, for the choice.
        generator: generator for annealing, on the potential's device.
        dtype: type of latent codes.
        method: ``auto``, or the method to use whatever k is.
        may_anneal: whether ``auto`` may anneal. Without it, the estimate from base draws is reported whatever k is, and its
            ``reason`` says so where it is not reliable.
        model_tilt: ``beta E`` at draws of the model, (R, M) in R groups, for the bridge where nothing is annealed.
        effective: number of independent draws that the model's draws are worth.

    Raises:
        UsageError: no starting point has a finite energy; RunFailed: the ladder does not end. With ``auto``, importance
            sampling is used in both cases.
    """
    k = pareto_k(-other)
    weighed = dataclasses.replace(from_tilt(tilt), pareto_k=k)
    cheap = isinstance(potential.model.energy, OnCodes)
    anneals = method == "smc" or (method == "auto" and may_anneal and (k >= IMPORTANCE_LIMIT or cheap))
    if not anneals:
        reason = "asked for" if method != "auto" else _words(k) + f"; not reliable: {ANNEALS}" * (not weighed.reliable)
        found = _bridged(dataclasses.replace(weighed, reason=reason), tilt, model_tilt, effective, "sampler")
        warn_of_tail(found)
        return found
    try:
        annealed = anneal(potential, generator, dtype, on_progress=on_progress)
    except (UsageError, RunFailed) as error:
        if method == "smc":
            raise
        warn_of_tail(weighed)
        return dataclasses.replace(weighed, reason=f"smc failed: {error.message}")
    reason = "asked for" if method != "auto" else ON_CODES if cheap else _words(k)
    found = _from_replicates(annealed, dataclasses.replace(weighed, reason=reason))
    found = _bridged(found, tilt, annealed.tilt, annealed.effective, "smc")
    _warn_of_replicates(found)
    return found


def _words(k: float) -> str:
    """Describe Pareto k as the reason for a method."""
    if math.isnan(k):
        return "Pareto k of the base draws' weights is not known"
    return f"Pareto k {k:.2f} of the base draws' weights is {'not ' * (k >= IMPORTANCE_LIMIT)}below {IMPORTANCE_LIMIT}"


def _from_replicates(annealed: Annealed, weighed: LogPartition) -> LogPartition:
    """Replace the importance-sampling estimate by the replicates'; its diagnostics of weights stay."""
    replicates, particles = annealed.tilt.shape
    return dataclasses.replace(
        weighed,
        value=annealed.value,
        se=annealed.se,
        degrees=replicates - 1,
        method="smc",
        replicates=replicates,
        particles=particles,
        rungs=annealed.rungs,
        spread=annealed.spread,
    )


def _bridged(
    estimate: LogPartition, tilt: Tensor, model_tilt: Tensor | None, effective: float, draws: str
) -> LogPartition:
    """Add a bridge to the estimate, if there are draws of the model and finite energies on both sides."""
    if model_tilt is None or not bool(torch.isfinite(model_tilt).all()) or not math.isfinite(float((-tilt).max())):
        return estimate
    groups = len(model_tilt)
    base = tilt[: len(tilt) // groups * groups].unflatten(0, (groups, -1))
    worth = None if math.isnan(effective) else effective
    found = bridge(base, model_tilt, worth)
    estimate = dataclasses.replace(
        estimate,
        forward=found.forward,
        reverse=found.reverse,
        bridge_draws=draws,
    )
    if not found.overlap >= LEAST_OVERLAP:
        return estimate
    estimate = dataclasses.replace(estimate, bridge=found.value, bridge_se=found.se)
    _warn_of_bridge(estimate, groups)
    return estimate


def _warn_of_bridge(estimate: LogPartition, groups: int) -> None:
    """Warn when bridge and estimate are further apart than their errors allow."""
    if groups < LEAST_GROUPS:
        return
    apart = abs(estimate.bridge - estimate.value)
    if apart > 0.1 and apart > DISAGREEMENT * t_quantile(groups - 1) * math.hypot(estimate.se, estimate.bridge_se):
        source = "the sampler's draws" if estimate.bridge_draws == "sampler" else "the same particles"
        warn(
            f"the log-partition is {estimate.value:.2f} by {estimate.method} and {estimate.bridge:.2f} by bridge sampling "
            f"between base draws and {source}, which is further apart than their errors allow: the draws may not have "
            "reached the whole model, or important weights may be missing."
        )


def _warn_of_replicates(estimate: LogPartition) -> None:
    """Warn when the replicates' log Z differ too much."""
    if not (estimate.spread is not None and estimate.spread <= SPREAD_LIMIT):
        warn(
            f"the log-partition A is not to be trusted: {estimate.replicates} annealed populations of "
            f"{estimate.particles:,} particles differ by {estimate.spread:.1f} nats (standard deviation), so A is likely "
            "too low and its interval too narrow. The model is too far from its base."
        )
