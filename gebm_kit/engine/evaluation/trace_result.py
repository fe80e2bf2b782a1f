"""The result of a trace of quality along the chain: points, curves and costs, and their files."""

from __future__ import annotations

import csv
import io
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gebm_kit.core.errors import UsageError
from gebm_kit.core.files import make_directory, plain, write_atomic, write_json
from gebm_kit.core.html import Shown, interval, picture, table
from gebm_kit.core.paths import user_path
from gebm_kit.engine.evaluation.intervals import Estimate, mean_interval
from gebm_kit.engine.figures.trace_series import Line, Panel

TRACE_SUFFIXES = (".json", ".csv")
"""Files that `Trace.save` writes."""


IMPROVEMENT_SHARE = 0.95
"""The share of the whole improvement that `Trace.evals_to_95` waits for."""

Axis = Literal["grad_evals", "forward_evals"]


@dataclass(frozen=True, slots=True)
class Point:
    """A metric at one step of the chains.

    Attributes:
        step: 0 is the base.
        grad_evals, forward_evals: evaluations of the potential with and without gradient, per chain so far; the mean where
            groups of chains differ.
        values: value name -> estimate over the groups.
    """

    step: int
    grad_evals: int
    forward_evals: int
    values: Mapping[str, Estimate]


@dataclass(frozen=True, slots=True)
class Tuning:
    """The warm-up of a sampler before the traced chains started; all zero without a warm-up.

    Attributes:
        steps, chains: steps and chains of the warm-up.
        grad_evals, forward_evals: evaluations with and without gradient per warm-up chain, trial steps included.
        step_size: the step size of the traced chains; NaN for a sampler without one to tune.
    """

    steps: int = 0
    chains: int = 0
    grad_evals: int = 0
    forward_evals: int = 0
    step_size: float = math.nan


@dataclass(frozen=True, slots=True)
class Curve:
    """The points at one beta.

    Attributes:
        inverse_temperature: beta.
        points: from the base to the last step.
        tuning: the warm-up before the traced chains.
        acceptance: mean over chains and steps.
        divergences: divergent steps, over all chains.
        improvement: value name -> gain of the last point over the base, positive when better, with an interval over the
            groups. Each group is compared with its own start. Empty for a metric without a better direction.
    """

    inverse_temperature: float
    points: tuple[Point, ...]
    tuning: Tuning
    acceptance: float
    divergences: int
    improvement: Mapping[str, Estimate]


