"""The diagnostics of a sampling call: their values, their limits, and the sentences about those that fail.

With enough chains, nested R-hat decides; with fewer, split R-hat does. Split R-hat asks every chain to have explored
the whole distribution. Many short chains need not do that, as long as all of them have forgotten where they started.
But forgetting does not prove arrival: chains that a steep potential swept together and now holds in place also remember
little. So even with many chains, each one has to show that it moves, by a split R-hat below a wider limit.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from gebm_kit.core.estimators import PARETO_K_LIMIT
from gebm_kit.core.files import plain
from gebm_kit.core.progress import warn


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """What a sampling call reports beside its draws.

    R-hat and effective sample sizes are the worst values over coordinates and the potential, for chains after warm-up.
    They are NaN when there are too few steps to tell.

    Attributes:
        sampler: the sampler's component name.
        num_samples, num_chains: draws kept, chains they come from.
        warmup_steps, steps: steps of each chain during and after warm-up.
        acceptance: mean acceptance probability over chains and steps after warm-up.
        divergences: divergent steps after warm-up, over all chains.
        rhat_max: largest rank-normalised split R-hat; inf when chains never moved.
        ess_min: smallest bulk effective sample size of all steps after warm-up.
        ess_per_grad: ``ess_min`` for each gradient evaluation spent after warm-up.
        grad_evals, forward_evals: rows on which the model was evaluated with and without gradient, warm-up included.
        seconds: wall-clock time, warm-up included.
        inverse_temperature, seed: as requested.
        step_size: the frozen value of the parameter that warm-up tuned; NaN when there is nothing to tune.
        warmup_divergences: divergent steps during warm-up.
        equipartition: mean of ``z_i dU/dz_i`` over draws and coordinates, 1 under the target.
        equipartition_se: standard error of ``equipartition``, for ``ess_min`` independent draws.
        nested_rhat_max: largest nested R-hat of superchains, over coordinates, the potential, and the direction in
            which chains differ most; NaN for fewer than 64 chains.
        ess_tail_min: smallest effective sample size of a 5 % or 95 % quantile.
        mcse_max: largest Monte Carlo error of a coordinate's mean over all steps, in units of its standard deviation.
        stuck_chains: chains that never moved after warm-up.
        log_partition, log_partition_se: estimate of A that came with the draws (population methods), else NaN.
        pareto_k: Pareto k of the importance weights behind the draws (population methods), else NaN.
        details: further numbers from the sampler, by name.
        family: the sampler's family; only kernels have an R-hat.
        sampler_reason: why `auto` drew with this sampler, in one sentence; None when the sampler was named.
        unsettled: what `auto` stopped with when no attempt passed its tests, in one sentence; None otherwise.
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
    equipartition_se: float = math.nan
    nested_rhat_max: float = math.nan
    ess_tail_min: float = math.nan
    mcse_max: float = math.nan
    stuck_chains: int = 0
    log_partition: float = math.nan
    log_partition_se: float = math.nan
    pareto_k: float = math.nan
    details: dict[str, float] = field(default_factory=dict)
    family: str = "kernel"
    sampler_reason: str | None = None
    unsettled: str | None = None

    def checks(self) -> list[Check]:
        """Compare each diagnostic with its limit."""
        return checks(self)

    @property
    def problems(self) -> list[str]:
        """Problems of the draws, one sentence each: the number, the limit and what to do."""
        return [check.problem for check in self.checks() if check.problem]

    @property
    def converged(self) -> bool:
        """Whether no check found a problem."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON, with the verdict; numbers that are not finite are None."""
        verdict = {"converged": self.converged, "problems": self.problems}
        values: dict[str, Any] = plain(dataclasses.asdict(self))
        return values | verdict

    def warn(self) -> None:
        """Emit each of `problems` as a `GebmKitWarning`."""
        for problem in self.problems:
            warn(problem)


RHAT_LIMIT = 1.05
"""Above it, the chains disagree about some coordinate (Vehtari et al.'s 1.01 is for a few long chains)."""


RHAT_LIMIT_OF_MANY = 1.5
"""Limit of R-hat where nested R-hat decides.

Stationary chains with two effective draws each show about this value (AR(1), 100 steps).
"""


