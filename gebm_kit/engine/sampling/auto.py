"""The engine of `auto`: choose a sampler by a pilot, test its draws, and escalate until the tests hold.

What an attempt is, the caller says: `sample` draws once, evaluation draws several sets. The draws of the attempt that
holds are the result, so nothing is drawn twice. All ranks follow the decisions of the first.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from gebm_kit.core.interfaces import Sampler, SamplerDirective
from gebm_kit.core.model import GEBM
from gebm_kit.engine.process.distributed import ALONE, Ranks
from gebm_kit.engine.sampling.attempt_tests import Judgement, judged
from gebm_kit.engine.sampling.diagnostics import Diagnostics
from gebm_kit.engine.sampling.forecasts import (
    GRADIENT_COST,
    INDEPENDENT,
    MARGIN,
    POPULATIONS,
    Forecast,
    fitting,
    forecasts,
    pt_forecast,
    reference_cost,
    shortened,
    smc_forecast,
    spread,
)
from gebm_kit.engine.sampling.interfaces import Counts
from gebm_kit.engine.sampling.pilot import Pilot, take_pilot
from gebm_kit.engine.sampling.settings import SampleSettings

T = TypeVar("T")

MOST_DOUBLINGS = 3
"""Times that steps are doubled from one attempt to the next, at most."""

FAR = 0.3
"""What R-hat is above 1, at least, for steps to be doubled once and no more, to see whether that helps."""

HELPS = 0.75
"""A longer attempt helped if it left at most this share of what R-hat is above 1; with twice the steps, half is ideal."""


@dataclass(frozen=True)
class Attempt(Generic[T]):
    """What one attempt returned.

    Attributes:
        result: the draws, of whatever kind the caller makes.
        diagnostics: their diagnostics.
        records: what the recorders recorded.
        runs: runs of this cost that were made.
    """

    result: T
    diagnostics: Diagnostics
    records: Sequence[Mapping[str, Tensor]] = ()
    runs: int = 1

    @property
    def spent(self) -> Counts:
        """Evaluations of all runs."""
        return Counts(self.runs * self.diagnostics.grad_evals, self.runs * self.diagnostics.forward_evals)


@dataclass(frozen=True)
class Choice:
    """The ranked candidates, and the pilot behind them.

    Attributes:
        pilot: base draws.
        ranked: forecasts, the best first.
    """

    pilot: Pilot
    ranked: tuple[Forecast, ...]

    @property
    def reason(self) -> str:
        """Say why the first candidate was chosen, as the beginning of a sentence."""
        best, k = self.ranked[0], self.pilot.pareto_k
        other = next((forecast for forecast in self.ranked if forecast.name != best.name), None)
        against = "" if other is None else f", against {other.cost_a_draw:.3g} by {other.name}"
        size = f"{self.pilot.size:,} base draws"
        why = f"Pareto k of the weights of {size} is {k:.2f}"
        if self.pilot.is_flat:
            why = f"the energy is the same at all of {size}"
        elif best.name in INDEPENDENT and not self.pilot.trusted:
            why += ", which leaves doubt: it is tried because it costs so much less"
        elif not self.pilot.trusted:
            why = (
                f"{size} are worth {self.pilot.effective:.0f} of the model (Pareto k {k:.2f}), too few for global moves"
            )
        return (
            f"{best.name} was chosen because an effective draw should cost {best.cost_a_draw:.3g} evaluations{against}: "
            f"{best.words}, and {why}"
        )


@dataclass(frozen=True)
class Bounds:
    """The time that a search may take.

    Attributes:
        seconds: what all attempts may take together, as far as is known beforehand; None: not limited.
        first: seconds that the first choice is estimated to take; its chains are shortened where that is more. None: it is
            made as it is.
    """

    seconds: float | None = None
    first: float | None = None

    @property
    def share(self) -> float:
        """The share of the first attempt's steps that there is time for."""
        if self.seconds is None or not self.first:
            return 1.0
        return min(max(self.seconds, 0.0) / self.first, 1.0)


@dataclass(frozen=True)
class Settled(Generic[T]):
    """The end of a search.

    Attributes:
        result: draws of the last attempt.
        diagnostics: theirs, with the reason, and with the evaluations and seconds of everything that led there.
        forecast: the sampler and settings that drew.
        sampler: the sampler, before warm-up.
    """

    result: T
    diagnostics: Diagnostics
    forecast: Forecast
    sampler: Sampler


def choose(
    model: GEBM,
    directive: SamplerDirective,
    settings: SampleSettings,
    *,
    device: torch.device | str | None = None,
    ranks: Ranks = ALONE,
    chains_only: bool = False,
    steady: bool = False,
    pilot: Pilot | None = None,
) -> Choice:
    """Take a pilot, unless there is one, and rank the candidates; all ranks get the first one's ranking.

    ``chains_only`` and ``steady`` are as in `forecasts`.
    """
    pilot = take_pilot(model, directive, settings, device) if pilot is None else pilot
    ranked = forecasts(pilot, model, settings, directive, chains_only=chains_only, steady=steady)
    text = ranks.from_first(json.dumps([forecast.as_dict() for forecast in ranked]))
    return Choice(pilot, tuple(Forecast.of(record) for record in json.loads(text)))


