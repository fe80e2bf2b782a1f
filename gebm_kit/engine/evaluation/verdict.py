"""The verdict of an evaluation: one sentence for each metric and one for equilibrium, derived from the intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gebm_kit.engine.evaluation.equilibrium import AGREEMENT, TOLERANCE, Equilibrium, between, number
from gebm_kit.engine.evaluation.intervals import Estimate
from gebm_kit.engine.evaluation.score_table import AGAINST_TRAIN

EQUILIBRIUM = "equilibrium"
"""The key of the sentence about equilibrium."""


def verdict(
    metrics: Mapping[str, Mapping[str, Estimate]],
    protocol: Mapping[str, Mapping[str, Any]],
    differences: Mapping[str, Estimate],
    equilibrium: Equilibrium,
) -> dict[str, str]:
    """Return a sentence by value name, and one for equilibrium. Values against training data have none.

    Args:
        metrics, protocol: the table, as in `Evaluation`.
        differences: GEBM minus base, paired over the sets, by value name; for values without a ratio.
    """
    found = {}
    for name, difference in differences.items():
        metric = max((key for key in protocol if name == key or name.startswith(f"{key}.")), key=len, default=None)
        lower = None if metric is None else protocol[metric].get("lower_is_better")
        if lower is None or name.endswith(f".{AGAINST_TRAIN}"):
            continue
        ratio = metrics["ratio"].get(name)
        found[name] = of_difference(name, difference, lower) if ratio is None else of_ratio(name, ratio, lower)
    return {**found, EQUILIBRIUM: of_equilibrium(equilibrium)}


def of_ratio(name: str, ratio: Estimate, lower_is_better: bool) -> str:
    """Say what the ratio of GEBM to base means; an interval that holds 1 means no difference."""
    value = number(ratio.value)
    if ratio.low is None or ratio.high is None:
        return f"Whether the GEBM is better than its base by {name} is not known: the ratio {value} has no interval."
    return _compared(name, ratio, 1, lower_is_better, f"{value} times the base's value")


def of_difference(name: str, difference: Estimate, lower_is_better: bool) -> str:
    """Say what the difference of GEBM and base means; an interval that holds 0 means no difference."""
    if difference.low is None or difference.high is None:
        return f"Whether the GEBM is better than its base by {name} is not known: their difference has no interval."
    return _compared(name, difference, 0, lower_is_better, f"{difference.value:+.3g} beside the base's value")


def _compared(name: str, estimate: Estimate, same: int, lower_is_better: bool, value: str) -> str:
    """Say on which side of ``same`` an interval lies, and what that means."""
    assert estimate.low is not None
    assert estimate.high is not None
    if estimate.low <= same <= estimate.high:
        which, tail = "no different from", f", which includes {same}"
    else:
        which, tail = "better than" if (estimate.high < same) == lower_is_better else "worse than", ""
    return f"The GEBM is {which} its base by {name}: {value} ({between(estimate)}{tail})."


def of_equilibrium(found: Equilibrium) -> str:
    """Say in one sentence whether energies agree, and what happens to the metric as the chains run on."""
    return f"{_energies(found)}; {_lengths(found)}."


def _energies(found: Equilibrium) -> str:
    if found.gap is None:
        return "The energy does not tell data from base draws, so energies of model draws say nothing about equilibrium"
    share = f"{percent(found.gap.value)} of the base-data gap"
    if found.gap.low is not None and found.gap.high is not None:
        share += f" (95 % interval {percent(found.gap.low)} to {percent(found.gap.high)})"
    if found.agrees:
        return (
            f"The energies of model draws and held-out data agree within {percent(AGREEMENT)}: they differ by {share}"
        )
    side = "lower" if found.model.mean < found.data.mean else "higher"
    if found.agrees is None:
        return f"Model draws may have {side} energies than held-out data: they differ by {share}"
    return f"Model draws have {side} energies than held-out data, by {share}"


def _lengths(found: Equilibrium) -> str:
    if found.ratio is None:
        return f"longer chains were not tried ({found.reason})" if found.reason else "longer chains were not tried"
    how = f"at {found.longest}x {found.unit} it is {found.change()}"
    if found.worsens is None:
        return f"whether {found.metric} holds as chains run on is not known: {how}"
    if found.worsens:
        return f"{found.metric} gets worse as chains run on: {how}"
    if found.slightly:
        return f"{found.metric} gets slightly worse as chains run on, within {percent(TOLERANCE - 1)}: {how}"
    says = "still gets better" if found.improves else "holds"
    return f"{found.metric} {says} as chains run on: {how}"


def percent(value: float) -> str:
    """Write a share in percent."""
    return f"{100 * value:.0f} %"
