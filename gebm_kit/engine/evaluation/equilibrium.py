"""The equilibrium test: whether the model's own law is good, or only an early stop of its chains.

- *Energies.* At the optimum of KALE the model's law Q has the data's mean energy, E_Q[E] = E_P[E]. Energies of model draws,
  held-out data and base draws are compared. Their distance is measured as ``|E_Q - E_P| / |E_B - E_P|``, a share of the
  base-data gap; at most `AGREEMENT` is wanted.
- *Longer chains.* The first metric that knows better from worse is computed after 1x, 2x and 4x the chain length. A chain's
  length is all its steps since its prior draw, warm-up included. Chains of the evaluation's first groups continue with the
  same frozen tuning, in one run; every length has as many draws. Ratios are paired over the groups.
- *Other families.* A population draws anew with 2x and 4x the effort (`Sampler.longer`). A refiner has no law to run to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gebm_kit.core.estimators import t_quantile
from gebm_kit.core.files import plain
from gebm_kit.core.progress import warn
from gebm_kit.engine.evaluation.intervals import Estimate, mean_interval, paired_ratio

AGREEMENT = 0.1
"""Largest distance between the mean energies of model draws and data, as a share of the base-data gap."""

TOLERANCE = 1.05
"""Ratio of the metric at the longest length to that at 1x up to which a law holds, however narrow the interval is."""

LENGTHS = (1, 2, 4)
"""Chain lengths at which the metric is computed, in units of the evaluation's own."""