NESTED_RHAT_LIMIT = 1.05
"""Above it, the means of superchains differ by more than 0.3 standard deviations because chains remember their
start."""


ESS_LIMIT = 100.0
"""Below it, neither R-hat nor quantiles are reliable (Vehtari et al. ask for 100 from each of four chains)."""


STUCK_SHARE = 0.01
"""Largest share of chains that may never have moved."""


EQUIPARTITION_LIMIT = 0.1
"""Largest distance from 1 that is acceptable as the bias of a kernel without correction."""


EQUIPARTITION_ERRORS = 5.0
"""Distance from 1, in standard errors, that noise alone may explain."""


@dataclass(frozen=True, slots=True)
class Check:
    """One diagnostic against its limit.

    Attributes:
        name: attribute of `Diagnostics`.
        good: what is wanted, in words.
        ok: whether the diagnostic is within its limit.
        problem: the sentence about a failure; empty when another check's sentence covers it.
    """

    name: str
    good: str
    ok: bool
    problem: str = ""


def checks(d: Diagnostics) -> list[Check]:
    """List the checks that apply to the sampler's family, in the order in which their sentences are shown."""
    if d.family == "kernel":
        return [*_mixing(d), *_sizes(d), *_divergences(d), *_equipartition(d), *_settled(d)]
    found = [*_weights(d), *_sizes(d), *_divergences(d), *_rejection(d)]
    return found if d.family == "refiner" else [*found, *_equipartition(d), *_settled(d)]


def _settled(d: Diagnostics) -> list[Check]:
    """Check, for draws of `auto`, that an attempt passed its tests."""
    return [] if d.unsettled is None else [Check("unsettled", "null", False, d.unsettled)]


def _mixing(d: Diagnostics) -> list[Check]:
    """Check the R-hat that decides, and the chains that never moved."""
    wanted = f"at most {RHAT_LIMIT}"
    if math.isinf(d.rhat_max):
        text = (
            "some chains do not move at all, or not to finite places (R-hat is infinite), so the draws are where they "
            "started; use a smaller step size, or another sampler."
        )
        return [Check("rhat_max", wanted, False, text)]
    if not math.isnan(d.nested_rhat_max):
        text = (
            f"the chains have not mixed: nested R-hat is {d.nested_rhat_max:.3f} (at most {NESTED_RHAT_LIMIT} is wanted), "
            "so the draws still depend on where the chains started; raise `warmup` and `steps`, or use a sampler that moves "
            "further a step."
        )
        forgot = d.nested_rhat_max <= NESTED_RHAT_LIMIT
        found = [_check("nested_rhat_max", f"at most {NESTED_RHAT_LIMIT}", forgot, text)]
        text = (
            f"the chains have not mixed: R-hat is {d.rhat_max:.3f} (at most {RHAT_LIMIT_OF_MANY} is wanted, even of many "
            "chains), so each has hardly moved from where warm-up left it; raise `warmup` and `steps`, or use a sampler "
            "that moves further a step."
        )
        moved = d.rhat_max <= RHAT_LIMIT_OF_MANY
        found.append(_check("rhat_max", f"at most {RHAT_LIMIT_OF_MANY}", moved, text if forgot else ""))
    elif not math.isnan(d.rhat_max):
        text = (
            f"the chains have not mixed: R-hat is {d.rhat_max:.3f} (at most {RHAT_LIMIT} is wanted), so each has seen "
            "little of what all of them have together, and the draws may depend on where they started; raise `warmup` and "
            "`steps`."
        )
        found = [_check("rhat_max", wanted, d.rhat_max <= RHAT_LIMIT, text)]
    else:
        text = (
            f"whether the chains have mixed is unknown: {d.steps} steps are too few for an R-hat (at least 4 are wanted, "
            "8 of a single chain); raise `steps`."
        )
        found = [Check("rhat_max", wanted, False, text)]
    text = (
        f"{d.stuck_chains} of {d.num_chains} chains never moved after warm-up (at most {STUCK_SHARE:.0%} is wanted), so the "
        "draws hold too much of where they stand; raise `steps`, or use another sampler."
    )
    few = d.stuck_chains <= STUCK_SHARE * d.num_chains
    return [*found, _check("stuck_chains", f"at most {STUCK_SHARE:.0%} of num_chains", few, text)]


