"""What an effective draw is expected to cost with each sampler, from a pilot and from counts; no time is measured.

Costs are in evaluations of one row without gradient. A step of few rows costs as much as one that fills the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from gebm_kit.core.interfaces import SamplerDirective
from gebm_kit.core.model import GEBM
from gebm_kit.engine.sampling.diagnostics import ESS_LIMIT
from gebm_kit.engine.sampling.pilot import Pilot, Stays, candidates_stay, independence_stays
from gebm_kit.engine.sampling.settings import SampleSettings, check_fits, resolve_sampler

GRADIENT_COST = 3.0
"""Evaluations that a gradient costs: forward, and a backward pass of twice the work."""

FULL_ROWS = {"cpu": 64, "cuda": 2048}
"""Rows that fill a device: fewer cost as much. On one core, a row of the mlp models costs little more from 64 rows on."""

MARGIN = 1.25
"""Steps beyond those after which R-hat is expected to be at its limit."""

REMAINING = 0.01
"""Share of the mass that may never have moved at the end of the warm-up of independence proposals."""

FEWEST_STEPS = 16
"""Steps of a chain that is shortened, at least: R-hat needs some."""

MOST_BURN_IN = 4096
"""Warm-up steps of independence proposals, at most."""

CANDIDATES_OF_ISIR = (8, 32, 128)
"""Numbers of candidates that are considered for `isir`."""

DRAWS_A_CANDIDATE_SET = 4.0
"""Effective candidates for each draw of `sir`: a quarter of the draws is then a repetition, and the bias is small."""


@dataclass(frozen=True, slots=True)
class _Gradients:
    """What a sampler that follows the gradient spends, measured by ``python -m benchmarks.auto`` on digits.

    Attributes:
        a_step: gradients of a step.
        time: autocorrelation time of its slowest quantity, in steps.
        chains: fewest chains from which its tuning learns enough.
    """

    a_step: float
    time: float
    chains: int


LOCAL = {"hmc": _Gradients(4.0, 3.0, 1), "chees": _Gradients(4.5, 2.3, 64)}

LOCAL_WARMUP = 100
"""Fewest warm-up steps of a sampler with a step size to tune."""

ELLIPTICAL_EVALUATIONS, ELLIPTICAL_TIME = 3.0, 30.0
"""Evaluations and autocorrelation time of `elliptical`, which stands in where the energy has no gradient."""

SMC_ROUND, SMC_FINAL_ROUNDS, SMC_EFFECTIVE = 24, 2, 0.65
"""Gradients of a rung, rounds after the ladder, and effective share of a population of `smc` with its defaults."""

RUNG = 0.6
"""Length of a rung: with a spread s of the log-weights, exp(-s²) of the population stays effective, 0.7 at 0.6."""

SMC_PARTICLES = 512
"""Particles of a population of `smc`, where as many draws are wanted."""

DOUBT = 2.0
"""How many times less a sampler by independence proposals must cost to be tried although the pilot is in doubt of it: then
a trial pays that fails half of the time."""

INDEPENDENT = ("imh", "isir", "sir")
"""Samplers whose proposals are base draws."""

POPULATIONS = ("sir", "smc")
"""Samplers that draw populations: they have no chains to lengthen, and can't start at given points."""

PT_RUNGS, PT_LEAPFROG = 10, 2
"""Rungs of the ladder of `pt` and gradients of a step on each, with its defaults."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """A sampler, its settings, and what they are expected to cost.

    Attributes:
        name, arguments: the sampler and its parameters.
        settings: how it is run.
        cost: evaluations in all.
        effective: effective draws.
        words: the figures that the forecast rests on.
    """

    name: str
    arguments: Mapping[str, Any]
    settings: SampleSettings
    cost: float
    effective: float
    words: str = field(default="", compare=False)

    @property
    def cost_a_draw(self) -> float:
        """Evaluations for an effective draw. Of fewer than 100 draws asked for, only these count."""
        asked = self.settings.num_samples
        return self.cost / (min(self.effective, asked) if asked < ESS_LIMIT else self.effective)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, from which `of` makes the same forecast."""
        return asdict(self)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Forecast:
        """Read back `as_dict`."""
        return cls(**{**record, "settings": SampleSettings(**record["settings"])})