GROUPS = 5
"""Groups of chains that are continued: enough for an interval (Student's t with 4 degrees of freedom), at half the cost of
the ten groups of an evaluation."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

ROW_GROUPS = 10
"""Groups of independent rows (data, base draws) whose spread gives the standard errors."""

REMEDY = (
    "Train an energy that holds where chains go: a final phase with its own loss and a lower rate or more penalty "
    "(train.final.loss={name: kale-dv}, train.final.optimizer.lr, train.final.penalty), the loss relativistic in the main "
    "phase, or negatives from the model itself (train.negatives). Until then lower sample.inverse_temperature."
)
"""What to try when a law gets worse as its chains run on."""


@dataclass(frozen=True, slots=True)
class EnergySummary:
    """Energies E of one kind of rows.

    Attributes:
        mean, se: their mean and its Monte Carlo standard error.
        quantiles: quantile -> (value, standard error), for `QUANTILES`.
        rows: number of rows with a finite energy; outside: rows without.
        groups: independent groups behind the errors.
    """

    mean: float
    se: float
    quantiles: dict[str, tuple[float, float]]
    rows: int
    outside: int
    groups: int

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        found: dict[str, Any] = {"value": self.mean, "se": self.se}
        found |= {name: {"value": value, "se": se} for name, (value, se) in self.quantiles.items()}
        return plain({**found, "rows": self.rows, "outside": self.outside, "groups": self.groups})


@dataclass(frozen=True)
class Equilibrium:
    """The result of the equilibrium test; see the module for its two halves.

    Attributes:
        model, data, base: energies of draws of the GEBM, held-out data and base draws.
        gap: distance of the mean energies of model and data as a share of the base-data gap, with its interval; None where
            base and data have the same energy, so that it has no meaning.
        metric: name of the value that is followed along the chains; None: nothing is.
        at: the metric after 1x, 2x and 4x the chain length, as far as the chains were run.
        ratio, difference: the metric at the longest length over that at 1x, and minus it, paired; None without longer
            chains.
        lower_is_better: the direction of the metric.
        longest: longest length, in units of the first.
        length: steps of a chain at 1x, warm-up included; None where the sampler has no chains.
        unit: what is 2x and 4x, in words; reason: why lengths are missing, in words, or "".
    """

    model: EnergySummary
    data: EnergySummary
    base: EnergySummary
    gap: Estimate | None
    metric: str | None = None
    at: dict[int, Estimate] = field(default_factory=dict)
    ratio: Estimate | None = None
    difference: Estimate | None = None
    lower_is_better: bool = True
    longest: int = 1
    length: int | None = None
    unit: str = ""
    reason: str = ""

    @property
    def agrees(self) -> bool | None:
        """Whether the energies of model and data agree within `AGREEMENT`; None where the interval can't tell."""
        if self.gap is None:
            return None
        if self.gap.value <= AGREEMENT:
            return True
        return None if self.gap.low is None or self.gap.low <= AGREEMENT else False

    @property
    def worsens(self) -> bool | None:
        """Whether the metric gets worse as the chains run on, beyond `TOLERANCE` and by its interval; None without one."""
        moves = self._moves(up=self.lower_is_better)
        return False if moves and self._is_slight() else moves

    @property
    def slightly(self) -> bool:
        """Whether the metric gets worse by its interval, but within `TOLERANCE`."""
        return bool(self._moves(up=self.lower_is_better)) and self._is_slight()

    def _is_slight(self) -> bool:
        """Return whether the ratio has an interval and is within `TOLERANCE`."""
        if self.ratio is None or self.ratio.low is None or self.ratio.high is None:
            return False
        return 1 / TOLERANCE <= self.ratio.value <= TOLERANCE

    @property
    def improves(self) -> bool | None:
        """Whether the metric still gets better as the chains run on, by its interval; None without one."""
        return self._moves(up=not self.lower_is_better)

    def _moves(self, *, up: bool) -> bool | None:
        """Return whether the metric rises (falls): by the ratio, or by the difference where the ratio has no interval."""
        for found, still in ((self.ratio, 1.0), (self.difference, 0.0)):
            if found is not None and found.low is not None and found.high is not None:
                return found.low > still if up else found.high < still
        return None

    def change(self) -> str:
        """Say in words what the metric is at the longest length, beside that at 1x, with an interval."""
        assert self.ratio is not None
        assert self.difference is not None
        if self.ratio.low is not None and self.ratio.high is not None:
            return f"{number(self.ratio.value)} times that at 1x ({between(self.ratio)})"
        return f"that at 1x plus {number(self.difference.value)} ({between(self.difference)})"

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON, with null for lengths that were not run."""
        at = {f"metric_at_{n}x": self.at[n].as_dict() if n in self.at else None for n in LENGTHS}
        return {
            "energy_model": self.model.as_dict(),
            "energy_data": self.data.as_dict(),
            "energy_base": self.base.as_dict(),
            "gap": None if self.gap is None else self.gap.as_dict(),
            "agrees": self.agrees,
            "metric": self.metric,
            **at,
            "ratio": None if self.ratio is None else self.ratio.as_dict(),
            "difference": None if self.difference is None else self.difference.as_dict(),
            "longest": self.longest,
            "worsens": self.worsens,
            "length": self.length,
            "unit": self.unit,
            "reason": self.reason,
        }

    def scalars(self) -> dict[str, float]:
        """Return the values alone, for loggers."""
        found = {f"energy_{name}": getattr(self, name).mean for name in ("model", "data", "base")}
        found |= {} if self.gap is None else {"gap": self.gap.value}
        found |= {f"metric_at_{n}x": estimate.value for n, estimate in self.at.items()}
        found |= {} if self.ratio is None else {"ratio": self.ratio.value}
        return {f"equilibrium.{name}": value for name, value in found.items() if math.isfinite(value)}

    def warn(self) -> None:
        """Warn of a law that gets worse as its chains run on, with what to try."""
        if self.worsens:
            warn(
                f"the model's law gets worse as its chains run on: {self.metric} at {self.longest}x {self.unit} is "
                f"{self.change()}, so what is good about the draws is an early stop of the chains. {REMEDY}"
            )

    @classmethod
    def restored(cls, found: Mapping[str, Any]) -> Equilibrium:
        """Build a result from its ``dataclasses.asdict``, after it has been through JSON."""

        def summary(part: Mapping[str, Any]) -> EnergySummary:
            return EnergySummary(**{**part, "quantiles": {k: tuple(v) for k, v in part["quantiles"].items()}})

        def estimate(part: Mapping[str, Any] | None) -> Estimate | None:
            return None if part is None else Estimate(**part)

        parts: dict[str, Any] = {name: summary(found[name]) for name in ("model", "data", "base")}
        parts |= {name: estimate(found[name]) for name in ("gap", "ratio", "difference")}
        at = {int(n): Estimate(**part) for n, part in found["at"].items()}
        return cls(**{**found, **parts, "at": at})


def summary_of(groups: Sequence[Tensor]) -> EnergySummary:
    """Summarise energies in independent groups, (M,) each, float64.

    The standard errors come from the spread of the groups' means and quantiles, so draws within a group may depend on each
    other as those of a chain do. Energies that are not finite (walls) are counted and left out.
    """
    finite = [group[torch.isfinite(group)] for group in groups]
    everything = torch.cat(finite)
    outside = sum(len(group) for group in groups) - len(everything)
    names = {_name(q): q for q in QUANTILES}
    if not len(everything):
        none = (math.nan, math.nan)
        return EnergySummary(*none, dict.fromkeys(names, none), 0, outside, 0)
    kept = [group for group in finite if len(group)]
    means = torch.stack([group.mean() for group in kept])
    levels = torch.tensor(QUANTILES, dtype=torch.float64)
    values = torch.quantile(everything, levels)
    errors = _standard_error(torch.stack([torch.quantile(group, levels) for group in kept]))
    quantiles = {name: (float(v), float(e)) for name, v, e in zip(names, values, errors, strict=True)}
    return EnergySummary(
        float(everything.mean()), float(_standard_error(means)), quantiles, len(everything), outside, len(kept)
    )


def rows_in_groups(energies: Tensor) -> list[Tensor]:
    """Divide energies of independent rows, (N,), into groups of every k-th row, whose order in a file does not matter."""
    count = max(min(ROW_GROUPS, len(energies) // 2), 1)
    return [energies[start::count] for start in range(count)]


def gap_of(model: EnergySummary, data: EnergySummary, base: EnergySummary) -> Estimate | None:
    """Compute ``|m - d| / |b - d|`` of mean energies and its 95 % interval, by the delta method.

    With g = (m - d) / (b - d), the variance is ``(se_m² + (1 - g)² se_d² + g² se_b²) / (b - d)²``. None where b - d is not
    clearly different from zero: the energy does not tell data from base draws.
    """
    distance = base.mean - data.mean
    error = math.hypot(*(0.0 if math.isnan(se) else se for se in (base.se, data.se)))
    if not math.isfinite(distance) or abs(distance) <= 3 * error or not math.isfinite(model.mean):
        return None
    share = (model.mean - data.mean) / distance
    spread = math.hypot(model.se, (1 - share) * data.se, share * base.se) / abs(distance)
    if math.isnan(spread):
        return Estimate(abs(share), None, None, model.groups)
    half = t_quantile(max(model.groups - 1, 1)) * spread
    ends = sorted((abs(share - half), abs(share + half)))
    low = 0.0 if abs(share) <= half else ends[0]
    return Estimate(abs(share), low, ends[1], model.groups)


def along_the_chains(values: Mapping[int, Sequence[float]]) -> dict[str, Any]:
    """Compute the fields ``at``, ``ratio``, ``difference`` and ``longest`` of `Equilibrium`, paired over the groups.

    Args:
        values: length -> one value for each group, in the order of the groups.
    """
    at = {length: mean_interval(list(found)) for length, found in values.items()}
    first, longest = min(values), max(values)
    if first == longest:
        return {"at": at, "longest": longest}
    ends, starts = list(values[longest]), list(values[first])
    difference = mean_interval([end - start for end, start in zip(ends, starts, strict=True)])
    return {"at": at, "ratio": paired_ratio(ends, starts).estimate, "difference": difference, "longest": longest}


def _standard_error(values: Tensor) -> Tensor:
    """Compute the standard error of the mean over the first dimension; NaN with fewer than two rows."""
    if len(values) < 2:
        return torch.full(values.shape[1:], math.nan, dtype=torch.float64)
    return values.std(0) / math.sqrt(len(values))


def _name(quantile: float) -> str:
    return f"q{round(100 * quantile):02d}"


def number(value: float | None) -> str:
    """Write a number with three digits."""
    return "unknown" if value is None else f"{value:.3g}"


def between(estimate: Estimate) -> str:
    """Write an interval in words."""
    if estimate.low is None or estimate.high is None:
        return "without an interval"
    return f"95 % interval {number(estimate.low)} to {number(estimate.high)}"
