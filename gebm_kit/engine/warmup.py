"""Warm-up: tunes a kernel's step size and preconditioner on all chains at once, then freezes them.

Draws are kept only after it, with parameters that no longer change, so that an exact kernel stays exact. Tuning waits for
the device once a step; kernels themselves never do.

References:
    The No-U-Turn Sampler. M. D. Hoffman, A. Gelman, JMLR 2014. https://arxiv.org/abs/1111.4246 (dual averaging, 3.2)
    An adaptive MCMC scheme for setting trajectory lengths. M. D. Hoffman, A. Radul, P. Sountsov, AISTATS 2021.
    https://proceedings.mlr.press/v130/hoffman21a.html (tuning on many chains at once)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Info, Potential, Sampler, TiltedPotential, Tunable
from gebm_kit.engine.progress import OnProgress, Progress, ignore

SEARCH_STEPS = 12
"""Doublings or halvings of the first step size: a factor of 4,096 either way; dual averaging goes on from there."""

MIN_STEPS_FOR_PRECONDITIONER = 40
"""A shorter warm-up tunes the step size alone."""

WINDOWS = ((0.15, 0.3), (0.4, 0.6))
"""Parts of warm-up whose positions make a preconditioner. The first, rough one lets the second start nearer."""

SHRINKAGE_ROWS = 10.0
"""Weight, in independent rows, of the prior's variance 1 in the pooled variance."""

ROWS_PER_INDEPENDENT = 5.0
"""States of one chain that count as one independent row in the pooled variance."""

REPORT_EVERY = 10


class DualAveraging:
    """Nesterov's dual averaging of ``log h`` until the mean of ``target - acceptance`` is zero.

        H <- (1 - 1/(t + t0)) H + (target - a_t) / (t + t0),   log h_t = mu - sqrt(t)/gamma H,
        log h_bar <- t^-kappa log h_t + (1 - t^-kappa) log h_bar,        mu = log(10 h_0).

    Constants: t0 = 10, gamma = 0.05, kappa = 0.75 (Hoffman and Gelman 2014, Section 3.2.1). ``log h`` is held within the
    tunable's bounds.
    """

    t0 = 10.0
    gamma = 0.05
    kappa = 0.75

    def __init__(self, tunable: Tunable, start: float) -> None:
        self._target = tunable.target
        self._low, self._high = math.log(tunable.low), math.log(tunable.high)
        self._mu = math.log(10 * start)
        self._log_value = self._log_mean = math.log(start)
        self._error = 0.0
        self._steps = 0

    @property
    def value(self) -> float:
        """What the next step should use."""
        return math.exp(self._log_value)

    @property
    def averaged(self) -> float:
        """The weighted mean of the values so far: what to freeze."""
        return math.exp(self._log_mean)

    def update(self, acceptance: float) -> None:
        """Take in one step's mean acceptance, in [0, 1]."""
        self._steps += 1
        weight = 1 / (self._steps + self.t0)
        self._error += weight * (self._target - acceptance - self._error)
        free = self._mu - math.sqrt(self._steps) / self.gamma * self._error
        self._log_value = min(max(free, self._low), self._high)
        forget = self._steps**-self.kappa
        self._log_mean += forget * (self._log_value - self._log_mean)


@dataclass(frozen=True, slots=True)
class WarmUp:
    """Result of `warm_up`: the frozen sampler, the chains' state, and how many steps diverged on the way."""

    sampler: Sampler
    state: Any
    divergences: int


class _Moments:
    """Running mean and variance of positions over chains and steps, on the device."""

    def __init__(self) -> None:
        self.rows = 0
        self._sum: Tensor | float = 0.0
        self._squares: Tensor | float = 0.0

    def add(self, z: Tensor) -> None:
        wide = z.double()
        self.rows += z.shape[0]
        self._sum = self._sum + wide.sum(0)
        self._squares = self._squares + wide.square().sum(0)

    def shrunk_variance(self, like: Tensor) -> Tensor:
        """``exp(n / (n + k) log s^2)`` with n independent rows and k = `SHRINKAGE_ROWS`, (Z,).

        Shrunk toward 1 on a logarithmic scale, so that a small variance known from many rows stays small.
        """
        mean = torch.as_tensor(self._sum) / self.rows
        variance = (torch.as_tensor(self._squares) / self.rows - mean.square()).clamp(1e-8, 1e8)
        independent = self.rows / ROWS_PER_INDEPENDENT
        return variance.pow(independent / (independent + SHRINKAGE_ROWS)).to(like)


