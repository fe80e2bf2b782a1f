"""The chains behind a trace of quality: tuning, islands of chains run from prior draws, and scores of their positions.

See the protocol in `gebm_kit.engine.trace`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from gebm_kit.core.errors import RunFailed, UsageError
from gebm_kit.core.interfaces import Metric, Sampler
from gebm_kit.core.model import LatentPotential
from gebm_kit.core.plugins import component_name
from gebm_kit.core.progress import OnProgress, Progress, warn
from gebm_kit.core.seeds import stream
from gebm_kit.engine.evaluation.draw_sets import DRAWS_AT_ONCE
from gebm_kit.engine.evaluation.intervals import mean_interval
from gebm_kit.engine.evaluation.score_table import Scorer
from gebm_kit.engine.evaluation.trace_result import Curve, Point, Tuning, improvement
from gebm_kit.engine.sampling.energy_checks import check_digits, check_gradient
from gebm_kit.engine.sampling.run_populations import MAX_STEPS, has_finished, start_population
from gebm_kit.engine.sampling.settings import SampleSettings
from gebm_kit.engine.sampling.starting_points import start
from gebm_kit.engine.sampling.warmup import REPORT_EVERY, warm_up

_M = TypeVar("_M", "Mark", "Scored")


@dataclass(frozen=True, slots=True)
class Schedule:
    """The steps to measure at besides step 0, and the step to stop at: ``last``; None: when the sampler has finished."""

    at: frozenset[int] | None
    last: int | None

    @classmethod
    def of(cls, sampler: Sampler, settings: SampleSettings, at_steps: Sequence[int] | None) -> Schedule:
        """Build a schedule from the settings' steps, or from ``at_steps``; raises UsageError for invalid steps."""
        if at_steps is not None:
            for step in at_steps:
                if not isinstance(step, int) or isinstance(step, bool) or step < 0:
                    raise UsageError(f"at_steps are whole numbers >= 0, got {step!r}")
            if not at_steps or max(at_steps) == 0:
                raise UsageError(f"at_steps must name a step after 0, the base, got {list(at_steps)}")
        at = None if at_steps is None else frozenset(at_steps)
        if sampler.family != "kernel":
            return cls(at, None)
        return cls(at, settings.warmup + settings.steps if at is None else max(at))

    def measures(self, step: int) -> bool:
        """Return whether the schedule measures at ``step``. The last step is always measured and need not be asked for."""
        return step & (step - 1) == 0 if self.at is None else step == 0 or step in self.at


@dataclass(frozen=True, slots=True)
class Mark:
    """Chains at one step: what each chain has spent, and the positions in normal coordinates, (C, Z)."""

    step: int
    grad_evals: int
    forward_evals: int
    z: Tensor


@dataclass(frozen=True, slots=True)
class Scored:
    """One group at one step: what each chain has spent, and the metric's values."""

    step: int
    grad_evals: int
    forward_evals: int
    values: dict[str, float]


@dataclass(frozen=True, slots=True)
class Island:
    """Chains that ran together: their marks, moves, acceptance summed over moves, and divergences summed over chains."""

    marks: tuple[Mark, ...]
    moves: int
    acceptance: float
    divergences: int


