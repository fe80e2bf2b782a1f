"""The budget of an evaluation: what its stages are estimated to cost, and what is cut, in a stated order, to stay within it.

Cuts, each only as far as needed:

1. fewer base draws behind log Z, by halves, down to `LEAST_BASE_DRAWS`, where that saves time;
2. chains are continued to 2x instead of 4x their length;
3. fewer draw sets, down to `LEAST_SETS`;
4. fewer draws in a set, by halves, down to `LEAST_DRAWS`, where that saves time;
5. chains are not continued.

Before anything is drawn, the costs of everything but sampling are estimated from the time of each stage's unit. Base draws
then tell the sampler, whose cost is estimated next. After sampling, whose real time is then known, the continuation is
decided again. Nothing is cut where the estimate is within the budget, so an ample budget never changes a figure.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from gebm_kit.core.errors import UsageError, shown
from gebm_kit.core.progress import warn
from gebm_kit.engine.evaluation.equilibrium import GROUPS, LENGTHS
from gebm_kit.engine.likelihood.model_fit import NUM_DRAWS

SHARE = 1 / 3
"""Largest share of the training time that an evaluation takes by default."""

LEAST_BUDGET = 30.0
"""Budget in seconds where a third of the training time is less: nothing is worth cutting below it."""

LEAST_SETS = 3
"""Fewest draw sets that a budget leaves, since Student's interval over two is three times as wide."""

LEAST_DRAWS = 500
"""Fewest draws in a set that a budget leaves; metrics may need more (`Metric.least_rows`)."""

LEAST_BASE_DRAWS = 500
"""Fewest base draws behind log Z that a budget leaves; as many others are behind Pareto k."""

WORTH_CUTTING = 0.1
"""Share of the seconds that fewer draws must save to be cut: long chains take as long however few states are kept."""

WORTH_SAYING = 10.0
"""Seconds of an evaluation from which its estimate is said beforehand; the JSON always has it."""

STAGES = ("base", "sampling", "log_partition", "metrics", "equilibrium")
"""Stages whose seconds are estimated and counted, in their order."""


def check_budget(budget: object) -> None:
    """Raise UsageError unless a budget is a number of seconds above 0, or None."""
    if budget is None:
        return
    number = isinstance(budget, int | float) and not isinstance(budget, bool)
    if not (number and math.isfinite(budget) and budget > 0):  # type: ignore[arg-type, operator]
        raise UsageError(f"budget must be a number of seconds above 0, or None, got {shown(budget)}")


def default_budget(training_seconds: float | None) -> float | None:
    """Return the budget where none is given: a third of the training time, at least `LEAST_BUDGET`; None: not limited."""
    return None if training_seconds is None else max(SHARE * training_seconds, LEAST_BUDGET)


@dataclass(frozen=True, slots=True)
class Plan:
    """How much an evaluation does.

    Attributes:
        num_samples, num_sets: draws in each set, and sets.
        longest: longest chain length in the equilibrium test, 1, 2 or 4 times the evaluation's own.
        cut: what was cut to stay within the budget, in words.
        base_draws: base draws behind log Z, and as many others behind Pareto k.
    """

    num_samples: int
    num_sets: int
    longest: int = LENGTHS[-1]
    cut: tuple[str, ...] = ()
    base_draws: int = field(default_factory=lambda: NUM_DRAWS)

    @property
    def groups(self) -> int:
        """Groups of chains that are continued."""
        return min(self.num_sets, GROUPS)


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of each stage's unit.

    Attributes:
        base_set: one set of base draws, without their energies.
        gebm_set: number of draws -> one set of the GEBM's draws, warm-up included. Chains have their steps to make however
            few of their states are kept.
        energies: energies of one set.
        log_partition: A and KALE, without the energies of sets and of further base draws.
        base_draw: a base draw with its energy.
        score: all metrics of one set.
        first_score: the first metric of one set.
        fixed_sets: sets of held-out data, which are scored too.
        further: longest length -> cost of all lengths beyond the first, in units of the first.
    """

    base_set: float = 0.0
    gebm_set: Callable[[int], float] = lambda draws: 0.0
    energies: float = 0.0
    log_partition: float = 0.0
    base_draw: float = 0.0
    score: float = 0.0
    first_score: float = 0.0
    fixed_sets: int = 0
    further: Mapping[int, float] = field(default_factory=lambda: {1: 0.0, 2: 1.0, 4: 3.0})

    def scored(self, score: float, first: float, fixed_sets: int) -> Costs:
        """Return these costs with the time of a set's metrics, of the first metric, and the number of held-out sets."""
        return replace(self, score=score, first_score=first, fixed_sets=fixed_sets)

    def estimated(self, plan: Plan, full: int) -> dict[str, float]:
        """Estimate the seconds of every stage; the units are for sets of ``full`` draws."""
        share, sets = plan.num_samples / full, plan.num_sets
        drawn, further = self.gebm_set(plan.num_samples), max(2 * plan.base_draws - sets * plan.num_samples, 0)
        scored = plan.groups * (LENGTHS.index(plan.longest)) * self.first_score
        return {
            "base": sets * share * self.base_set,
            "sampling": sets * drawn,
            "log_partition": self.log_partition + further * self.base_draw + sets * share * self.energies,
            "metrics": (2 * sets + self.fixed_sets) * share * self.score,
            "equilibrium": self.further[plan.longest] * plan.groups * drawn + share * scored,
        }