def chosen(
    model: GEBM, directive: SamplerDirective, settings: SampleSettings, device: torch.device | str | None
) -> Sampler:
    """Choose a sampler by a pilot alone, for chains that are looked at along the way, in equilibrium or not."""
    best = choose(model, directive, settings, device=device).ranked[0]
    return built(model, fitting(model, best))


def built(model: GEBM, forecast: Forecast) -> Sampler:
    """Build the sampler of a forecast."""
    from gebm_kit.config.build import build
    from gebm_kit.config.schema import ComponentNode

    facts = {"latent_dim": model.latent_dim, "data_shape": tuple(model.data_shape)}
    sampler: Sampler = build("sampler", ComponentNode(forecast.name, forecast.arguments), facts)
    return sampler


def settle(
    model: GEBM,
    directive: SamplerDirective,
    settings: SampleSettings,
    attempt: Callable[[Sampler, SampleSettings], Attempt[T]],
    *,
    device: torch.device | str | None = None,
    ranks: Ranks = ALONE,
    chains_only: bool = False,
    pilot: Pilot | None = None,
    bounds: Bounds | None = None,
) -> Settled[T]:
    """Choose a sampler, make attempts until one passes the tests or the budget is used, and return the last one.

    Args:
        attempt: draws with a sampler and settings, on all ranks.
        chains_only: whether chains start at given points, which populations can't.
        pilot: base draws that are there already; None: they are drawn.
        bounds: seconds that the attempts may take; None: not limited.

    Raises:
        UsageError: the energy is finite nowhere, or no candidate serves the model.
    """
    bounds = bounds or Bounds()
    place: dict[str, Any] = {"device": device, "ranks": ranks, "chains_only": chains_only}
    choice = choose(model, directive, settings, **place, steady=bounds.seconds is not None, pilot=pilot)
    search = _Search(model, directive, choice, settings, ranks, chains_only, bounds)
    return search.run(attempt)


@dataclass(frozen=True)
class _Tried:
    """One attempt that was made: what was run, what it cost in evaluations, and its judgement."""

    forecast: Forecast
    cost: float
    judgement: Judgement

    @property
    def words(self) -> str:
        run = self.forecast.settings
        return (
            f"{self.forecast.name} ({run.chains} chains of {run.warmup} + {run.total_steps} steps)"
            if self.is_chain
            else self.forecast.name
        )

    @property
    def is_chain(self) -> bool:
        return self.forecast.name not in POPULATIONS