class Meter:
    """A counter of the evaluations per chain since it was made, rounded up."""

    def __init__(self, potential: LatentPotential, num_chains: int) -> None:
        self._potential, self._num = potential, num_chains
        self._grads, self._values = potential.grad_evals, potential.forward_evals

    def read(self) -> tuple[int, int]:
        """Return the evaluations with and without gradient."""
        grads, values = self._potential.grad_evals - self._grads, self._potential.forward_evals - self._values
        return -(-grads // self._num), -(-values // self._num)


class TraceProgress:
    """Progress over all groups of all curves: in steps, or in groups where the number of steps is not known in advance."""

    def __init__(self, on_progress: OnProgress, groups: int, steps: int | None) -> None:
        self.report, self._by_steps = on_progress, steps is not None
        self._done, self._total = 0, groups * (steps or 1)

    def step(self) -> None:
        """Count one step of one group."""
        if self._by_steps:
            self._done += 1
            if self._done % REPORT_EVERY == 0 or self._done == self._total:
                self.report(Progress("trace", self._done, self._total))

    def group(self) -> None:
        """Count one finished group."""
        if not self._by_steps:
            self._done += 1
            self.report(Progress("trace", self._done, self._total))


@dataclass
class Tracer:
    """A metric's tracer, which runs the groups of chains and scores their positions."""

    name: str
    metric: Metric
    scorer: Scorer
    place: torch.device
    where: torch.device
    dtype: torch.dtype
    settings: SampleSettings
    schedule: Schedule

    def __post_init__(self) -> None:
        self.protocol: dict[str, Any] = {}

    def score(self, x: Tensor, index: int) -> dict[str, float]:
        """Score draws as group ``index``, whose reference and shuffles are the same at every step."""
        context = self.scorer.context(self.name, x.to(self.place), index)
        self.protocol = self.protocol or dict(self.metric.protocol(context))
        return self.metric(context)

    def curve(self, sampler: Sampler, beta: float, num_sets: int, watch: TraceProgress) -> Curve:
        """Tune, freeze, run and score at one beta."""
        together = chains_together(sampler, self.settings)
        sampler, tuning = self._tuned(sampler, beta, watch)
        groups, moves, acceptance, divergences = [], 0, 0.0, 0
        with self._potential(beta, together) as potential:
            for index in range(num_sets):
                count = -(-self.settings.num_samples // together)
                islands = [self._island(sampler, potential, together, watch, index, k) for k in range(count)]
                groups.append(self._scored(potential, [island.marks for island in islands], index))
                moves += sum(island.moves for island in islands)
                acceptance += sum(island.acceptance for island in islands)
                divergences += sum(island.divergences for island in islands)
                watch.group()
        if divergences:
            share = divergences / (moves * together)
            warn(f"{divergences} steps diverged at inverse_temperature {beta:g} ({share:.1%} of all).")
        starts, ends = [group[0].values for group in groups], [group[-1].values for group in groups]
        return Curve(
            inverse_temperature=beta,
            points=aligned(groups),
            tuning=tuning,
            acceptance=acceptance / moves if moves else math.nan,
            divergences=divergences,
            improvement=improvement(starts, ends, self.metric.lower_is_better),
        )

    def _tuned(self, sampler: Sampler, beta: float, watch: TraceProgress) -> tuple[Sampler, Tuning]:
        """Return the sampler after its own warm-up, and the cost; the sampler unchanged when there is nothing to tune."""
        steps, chains = self.settings.warmup, max(self.settings.chains, sampler.min_chains)
        if sampler.family != "kernel" or steps == 0 or (sampler.tunable is None and sampler.adaptation() is None):
            return sampler, Tuning(step_size=_step_size(sampler))
        with self._potential(beta, chains) as potential:
            meter, generator = Meter(potential, chains), self._generator("trace warmup")
            state = start(potential, sampler, chains, generator, self.dtype)
            check_digits(state.value)
            check_gradient(potential, sampler, state)
            warm = warm_up(sampler, state, potential, generator, steps, on_progress=watch.report)
            return warm.sampler, Tuning(steps, chains, *meter.read(), _step_size(warm.sampler))

    def _island(
        self, sampler: Sampler, potential: LatentPotential, num_chains: int, watch: TraceProgress, *purpose: int
    ) -> Island:
        """Run chains together, from prior draws to the last step.

        Mark 0 is the prior draws themselves. A population's `init` may choose among them, so it counts as its first step.
        """
        meter, generator = Meter(potential, num_chains), self._generator("trace", *purpose)
        prior = torch.randn(
            (num_chains, potential.model.latent_dim),
            generator=self._generator("trace", *purpose),
            device=self.where,
            dtype=self.dtype,
        )
        begin = start_population if sampler.family == "population" else start
        state = begin(potential, sampler, num_chains, generator, self.dtype)
        check_digits(state.value)
        check_gradient(potential, sampler, state)
        marks, last = [Mark(0, 0, 0, prior)], self.schedule.last
        acceptance = diverged = torch.zeros((), dtype=torch.float64, device=self.where)
        moves, offset = 0, 0
        if last is None:
            offset = 1
            marks.append(Mark(offset, *meter.read(), state.position))
        while not (has_finished(sampler, state) if last is None else moves == last):
            if last is None and moves == MAX_STEPS:
                raise RunFailed(
                    f"sampler {component_name('sampler', sampler)!r} has not finished after {MAX_STEPS:,} steps"
                )
            if not self.schedule.measures(marks[-1].step):
                del marks[-1]  # kept only in case it was the last
            state, info = sampler.step(state, potential, generator)
            moves += 1
            acceptance = acceptance + info.acceptance.double().mean()
            diverged = diverged + info.diverged.sum()
            marks.append(Mark(moves + offset, *meter.read(), state.position))
            watch.step()
        return Island(tuple(marks), moves, float(acceptance), int(diverged))

    def _scored(self, potential: LatentPotential, islands: Sequence[Sequence[Mark]], index: int) -> tuple[Scored, ...]:
        """Join the positions of a group's islands at each step, decode and score them."""
        scored = []
        for step in _steps(islands):
            row = _at(step, islands)
            z = torch.cat([mark.z for mark in row])[: self.settings.num_samples]
            scored.append(Scored(step, *_mean_cost(row), self.score(potential.data(z), index)))
        return tuple(scored)

    def _potential(self, beta: float, num_chains: int) -> LatentPotential:
        """Return the potential at ``beta``, evaluating ``num_chains`` in as few equal blocks as the settings allow."""
        blocks = -(-num_chains // (self.settings.block_size or DRAWS_AT_ONCE))
        return LatentPotential(self.scorer.model, beta, block_size=-(-num_chains // blocks))

    def _generator(self, *purpose: object) -> torch.Generator:
        """Return a generator that is the same at every beta, so that the curves of a sweep start from the same draws."""
        return torch.Generator(self.where).manual_seed(stream(self.settings.seed, *purpose).initial_seed())


def chains_together(sampler: Sampler, settings: SampleSettings) -> int:
    """Return how many chains of a group run side by side: all of them, or, if coupled, as many as when drawing."""
    return max(settings.chains if sampler.coupled else settings.num_samples, sampler.min_chains)


def aligned(groups: Sequence[Sequence[Scored]]) -> tuple[Point, ...]:
    """Average the groups at the steps of the longest one; a group that finished earlier counts with its last values."""
    points = []
    for step in _steps(groups):
        row = _at(step, groups)
        values = {name: mean_interval([scored.values[name] for scored in row]) for name in row[0].values}
        points.append(Point(step, *_mean_cost(row), values))
    return tuple(points)


def _steps(rows: Sequence[Sequence[_M]]) -> list[int]:
    """Return the steps of the longest row."""
    return [mark.step for mark in max(rows, key=lambda marks: marks[-1].step)]


def _at(step: int, rows: Sequence[Sequence[_M]]) -> list[_M]:
    """Return the last mark of each row that is not after ``step``."""
    return [max((mark for mark in marks if mark.step <= step), key=lambda mark: mark.step) for marks in rows]


def _mean_cost(row: Sequence[Mark | Scored]) -> tuple[int, int]:
    """Return the mean evaluations per chain, with and without gradient."""
    return (
        round(sum(mark.grad_evals for mark in row) / len(row)),
        round(sum(mark.forward_evals for mark in row) / len(row)),
    )


def _step_size(sampler: Sampler) -> float:
    """Return the sampler's step size; NaN for a sampler without one to tune."""
    return math.nan if sampler.tunable is None else float(getattr(sampler, sampler.tunable.name))