def within(plan: Plan, costs: Costs, budget: float | None, least_draws: int = LEAST_DRAWS) -> Plan:
    """Cut the plan, in the order above, until its estimate is within the budget or nothing is left to cut."""
    full = plan.num_samples
    if budget is None:
        return plan

    def seconds(candidate: Plan) -> float:
        return sum(costs.estimated(candidate, full).values())

    def helps(cut: Plan, whole: Plan) -> bool:
        return seconds(cut) <= (1 - WORTH_CUTTING) * seconds(whole)

    for candidate in _candidates(plan, max(LEAST_DRAWS, least_draws), helps):
        if seconds(candidate) <= budget:
            return candidate
        plan = candidate
    return plan


def no_more_than(plan: Plan, before: Plan, asked: Plan) -> Plan:
    """Return a plan with no more sets, draws and longer chains than one before it."""
    num_samples, num_sets = min(plan.num_samples, before.num_samples), min(plan.num_sets, before.num_sets)
    longest, base_draws = min(plan.longest, before.longest), min(plan.base_draws, before.base_draws)
    return _cut(asked, asked, num_samples=num_samples, num_sets=num_sets, longest=longest, base_draws=base_draws)


def _candidates(plan: Plan, least_draws: int, helps: Callable[[Plan, Plan], bool]) -> Iterator[Plan]:
    """Yield the plan, then ever cheaper ones. Draws, of either kind, are cut only where that ``helps``."""
    yield plan
    asked = plan
    while plan.base_draws // 2 >= LEAST_BASE_DRAWS and helps(replace(plan, base_draws=plan.base_draws // 2), plan):
        plan = _cut(plan, asked, base_draws=plan.base_draws // 2)
        yield plan
    if plan.longest == LENGTHS[-1]:
        plan = _cut(plan, asked, longest=LENGTHS[-2])
        yield plan
    for sets in range(asked.num_sets - 1, LEAST_SETS - 1, -1):
        plan = _cut(plan, asked, num_sets=sets)
        yield plan
    fewest = plan.num_samples
    while fewest // 2 >= least_draws:
        fewest //= 2
    while plan.num_samples > fewest and helps(replace(plan, num_samples=fewest), plan):
        plan = _cut(plan, asked, num_samples=plan.num_samples // 2)
        yield plan
    if plan.longest > 1:
        yield _cut(plan, asked, longest=1)


def _cut(plan: Plan, asked: Plan, **fewer: int) -> Plan:
    """Return a plan with fewer of something, and say how it differs from what was asked for."""
    plan = replace(plan, **fewer)  # type: ignore[arg-type]
    words = list(asked.cut)
    if plan.base_draws != asked.base_draws:
        words.append(f"log Z from {plan.base_draws:,} base draws instead of {asked.base_draws:,}")
    if plan.longest != asked.longest:
        words.append(
            f"chains are continued to {plan.longest}x instead of {asked.longest}x their length"
            if plan.longest > 1
            else "chains are not continued"
        )
    if plan.num_sets != asked.num_sets:
        words.append(f"{plan.num_sets} draw sets instead of {asked.num_sets}")
    if plan.num_samples != asked.num_samples:
        words.append(f"{plan.num_samples:,} draws in a set instead of {asked.num_samples:,}")
    return replace(plan, cut=tuple(words))


class Ledger:
    """The seconds that an evaluation may take, is estimated to take, and has taken.

    Attributes:
        budget: seconds; None: not limited.
        estimated: seconds by stage before anything was drawn; {} where nothing was timed.
        spent: seconds by stage so far.
    """

    def __init__(self, budget: float | None) -> None:
        self.budget = budget
        self.estimated: dict[str, float] = {}
        self.spent: dict[str, float] = {}
        self._began = time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the block's seconds as spent on a stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.spent[name] = self.spent.get(name, 0.0) + time.perf_counter() - began

    @property
    def total(self) -> float:
        """Seconds since the evaluation began."""
        return time.perf_counter() - self._began

    def as_dict(self, plan: Plan) -> dict[str, Any]:
        """Return plain JSON."""
        estimated = {name: round(seconds, 3) for name, seconds in self.estimated.items()}
        spent = {name: round(seconds, 3) for name, seconds in self.spent.items()}
        return {
            "seconds": self.budget,
            "estimated": {**estimated, "total": round(sum(self.estimated.values()), 3)} if estimated else None,
            "spent": {**spent, "total": round(self.total, 3)},
            "cut": list(plan.cut),
        }


def left_over(plan: Plan, ledger: Ledger, costs: Costs, full: int) -> float | None:
    """Return the seconds that log Z and metrics are estimated to leave from now on; None: not limited."""
    if ledger.budget is None:
        return None
    estimated = costs.estimated(replace(plan, longest=1), full)
    rest = estimated["log_partition"] + estimated["metrics"] - ledger.spent.get("metrics", 0.0)
    return ledger.budget - ledger.total - max(rest, 0.0)


def after_sampling(plan: Plan, ledger: Ledger, costs: Costs, full: int, share: float) -> Plan:
    """Decide again how far chains are continued, now that the time of the first length is known.

    Args:
        share: share of the first length's time that one more length takes for the chains that are continued.
    """
    if ledger.budget is None or plan.longest == 1:
        return plan
    left = left_over(plan, ledger, costs, full)
    assert left is not None
    once = ledger.spent.get("sampling", 0.0) * share
    for longest in [length for length in reversed(LENGTHS) if length <= plan.longest]:
        if costs.further[longest] * once <= left or longest == 1:
            break
    if longest == plan.longest:
        return plan
    cut = tuple(words for words in plan.cut if not words.startswith("chains are"))
    found = _cut(plan, replace(plan, longest=LENGTHS[-1], cut=()), longest=longest)
    return replace(found, cut=(*found.cut, *cut))


def described(ledger: Ledger) -> str:
    """Say what the evaluation is estimated to take, by stage, where that is long enough to care; else ""."""
    total = sum(ledger.estimated.values())
    if total < WORTH_SAYING:
        return ""
    parts = ", ".join(f"{name.replace('_', ' ')} {seconds:.0f} s" for name, seconds in ledger.estimated.items())
    budget = "" if ledger.budget is None else f"; the budget is {ledger.budget:.0f} s"
    return f"evaluation: all of it would take about {total:.0f} s ({parts}){budget}"


def warn_of_cuts(plan: Plan, ledger: Ledger) -> None:
    """Say in one line what was cut, and how to have all of it."""
    if plan.cut and ledger.budget is not None:
        warn(
            f"evaluation within a budget of {ledger.budget:.0f} s: {'; '.join(plan.cut)}. "
            "Set eval.budget (--budget) to more seconds to have all of it."
        )


def plan_text(plan: Plan) -> str:
    """Write a plan for other ranks."""
    return json.dumps(asdict(plan))


def plan_from(text: str) -> Plan:
    """Read what `plan_text` wrote."""
    read = json.loads(text)
    return Plan(**{**read, "cut": tuple(read["cut"])})