def _sizes(d: Diagnostics) -> list[Check]:
    """Check the known effective sample sizes, with one sentence about the smaller.

    A kernel's sizes count all its steps. A population's count the draws kept, so when few are requested, half of that
    number is enough.
    """
    sizes = {"ess_min": d.ess_min, "ess_tail_min": d.ess_tail_min}
    sizes = {name: size for name, size in sizes.items() if not math.isnan(size)}
    limit = ESS_LIMIT if d.family == "kernel" else min(ESS_LIMIT, d.num_samples / 2)
    found = []
    for name, size in sizes.items():
        which = "" if name == "ess_min" else " of a 5 % or 95 % quantile"
        text = (
            f"the effective sample size{which} is {size:.3g} (at least {limit:g} is wanted), so the draws say little about "
            f"the distribution; raise {'`steps` or ' if d.family == 'kernel' else ''}`num_chains`."
        )
        smaller = name == min(sizes, key=sizes.__getitem__)
        found.append(_check(name, f"at least {limit:g}", size >= limit, text if smaller else ""))
    return found


def _weights(d: Diagnostics) -> list[Check]:
    text = (
        "the draws repeat the few of all prior draws that carry most of the weight (Pareto k "
        f"{d.pareto_k:.2f}, below {PARETO_K_LIMIT} is wanted): they miss what those did not see, and the log-partition is "
        "too low. Raise `num_candidates`, or use a sampler that moves (smc, hmc)."
    )
    known = not math.isnan(d.pareto_k)
    return [_check("pareto_k", f"below {PARETO_K_LIMIT}", d.pareto_k < PARETO_K_LIMIT, text)] if known else []


def _rejection(d: Diagnostics) -> list[Check]:
    """Check rejection samplers: draws that passed no test, and energies below the bound."""
    exhausted, violations = d.details.get("exhausted"), d.details.get("violations")
    found = []
    if exhausted is not None:
        text = (
            f"{exhausted:,} of {d.details['islands'] * d.num_chains:,} draws passed no rejection test within "
            "`max_proposals` (none is wanted). They are chosen from their own proposals by weight, which leaves them too "
            "near to the base. Use a sampler that moves (hmc, smc), or raise `max_proposals`."
        )
        found.append(_check("exhausted", "0", not exhausted, text))
    if violations is not None:
        text = (
            f"{violations:,} proposals had an energy below the bound that rejection relies on (none is wanted): places of "
            "so low an energy are drawn too rarely. Raise `margin` or `pool_size`."
        )
        found.append(_check("violations", "0", not violations, text))
    return found


def _divergences(d: Diagnostics) -> list[Check]:
    share = d.divergences / max(d.num_chains * d.steps, 1)
    if d.family == "kernel":
        text = (
            f"{d.divergences} steps diverged ({share:.1%} of all; none is wanted): the energy was not finite there, or its "
            "error exceeded 1000. They were rejected; regions that the chains can't enter are missing from the draws, as "
            "they should be where the energy is meant to be infinite. Elsewhere, use a smaller step size."
        )
    else:
        text = (
            f"{d.divergences:,} points or moves ({share:.1%} of all; none is wanted) met an energy that is not finite, or "
            "an error of it above 1000. They were refused; places that can't be entered are missing from the draws, as they "
            "should be where the energy is meant to be infinite."
        )
    return [_check("divergences", "0", d.divergences == 0, text)]


def _equipartition(d: Diagnostics) -> list[Check]:
    """Check equipartition when its error is known; noise alone never fails."""
    if math.isnan(d.equipartition) or math.isnan(d.equipartition_se):
        return []
    limit = max(EQUIPARTITION_LIMIT, EQUIPARTITION_ERRORS * d.equipartition_se)
    text = (
        f"equipartition is {d.equipartition:.3g} where 1 is exact (at most {limit:.2g} off is wanted): the chains have not "
        "arrived, or the step of a kernel without correction is too long; raise `warmup`, or lower the step size."
    )
    return [_check("equipartition", f"1 within {limit:.2g}", abs(d.equipartition - 1) <= limit, text)]


def _check(name: str, good: str, ok: bool, problem: str) -> Check:
    return Check(name, good, ok, "" if ok else problem)