def forecasts(
    pilot: Pilot,
    model: GEBM,
    settings: SampleSettings,
    directive: SamplerDirective,
    *,
    chains_only: bool = False,
    steady: bool = False,
) -> list[Forecast]:
    """Predict the cost of every candidate that serves the model, the cheapest effective draw first.

    Independence proposals are left out when the pilot is far from reaching the model, and gradients when the energy has
    none. If that leaves nothing, `elliptical` stands in, or else what was left out. Where the pilot is in doubt, `imh` and
    `isir` come first only if they cost less than half.

    Args:
        chains_only: whether chains start at given points, which populations can't.
        steady: whether to leave out samplers whose warm-up decides what a step costs, so that the time is known beforehand.
    """
    every: dict[str, Callable[[], list[Forecast]]] = {
        "imh": lambda: [_imh(pilot, settings, directive)],
        "isir": lambda: [_isir(pilot, settings, directive, num) for num in CANDIDATES_OF_ISIR],
        "sir": lambda: [_sir(pilot, settings)],
        "hmc": lambda: [_local("hmc", pilot, settings, directive)],
        "chees": lambda: [_local("chees", pilot, settings, directive)],
        "smc": lambda: [smc_forecast(pilot, settings)],
    }
    left_out = {*(POPULATIONS if chains_only else ()), *(("chees",) if steady else ())}
    known = {name: every[name]() for name in directive.candidates if name not in left_out}
    usable = [
        forecast
        for name, found in known.items()
        for forecast in found
        if (_reached(name, pilot) if name in INDEPENDENT else pilot.has_gradient)
        and (name != "chees" or settings.chains >= LOCAL["chees"].chains)
    ]
    if not usable and not pilot.has_gradient:
        usable = [_elliptical(pilot, settings, directive)]
    if not usable:
        usable = [forecast for found in known.values() for forecast in found] or [
            _local("hmc", pilot, settings, directive)
        ]

    def rank(forecast: Forecast) -> float:
        doubtful = forecast.name in INDEPENDENT and not pilot.trusted
        return forecast.cost_a_draw * (DOUBT if doubtful else 1.0)

    return sorted([f for f in usable if _serves(model, f)] or usable, key=rank)


def _reached(name: str, pilot: Pilot) -> bool:
    """Return whether independence proposals may be tried: `sir`, which no test of chains checks, needs a trusted pilot."""
    return pilot.trusted if name == "sir" else pilot.reaches


def _serves(model: GEBM, forecast: Forecast) -> bool:
    sampler = resolve_sampler(forecast.name, None, model)
    return model.base.prior.name in sampler.priors


def fitting(model: GEBM, forecast: Forecast) -> Forecast:
    """Return the forecast once the sampler is known to serve the model with these settings.

    Raises:
        UsageError: it does not.
    """
    check_fits(model, resolve_sampler(forecast.name, None, model), forecast.settings)
    return forecast


def reference_cost(pilot: Pilot, settings: SampleSettings, directive: SamplerDirective) -> float:
    """Return what `hmc` costs with these settings and all their chains."""
    return _local_of("hmc", pilot, settings, directive).cost