@dataclass(frozen=True, repr=False)
class Trace(Shown):
    """A metric along the chains, one curve for each beta.

    Attributes:
        metric, sampler: component names.
        axis: the cost on the horizontal axis: ``grad_evals``, or ``forward_evals`` for a sampler without gradients.
        lower_is_better: the metric's direction; None when it has none.
        seed: seed of starting points and sampler.
        curves: in the order in which the betas were given.
        floor: value name -> estimate for held-out data.
        protocol: what the values depend on.
    """

    metric: str
    sampler: str
    axis: Axis
    lower_is_better: bool | None
    seed: int
    curves: tuple[Curve, ...]
    floor: Mapping[str, Estimate]
    protocol: Mapping[str, Any] = field(repr=False)

    def _summary(self) -> str:
        betas = ", ".join(f"{curve.inverse_temperature:g}" for curve in self.curves)
        steps = self.curves[0].points[-1].step if self.curves and self.curves[0].points else 0
        return f"Trace({self.metric} along {steps:,} steps of {self.sampler}, beta {betas})"

    def _sections(self) -> Iterator[str]:
        yield table(("beta", "step", self.axis, *self.names), list(self._cells()))
        with tempfile.TemporaryDirectory() as folder:
            yield picture(self.draw(Path(folder) / "trace.png").read_bytes(), "trace", width=560)

    def _cells(self) -> Iterator[list[object]]:
        """Yield a line of the table for each point."""
        for curve in self.curves:
            for point in curve.points:
                values = (point.values[name] for name in self.names)
                cost = getattr(point, self.axis)
                yield [curve.inverse_temperature, point.step, cost, *(interval(e.value, e.low, e.high) for e in values)]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the metric's values."""
        return tuple(self.curves[0].points[0].values)

    @property
    def base(self) -> Mapping[str, Estimate]:
        """Value name -> estimate for the base, where every curve starts."""
        return self.curves[0].points[0].values

    def evals(self, point: Point) -> int:
        """Return a point's place on the axis."""
        return point.grad_evals if self.axis == "grad_evals" else point.forward_evals

    def evals_to_95(self, curve: Curve, name: str) -> int | None:
        """Return the evaluations per chain that reach 95 % of the improvement from base to last point, without warm-up.

        None unless the last point is better than the base beyond its 95 % interval; see `evals_to_reach`.
        """
        gain = curve.improvement.get(name)
        if gain is None or (gain.low is not None and gain.low <= 0):
            return None
        sign = 1 if self.lower_is_better else -1
        values = [sign * point.values[name].value for point in curve.points]
        return evals_to_reach([self.evals(point) for point in curve.points], values)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row for each beta, value name and step, as in the JSON and the CSV file."""
        return [
            {
                "inverse_temperature": curve.inverse_temperature,
                "name": name,
                "step": point.step,
                "grad_evals": point.grad_evals,
                "forward_evals": point.forward_evals,
                **point.values[name].as_dict(),
            }
            for curve in self.curves
            for name in self.names
            for point in curve.points
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON of ``gebm-kit sample --trace``."""
        found = {
            "metric": self.metric,
            "sampler": self.sampler,
            "axis": self.axis,
            "lower_is_better": self.lower_is_better,
            "seed": self.seed,
            "protocol": dict(self.protocol),
            "points": self.rows(),
            "curves": [self._curve_dict(curve) for curve in self.curves],
            "base": {name: estimate.as_dict() for name, estimate in self.base.items()},
            "data": {name: estimate.as_dict() for name, estimate in self.floor.items()},
        }
        return {key: plain(value) for key, value in found.items()}

    def _curve_dict(self, curve: Curve) -> dict[str, Any]:
        tuning = curve.tuning
        return {
            "inverse_temperature": curve.inverse_temperature,
            "warmup_steps": tuning.steps,
            "warmup_chains": tuning.chains,
            "warmup_grad_evals": tuning.grad_evals,
            "warmup_forward_evals": tuning.forward_evals,
            "step_size": tuning.step_size,
            "acceptance": curve.acceptance,
            "divergences": curve.divergences,
            "improvement": {name: gain.as_dict() for name, gain in curve.improvement.items()},
            "evals_to_95": {name: self.evals_to_95(curve, name) for name in self.names},
        }

    def save(self, path: str | Path) -> Path:
        """Write everything to a .json file, or the rows alone to a .csv file, completely or not at all.

        Raises:
            UsageError: another suffix, or the path can't be written.
            RunFailed: the disk is full.
        """
        path = user_path(path)
        check_trace_output(path)
        make_directory(path.parent)
        if path.suffix == ".json":
            write_json(path, {"schema": 1, **self.as_dict()})
        else:
            rows, text = self.rows(), io.StringIO()
            writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            write_atomic(path, text.getvalue().encode())
        return path

    def draw(self, path: str | Path) -> Path:
        """Draw the curves as a PNG; missing directories are made."""
        from gebm_kit.engine.figures.trace_figure import draw_trace  # matplotlib is slow to import

        path = user_path(path)
        make_directory(path.parent)
        sets = self.protocol["sets"]
        bands = "" if sets < 2 else f" (bands: 95 % intervals over {sets} groups of chains)"
        title = f"{self.metric} along the chain of {self.sampler}{bands}"
        kind = "gradient evaluations" if self.axis == "grad_evals" else "evaluations (no gradients)"
        cost = f"{kind} per chain{self._other_cost()}"
        return draw_trace(path, title, cost, f"{100 * IMPROVEMENT_SHARE:.0f} % of the improvement", self._panels())

    def _panels(self) -> list[Panel]:
        """Return one panel for each of the metric's values."""
        better = {True: " (lower is better)", False: " (higher is better)", None: ""}[self.lower_is_better]
        return [
            Panel(
                label=f"{name}{better}",
                lines=[self._line(curve, name) for curve in self.curves],
                base=self.base[name].value,
                floor=self.floor[name].value,
            )
            for name in self.names
        ]

    def _line(self, curve: Curve, name: str) -> Line:
        """Return the line of one value at one beta."""
        estimates = [point.values[name] for point in curve.points]
        spent = curve.tuning.grad_evals if self.axis == "grad_evals" else curve.tuning.forward_evals
        kind = "gradients" if self.axis == "grad_evals" else "evaluations"
        warmup = f", after a warm-up of {spent:,} {kind}" if spent else ""
        return Line(
            label=f"β = {curve.inverse_temperature:g}{warmup}",
            x=[self.evals(point) for point in curve.points],
            y=[estimate.value for estimate in estimates],
            low=[math.nan if estimate.low is None else estimate.low for estimate in estimates],
            high=[math.nan if estimate.high is None else estimate.high for estimate in estimates],
            marked=self.evals_to_95(curve, name),
        )

    def _other_cost(self) -> str:
        """Describe the evaluations without gradient per gradient evaluation, where the axis counts gradients."""
        last = self.curves[0].points[-1]
        if self.axis == "forward_evals" or not last.forward_evals:
            return ""
        return f",\nand {last.forward_evals / last.grad_evals:.2g} without gradient for each"


def check_trace_output(path: str | Path) -> None:
    """Raise UsageError unless `Trace.save` knows the suffix of ``path``; call it before computing a trace."""
    path = user_path(path)
    if path.suffix not in TRACE_SUFFIXES:
        raise UsageError(f"a trace is written to a {' or '.join(TRACE_SUFFIXES)} file, not to {path.name!r}")
    if path.is_dir():
        raise UsageError(f"{path} is a directory; name a file")


def evals_to_reach(
    evals: Sequence[int], values: Sequence[float], share: float = IMPROVEMENT_SHARE, *, final: float | None = None
) -> int | None:
    """Return the first of ``evals`` at which ``value <= base - share (base - final)``, where lower is better.

    The base is ``values[0]``. None when ``final`` is not below the base, or when no value is that low.

    Args:
        evals: evaluations spent at each point, increasing.
        values: the metric at each point.
        share: share of the improvement, in (0, 1].
        final: the value that counts as the whole improvement; None: the last of ``values``.
    """
    base = values[0]
    final = values[-1] if final is None else final
    if not final < base:
        return None
    level = base - share * (base - final)
    return next((spent for spent, value in zip(evals, values, strict=True) if value <= max(level, final)), None)


def improvement(
    starts: Sequence[Mapping[str, float]], ends: Sequence[Mapping[str, float]], lower_is_better: bool | None
) -> dict[str, Estimate]:
    """Return the mean gain of the groups' ends over their starts by value name, positive when better.

    Each gain has an interval over the groups. Empty for a metric without a better direction.
    """
    if lower_is_better is None:
        return {}
    sign = 1 if lower_is_better else -1
    return {
        name: mean_interval([sign * (first[name] - last[name]) for first, last in zip(starts, ends, strict=True)])
        for name in starts[0]
    }