@dataclass
class _Search:
    """The search for draws that hold."""

    model: GEBM
    directive: SamplerDirective
    choice: Choice
    settings: SampleSettings
    ranks: Ranks
    chains_only: bool
    bounds: Bounds
    late: bool = False
    tried: list[_Tried] = field(default_factory=list)

    def run(self, attempt: Callable[[Sampler, SampleSettings], Attempt[T]]) -> Settled[T]:
        """Make attempts until one holds or nothing is left to try."""
        began, spent = time.perf_counter(), self.choice.pilot.spent
        forecast: Forecast | None = self._first()
        while forecast is not None:
            sampler = built(self.model, fitting(self.model, forecast))
            found = attempt(sampler, forecast.settings)
            spent += found.spent
            cost = found.spent.forward_evals + GRADIENT_COST * found.spent.grad_evals
            judgement = self._agreed(
                judged(found.diagnostics, found.records, self.choice.pilot, self.directive.max_rhat)
            )
            self.tried.append(_Tried(forecast, cost, judgement))
            last, forecast = forecast, None if judgement.held else self._next()
            if forecast is not None and not self._in_time(forecast, time.perf_counter() - began):
                forecast, self.late = None, True
        diagnostics = replace(
            found.diagnostics,
            grad_evals=spent.grad_evals,
            forward_evals=spent.forward_evals,
            seconds=time.perf_counter() - began,
            sampler_reason=self._reason(found.diagnostics),
            unsettled=self._unsettled(),
        )
        return Settled(found.result, diagnostics, last, sampler)

    def _first(self) -> Forecast:
        """Return the first choice, shortened to the time that there is; the first rank decides."""
        best = self.choice.ranked[0]
        share = float(self.ranks.from_first(json.dumps(self.bounds.share)))
        if share == 1.0 or best.name in POPULATIONS:
            return best
        self.late = True
        return shortened(best, share)

    def _agreed(self, judgement: Judgement) -> Judgement:
        """Return the first rank's judgement."""
        return Judgement(**json.loads(self.ranks.from_first(json.dumps(dataclasses.asdict(judgement)))))

    def _next(self) -> Forecast | None:
        """Return what to try next within the budget: longer while that helps, `smc`, `pt`, and that longer; None: nothing.

        What is longer leaves room for `smc`, as far as that has not been tried. Proposals from a doubtful pilot are not made
        longer: the best candidate that follows the gradient takes their place.
        """
        every = [tried.forecast.name for tried in self.tried]
        left = self._allowance() - sum(tried.cost for tried in self.tried[1:])
        last, pilot = self.tried[-1], self.choice.pilot
        if last.forecast.name in INDEPENDENT and not pilot.trusted:
            others = [f for f in self.choice.ranked if f.name not in (*INDEPENDENT, *every) and f.cost <= left]
            if others:
                return others[0]
        tempered = []
        if pilot.has_gradient and "smc" not in every and not self.chains_only:
            tempered.append(smc_forecast(pilot, self.settings))
        if pilot.has_gradient and "pt" not in every:
            tempered.append(pt_forecast(pilot, self.settings, self.directive))
        options = [forecast for forecast in tempered if forecast.cost <= left]
        if last.is_chain and (self._helped() or not tempered):
            reserved = options[0].cost if options else 0.0
            options = [forecast for forecast in self._longer(last) if forecast.cost <= left - reserved] + options
        return options[0] if options else None

    def _in_time(self, forecast: Forecast, spent: float) -> bool:
        """Return whether another attempt fits into the seconds, at the pace of those before; the first rank decides."""
        pace = spent / max(sum(tried.cost for tried in self.tried), 1)
        seconds = self.bounds.seconds
        fits = seconds is None or spent + pace * forecast.cost <= seconds
        return bool(json.loads(self.ranks.from_first(json.dumps(fits))))

    def _allowance(self) -> float:
        """Return how many evaluations all attempts after the first may take together."""
        unit = reference_cost(self.choice.pilot, self.settings, self.directive)
        return self.directive.budget * max(self.tried[0].cost, unit)

    def _helped(self) -> bool:
        """Return whether the last attempt is the first of its sampler, or better than the one before it."""
        same = [tried for tried in self.tried if tried.forecast.name == self.tried[-1].forecast.name]
        if len(same) < 2:
            return True
        before, after = same[-2].judgement.excess, same[-1].judgement.excess
        return after <= HELPS * before

    def _longer(self, tried: _Tried) -> list[Forecast]:
        """Return the last attempt with warm-up and steps doubled once or more, the longest first.

        R-hat is about ``sqrt(1 + 2 time / steps)``, so its excess says how many times, unless it is so large that chains may
        never meet.
        """
        excess, allowed = tried.judgement.excess, self.directive.max_rhat**2 - 1
        wanted = ((1 + excess) ** 2 - 1) / allowed if 0 < excess < FAR else 1.0
        run, most = tried.forecast.settings, min(max(math.ceil(math.log2(MARGIN * wanted)), 1), MOST_DOUBLINGS)
        return [
            replace(
                tried.forecast,
                settings=spread(replace(run, warmup=2**times * run.warmup, steps=2**times * run.total_steps)),
                cost=2**times * tried.cost,
            )
            for times in range(most, 0, -1)
        ]

    def _reason(self, diagnostics: Diagnostics) -> str:
        start, last = self.choice.reason, self.tried[-1]
        failed = "; ".join(f"{tried.words} failed, as {tried.judgement.problem}" for tried in self.tried[:-1])
        start = f"{start}; {failed}" if failed else start
        if not last.judgement.held:
            return f"{start}; it did not converge and stopped with {last.words}, as {last.judgement.problem}."
        if diagnostics.family == "kernel":
            return f"{start}; {last.words} passed the tests, with R-hat {diagnostics.rhat_max:.3f}."
        return f"{start}; {last.words} passed the tests, with an effective size of {diagnostics.ess_min:.0f}."

    def _unsettled(self) -> str | None:
        last = self.tried[-1]
        if last.judgement.held:
            return None
        ratio = sum(tried.cost for tried in self.tried[1:]) / max(self.tried[0].cost, 1)
        seconds = max(self.bounds.seconds or 0.0, 0.0)
        more = f"the {seconds:.0f} s for it allow no more: raise `eval.budget`" if self.late else "raise `budget`"
        return (
            f"`auto` did not converge: after {len(self.tried)} attempt{'s' if len(self.tried) > 1 else ''} "
            f"({ratio:.1f} times the evaluations of the first one were spent on the others; its budget is "
            f"{self.directive.budget:g}) it stopped with {last.words}, and {last.judgement.problem}; {more}, or "
            "name a sampler and its settings."
        )


def asked(directive: SamplerDirective, settings: SampleSettings) -> dict[str, Any]:
    """Describe what was asked for as plain data: two with the same description lead to the same choice."""
    plain = {"max_rhat": directive.max_rhat, "budget": directive.budget, "candidates": list(directive.candidates)}
    return {**plain, **dataclasses.asdict(settings)}
