"""Tests of one attempt's draws: R-hat and the other diagnostics, drift of the energy, and agreement with the pilot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gebm_kit.engine.sampling.convergence import MIN_STEPS, measure
from gebm_kit.engine.sampling.diagnostics import Diagnostics
from gebm_kit.engine.sampling.pilot import Pilot
from gebm_kit.engine.sampling.recorder import side_by_side

ERRORS = 4.0
"""Standard errors by which two means may differ: noise alone exceeds them in 1 of 16,000 tests."""

MANY_CHAINS = 16
"""Chains from which the error of a mean is taken from the spread of the chains, which needs no autocorrelation."""

MIXING = ("rhat_max", "nested_rhat_max")
"""Diagnostics that ``max_rhat`` replaces the limits of."""

FEWEST_DRAWS = 30
"""Draws below which the error of equipartition, which is estimated from them, says nothing."""

IGNORED = ("divergences", "unsettled")
"""Diagnostics that no other sampler would mend: where the energy is infinite, every sampler is refused."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """Result of the tests of one attempt.

    Attributes:
        problem: what failed, in words; "" when the draws are accepted.
        excess: R-hat minus 1, by which two attempts are compared; NaN when it is unknown.
    """

    problem: str
    excess: float

    @property
    def held(self) -> bool:
        """Whether the draws are accepted."""
        return not self.problem


def judged(
    diagnostics: Diagnostics, records: Sequence[Mapping[str, Tensor]], pilot: Pilot, max_rhat: float
) -> Judgement:
    """Test one attempt: R-hat, the other diagnostics, drift, and agreement with the pilot's weighted mean of U."""
    known = [value for value in (diagnostics.rhat_max, diagnostics.nested_rhat_max) if not math.isnan(value)]
    worst = max(known, default=math.nan)
    excess = worst - 1
    if worst > max_rhat:
        return Judgement(f"R-hat is {worst:.3f} where at most {max_rhat:g} is wanted", excess)
    for check in diagnostics.checks():
        unknown = check.name == "rhat_max" and not known
        few = check.name == "equipartition" and diagnostics.num_samples < FEWEST_DRAWS
        if not check.ok and check.name not in IGNORED and not few and (unknown or check.name not in MIXING):
            return Judgement(f"{check.name} is {_value(diagnostics, check.name)} where {check.good} is wanted", excess)
    return Judgement(_energy_problem(records, pilot), excess)


def _value(diagnostics: Diagnostics, name: str) -> str:
    value = getattr(diagnostics, name, diagnostics.details.get(name, math.nan))
    return f"{value:.3g}"


def _energy_problem(records: Sequence[Mapping[str, Tensor]], pilot: Pilot) -> str:
    """Compare the mean of U over the two halves of the chains, and over all of them with the pilot's."""
    if not records or any("trace" not in record for record in records):
        return ""
    trace = side_by_side(records)[0][..., -1].double()
    if len(trace) < 2 * MIN_STEPS or not trace.shape[1]:
        return ""
    half = len(trace) // 2
    gap, error = _difference(trace[:half], trace[-half:])
    if abs(gap) > ERRORS * error + _rounding(trace):
        return f"the mean of U moves by {gap:.3g} from the first half of the steps to the second ({error:.2g} is its error)"
    if pilot.trusted:
        wanted, wanted_error = pilot.mean_potential()
        gap = float(trace.mean()) - wanted
        error = math.hypot(wanted_error, _error(trace))
        if abs(gap) > ERRORS * error + _rounding(trace):
            return f"the mean of U is {gap:.3g} off that of the pilot's weighted draws ({error:.2g} is its error)"
    return ""


def _difference(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Return the difference of two halves' means, (n, C) each, and its standard error."""
    gap = second.mean(0) - first.mean(0)
    if len(gap) >= MANY_CHAINS:
        return float(gap.mean()), float(gap.std()) / math.sqrt(len(gap))
    return float(gap.mean()), math.hypot(_error(first), _error(second))


def _error(trace: Tensor) -> float:
    """Return the Monte Carlo error of the mean of U, (N, C)."""
    if trace.shape[1] >= MANY_CHAINS:
        return float(trace.mean(0).std()) / math.sqrt(trace.shape[1])
    error = float(measure(trace.unsqueeze(2)).mcse_mean[0])
    return error if math.isfinite(error) else math.inf


def _rounding(trace: Tensor) -> float:
    """Return what single precision may be off."""
    return 1e-5 * float(trace.abs().mean()) + torch.finfo(torch.float32).tiny