def warm_up(
    sampler: Sampler,
    state: Any,
    potential: Potential,
    generator: torch.Generator,
    steps: int,
    *,
    on_progress: OnProgress = ignore,
) -> WarmUp:
    """Run ``steps`` steps of every chain, tuning what the sampler says may be tuned, and freeze the result.

    The step size is first doubled or halved until the mean acceptance over chains crosses its target (trial steps, not
    kept), then follows `DualAveraging` on that mean. A sampler with ``inverse_mass`` gets, at the end of each of `WINDOWS`,
    the diagonal variance of all chains' positions in it, pooled and shrunk toward 1, and its step size is tuned anew.
    Samplers with nothing to tune are just run.

    Args:
        state: the chains, from ``sampler.init``.
        steps: 0 leaves the sampler as it is.

    Raises:
        UsageError: the tunable parameter is not a positive finite number.
    """
    tuning = _Tuning(sampler, state, potential, generator, steps, on_progress)
    tunable = sampler.tunable
    if tunable is not None:
        require_positive(sampler, tunable)
    if steps == 0:
        return WarmUp(sampler, state, 0)
    if tunable is None:
        tuning.run(steps, None)
    else:
        done = 0
        if hasattr(sampler, "inverse_mass") and steps >= MIN_STEPS_FOR_PRECONDITIONER:
            for begin, end in WINDOWS:
                tuning.tune(round(begin * steps) - done)
                moments = _Moments()
                tuning.tune(round(end * steps) - round(begin * steps), moments)
                tuning.precondition(moments)
                done = round(end * steps)
        tuning.tune(steps - done)
    return WarmUp(tuning.sampler, tuning.state, int(tuning.divergences))


def require_positive(sampler: Sampler, tunable: Tunable) -> None:
    """Raises UsageError unless the tunable parameter holds a positive finite number."""
    value = getattr(sampler, tunable.name)
    if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
        raise UsageError(f"{type(sampler).__name__}: {tunable.name} must be a positive finite number, got {value!r}")


class _Tuning:
    """The moving parts of one warm-up."""

    def __init__(
        self,
        sampler: Sampler,
        state: Any,
        potential: Potential,
        generator: torch.Generator,
        total: int,
        on_progress: OnProgress,
    ) -> None:
        self.sampler, self.state = sampler, state
        self.divergences: Tensor | int = 0
        self._potential, self._generator = potential, generator
        self._done, self._total, self._on_progress = 0, total, on_progress

    def precondition(self, moments: _Moments) -> None:
        """Hand the pooled variance to the sampler; on a tilted potential, at most the prior's 1.

        More than the prior's variance is the distance between modes, not the width of one, and as a scale it would shorten
        the steps in every other coordinate.
        """
        variance = moments.shrunk_variance(self.state.position)
        if isinstance(self._potential, TiltedPotential):
            variance = variance.clamp(max=1.0)
        self.sampler = self.sampler.tuned(inverse_mass=variance)

    def tune(self, steps: int, moments: _Moments | None = None) -> None:
        """Search a first value, follow dual averaging for ``steps`` steps, leave the averaged value on the sampler."""
        tunable = self.sampler.tunable  # its bounds may depend on the preconditioner
        assert tunable is not None
        averaging = DualAveraging(tunable, self._search(tunable))
        self.run(steps, (tunable.name, averaging), moments)
        self.sampler = self.sampler.tuned(**{tunable.name: averaging.averaged})

    def run(self, steps: int, tuned: tuple[str, DualAveraging] | None, moments: _Moments | None = None) -> None:
        for _ in range(steps):
            if tuned is not None:
                self.sampler = self.sampler.tuned(**{tuned[0]: tuned[1].value})
            self.state, info = self.sampler.step(self.state, self._potential, self._generator)
            self.divergences = self.divergences + info.diverged.sum()
            scalars = {}
            if tuned is not None:
                acceptance = _mean_acceptance(info)
                tuned[1].update(acceptance)
                scalars = {"acceptance": acceptance, tuned[0]: tuned[1].value}
            if moments is not None:
                moments.add(self.state.position)
            self._done += 1
            if self._done % REPORT_EVERY == 0 or self._done == self._total:
                self._on_progress(Progress("warmup", self._done, self._total, scalars))

    def _search(self, tunable: Tunable) -> float:
        """Double or halve the current value until the mean acceptance crosses the target, within the bounds."""
        value = min(max(float(getattr(self.sampler, tunable.name)), tunable.low), tunable.high)
        direction = 0
        for _ in range(SEARCH_STEPS):
            trial = self.sampler.tuned(**{tunable.name: value})
            _, info = trial.step(self.state, self._potential, self._generator)
            wanted = 1 if _mean_acceptance(info) > tunable.target else -1
            nearer = min(max(value * 2.0**wanted, tunable.low), tunable.high)
            if wanted == -direction or nearer == value:
                break
            direction, value = wanted, nearer
        return value


def _mean_acceptance(info: Info) -> float:
    return float((info.acceptance if info.tuning is None else info.tuning).mean())