def fewest_chains(
    forecast: Callable[[SampleSettings], Forecast], settings: SampleSettings, pilot: Pilot, least: int = 1
) -> Forecast:
    """Predict the cost with as few chains as give the draws that are asked for: every chain has its own warm-up.

    Args:
        least: fewest chains that the sampler can do with.
    """
    found, chains = list[Forecast](), settings.chains
    fewest = max(least, FULL_ROWS.get(pilot.device, FULL_ROWS["cpu"]))
    while not found or chains >= fewest:
        found.append(forecast(replace(settings, num_chains=chains)))
        chains = -(-chains // 2) if chains > 1 else 0
    enough = [one for one in found if one.effective >= settings.num_samples] or found[:1]
    return min(enough, key=lambda one: one.cost)


def spread(run: SampleSettings) -> SampleSettings:
    """Return settings that keep states from all of the steps, where these are more than the kept ones need."""
    if run.kept < 2:
        return run
    return replace(run, thin=max(run.thin, (run.total_steps - 1) // (run.kept - 1)))


def shortened(forecast: Forecast, share: float) -> Forecast:
    """Return chains with about this share of the warm-up and steps; where they keep many states, with less between them."""
    run = forecast.settings
    steps = max(math.ceil(share * run.total_steps), min(run.total_steps, FEWEST_STEPS), run.kept)
    thin = min(run.thin, (steps - 1) // (run.kept - 1)) if run.kept > 1 else run.thin
    shorter = replace(run, warmup=math.ceil(share * run.warmup), steps=steps, thin=thin)
    moves = (shorter.warmup + shorter.total_steps) / (run.warmup + run.total_steps)
    return replace(forecast, settings=shorter, cost=moves * forecast.cost)


MOST_STEPS = 10**6
"""Most steps of a chain in a forecast."""


def steps_for(time: float, settings: SampleSettings, max_rhat: float) -> int:
    """Return the steps after which chains with this autocorrelation time should pass the tests.

    Halves of n / 2 steps have means of variance 2 time / n, so R-hat is about ``sqrt(1 + 2 time / n)``. Where one
    draw has all the weight these may be more than can be run: they are at most `MOST_STEPS`.
    """
    for_rhat = MARGIN * 2 * time / (max_rhat**2 - 1)
    for_size = 2 * ESS_LIMIT * time / settings.chains
    wanted = max(for_rhat, for_size)
    return max(settings.total_steps, math.ceil(wanted) if wanted < MOST_STEPS else MOST_STEPS, 8)


# --- independence proposals ------------------------------------------------------------------------------------------


def _rows_cost(rows: float, pilot: Pilot) -> float:
    return max(rows, FULL_ROWS.get(pilot.device, FULL_ROWS["cpu"]))


def _independent(
    name: str,
    arguments: Mapping[str, Any],
    stays: Stays,
    rows_a_chain: int,
    pilot: Pilot,
    settings: SampleSettings,
    directive: SamplerDirective,
) -> Forecast:
    time = stays.autocorrelation_time
    steps = steps_for(time, settings, directive.max_rhat)
    burn_in = stays.forgets(REMAINING, MOST_BURN_IN)
    run = spread(replace(settings, warmup=burn_in, steps=steps))
    cost = (burn_in + steps) * _rows_cost(settings.chains * rows_a_chain, pilot)
    words = f"{stays.acceptance:.0%} of its steps leave their point and its autocorrelation time is {time:.1f} steps"
    return Forecast(name, arguments, run, cost, settings.chains * steps / time, words)


def _imh(pilot: Pilot, settings: SampleSettings, directive: SamplerDirective) -> Forecast:
    stays = independence_stays(pilot)
    return fewest_chains(lambda run: _independent("imh", {}, stays, 1, pilot, run, directive), settings, pilot)


def _isir(pilot: Pilot, settings: SampleSettings, directive: SamplerDirective, num: int) -> Forecast:
    arguments, stays = {"num_candidates": num, "num_local": 0}, candidates_stay(pilot, num)
    return fewest_chains(
        lambda run: _independent("isir", arguments, stays, num - 1, pilot, run, directive), settings, pilot
    )


def _sir(pilot: Pilot, settings: SampleSettings) -> Forecast:
    share = pilot.effective / pilot.size
    num = max(math.ceil(DRAWS_A_CANDIDATE_SET / share), math.ceil(ESS_LIMIT / (share * settings.chains)), 2)
    draws = settings.num_samples
    words = f"{share:.0%} of base draws are effective"
    cost = _rows_cost(draws * num, pilot)
    return Forecast("sir", {"num_candidates": num}, settings, cost, draws / (1 + 1 / (share * num)), words)


# --- samplers that follow the gradient -------------------------------------------------------------------------------


def _local(name: str, pilot: Pilot, settings: SampleSettings, directive: SamplerDirective) -> Forecast:
    least = LOCAL[name].chains
    return fewest_chains(lambda run: _local_of(name, pilot, run, directive), settings, pilot, least)


def _local_of(name: str, pilot: Pilot, settings: SampleSettings, directive: SamplerDirective) -> Forecast:
    known = LOCAL[name]
    warmup, steps = max(settings.warmup, LOCAL_WARMUP), steps_for(known.time, settings, directive.max_rhat)
    run = spread(replace(settings, warmup=warmup, steps=steps))
    cost = (run.warmup + steps) * known.a_step * GRADIENT_COST * _rows_cost(run.chains, pilot)
    words = f"it takes about {known.a_step:g} gradients a step"
    return Forecast(name, {}, run, cost, run.chains * steps / known.time, words)


def _elliptical(pilot: Pilot, settings: SampleSettings, directive: SamplerDirective) -> Forecast:
    steps = steps_for(ELLIPTICAL_TIME, settings, directive.max_rhat)
    run = spread(replace(settings, steps=steps))
    cost = (run.warmup + steps) * ELLIPTICAL_EVALUATIONS * _rows_cost(settings.chains, pilot)
    words = "the energy has no gradient to follow"
    return Forecast("elliptical", {}, run, cost, settings.chains * steps / ELLIPTICAL_TIME, words)


def smc_forecast(pilot: Pilot, settings: SampleSettings) -> Forecast:
    """Predict the cost of `smc`, whose rungs follow from the length of its path, ``int_0^1 sd(tilt under l) dl``.

    Under the prior the tilt has the spread s of the pilot. Once a Gaussian in Z dimensions has contracted, it is
    ``sqrt(Z / 2) / l``; the smaller of the two is taken.
    """
    tilts = -pilot.log_weights[pilot.log_weights.isfinite()]
    spread, contracted = 0.0 if len(tilts) < 2 else float(tilts.std()), math.sqrt(pilot.latent_dim / 2)
    length = contracted * (1 + math.log(spread / contracted)) if spread > contracted else spread
    rungs = 1 + math.ceil(length / RUNG)
    particles = max(settings.num_chains, min(settings.num_samples, SMC_PARTICLES), 16)
    populations = -(-settings.num_samples // min(particles, max(settings.num_samples, 16)))
    per_population = min(particles, max(settings.num_samples, 16))
    rounds = rungs + SMC_FINAL_ROUNDS
    cost = populations * rounds * SMC_ROUND * GRADIENT_COST * _rows_cost(per_population, pilot)
    words = f"it takes about {rungs} rungs from the base to the model"
    run = replace(settings, num_chains=particles)
    return Forecast("smc", {}, run, cost, settings.num_samples * SMC_EFFECTIVE, words)


def pt_forecast(pilot: Pilot, settings: SampleSettings, directive: SamplerDirective) -> Forecast:
    """Predict the cost of `pt` with as many steps as `hmc`."""
    hmc = _local("hmc", pilot, settings, directive)
    cost = hmc.cost * PT_RUNGS * PT_LEAPFROG / LOCAL["hmc"].a_step
    return Forecast("pt", {}, hmc.settings, cost, hmc.effective, f"a ladder of {PT_RUNGS} rungs")
