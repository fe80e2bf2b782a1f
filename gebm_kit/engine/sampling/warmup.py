"""Warm-up: tunes a kernel's step size, its preconditioner and whatever its `Adaptation` tunes, on all chains.

Then the kernel is frozen. Draws are kept only afterwards, with parameters that no longer change, so an exact kernel
stays exact. Chains come in blocks, which step in turn. Tuning works with sums in float64, within each block and then
over the blocks in their order. It waits for the device once a step; kernels themselves never do.

References:
    The No-U-Turn Sampler. M. D. Hoffman, A. Gelman, JMLR 2014. https://arxiv.org/abs/1111.4246 (dual averaging, 3.2)
    An adaptive MCMC scheme for setting trajectory lengths. M. D. Hoffman, A. Radul, P. Sountsov, AISTATS 2021.
    https://proceedings.mlr.press/v130/hoffman21a.html (tuning on many chains at once)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Potential, Sampler, TiltedPotential, Tunable
from gebm_kit.core.progress import OnProgress, Progress, ignore
from gebm_kit.core.reduce import in_block_order
from gebm_kit.engine.sampling.acceptance import acceptance_sums, mean_acceptance

SEARCH_STEPS = 12
"""Most doublings or halvings of the first step size, a factor of 4,096 either way.

Dual averaging continues from there.
"""


MIN_STEPS_FOR_PRECONDITIONER = 40
"""A shorter warm-up tunes the step size alone."""


WINDOWS = ((0.15, 0.3), (0.4, 0.6))
"""Parts of warm-up whose positions make a preconditioner. The first is rough, and lets the second start nearer."""


SHRINKAGE_ROWS = 10.0
"""Weight, in independent rows, of the prior's variance 1 in the pooled variance."""


ROWS_PER_INDEPENDENT = 5.0
"""States of one chain that count as one independent row in the pooled variance."""


HARMONIC_FLOOR = 1e-2
"""Least acceptance of a chain in a harmonic mean, an energy error of 4.6.

Without it one stuck chain in a thousand would decide the step size of all chains. At the target few chains reach it.
"""


REPORT_EVERY = 10
"""Steps between two reports of progress: often enough to watch, too rare to slow the chains down."""


Reduce = Callable[[Sequence[Tensor]], Tensor]
"""A function that adds the blocks' vectors of sums, (K,) float64 on the device, over all blocks;
(K,) float64 on the CPU."""


class DualAveraging:
    """Nesterov's dual averaging of ``log h``, which drives the mean of ``target - acceptance`` to zero.

        H <- (1 - 1/(t + t0)) H + (target - a_t) / (t + t0),   log h_t = mu - sqrt(t)/gamma H,
        log h_bar <- t^-kappa log h_t + (1 - t^-kappa) log h_bar,        mu = log(10 h_0).

    Constants: t0 = 10, gamma = 0.05, kappa = 0.75 (Hoffman and Gelman 2014, Section 3.2.1). ``log h`` is held within
    the tunable's bounds.
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
        """Value for the next step."""
        return math.exp(self._log_value)

    @property
    def averaged(self) -> float:
        """Weighted mean of the values so far, the value to freeze."""
        return math.exp(self._log_mean)

    def update(self, acceptance: float) -> None:
        """Update with one step's mean acceptance, in [0, 1]."""
        self._steps += 1
        weight = 1 / (self._steps + self.t0)
        self._error += weight * (self._target - acceptance - self._error)
        free = self._mu - math.sqrt(self._steps) / self.gamma * self._error
        self._log_value = min(max(free, self._low), self._high)
        forget = self._steps**-self.kappa
        self._log_mean += forget * (self._log_value - self._log_mean)


@dataclass(frozen=True, slots=True)
class WarmUp:
    """Result of `warm_up`.

    Attributes:
        sampler: the sampler with its tuned parameters, frozen.
        states: final states of the blocks.
        divergences: divergent steps of warm-up, over all blocks.
    """

    sampler: Sampler
    states: tuple[Any, ...]
    divergences: int

    @property
    def state(self) -> Any:
        """Final state of the only block."""
        (state,) = self.states
        return state


class _Moments:
    """Sums of positions and of their squares, over a block's chains and some steps, on the device."""

    def __init__(self) -> None:
        self._rows = 0
        self._sum: Tensor | float = 0.0
        self._squares: Tensor | float = 0.0

    def add(self, z: Tensor) -> None:
        wide = z.double()
        self._rows += z.shape[0]
        self._sum = self._sum + wide.sum(0)
        self._squares = self._squares + wide.square().sum(0)

    def sums(self) -> Tensor:
        """Return the number of rows, the sums and the sums of squares, (1 + 2 Z,)."""
        total = torch.as_tensor(self._sum)
        return torch.cat([total.new_full((1,), self._rows), total, torch.as_tensor(self._squares)])


def shrunk_variance(sums: Tensor) -> Tensor:
    """Compute ``exp(n / (n + k) log s^2)`` with n independent rows and k = `SHRINKAGE_ROWS`; (1 + 2 Z,) -> (Z,).

    The variance is shrunk toward 1 on a logarithmic scale, so a small variance known from many rows stays small.

    Args:
        sums: number of rows, sums and sums of squares of positions.
    """
    rows = float(sums[0])
    mean, square = (sums[1:] / rows).chunk(2)
    variance = (square - mean.square()).clamp(1e-8, 1e8)
    independent = rows / ROWS_PER_INDEPENDENT
    return variance.pow(independent / (independent + SHRINKAGE_ROWS))


def warm_up(
    sampler: Sampler,
    state: Any,
    potential: Potential,
    generator: torch.Generator,
    steps: int,
    *,
    on_progress: OnProgress = ignore,
) -> WarmUp:
    """Call `warm_up_blocks` with one block: the chains of ``state``, from ``sampler.init``, and their generator."""
    return warm_up_blocks(sampler, [state], potential, [generator], steps, on_progress=on_progress)


def warm_up_blocks(
    sampler: Sampler,
    states: Sequence[Any],
    potential: Potential,
    generators: Sequence[torch.Generator],
    steps: int,
    *,
    reduce: Reduce = in_block_order,
    on_progress: OnProgress = ignore,
) -> WarmUp:
    """Run ``steps`` steps of every chain, tune what the sampler allows, and freeze the result.

    1. The step size is doubled or halved, by trial steps that are not kept, until the mean acceptance over chains
    crosses
       its target. Then it follows `DualAveraging` on that mean.
    2. A sampler with ``inverse_mass`` and a step size to tune gets a preconditioner at the end of each of `WINDOWS`:
    the
       diagonal variance of all chains' positions in that window, pooled and shrunk toward 1. Its step size is tuned
       anew.
    3. The sampler's `Adaptation`, if it has one, sees every step except the trial steps, and is frozen after the step
    size.

    Samplers with nothing to tune are just run.

    Args:
        states: states of the blocks, from ``sampler.init``.
        generators: one for each block.
        steps: 0 leaves the sampler as it is.
        reduce: adds sums over all blocks; not `in_block_order` when this process has only some of the blocks.

    Raises:
        UsageError: the tunable parameter is not a positive finite number.
    """
    tunable = sampler.tunable
    if tunable is not None:
        require_positive(sampler, tunable)
    if steps == 0:
        return WarmUp(sampler, tuple(states), 0)
    tuning = _Tuning(sampler, states, potential, generators, steps, reduce, on_progress)
    if tunable is None:
        tuning.run(steps)
    else:
        done = 0
        if hasattr(sampler, "inverse_mass") and steps >= MIN_STEPS_FOR_PRECONDITIONER:
            for begin, end in WINDOWS:
                tuning.tune(round(begin * steps) - done)
                tuning.tune(round(end * steps) - round(begin * steps), precondition=True)
                done = round(end * steps)
        tuning.tune(steps - done)
    return tuning.frozen()


def require_positive(sampler: Sampler, tunable: Tunable) -> None:
    """Raise UsageError unless the tunable parameter is a positive finite number."""
    value = getattr(sampler, tunable.name)
    if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
        raise UsageError(f"{type(sampler).__name__}: {tunable.name} must be a positive finite number, got {value!r}")


class _Tuning:
    """The state of one warm-up while it runs."""

    def __init__(
        self,
        sampler: Sampler,
        states: Sequence[Any],
        potential: Potential,
        generators: Sequence[torch.Generator],
        total: int,
        reduce: Reduce,
        on_progress: OnProgress,
    ) -> None:
        self.sampler, self.states = sampler, list(states)
        self._potential, self._generators, self._reduce = potential, generators, reduce
        self._adaptation = sampler.adaptation()
        counts = [torch.full((1,), len(s.position), dtype=torch.float64) for s in self.states]
        self._num_chains = int(reduce(counts)[0])
        self._diverged = [torch.zeros(1, dtype=torch.float64, device=s.position.device) for s in self.states]
        self._done, self._total, self._on_progress = 0, total, on_progress

    def tune(self, steps: int, *, precondition: bool = False) -> None:
        """Search for a first value, follow dual averaging for ``steps`` steps, and set the averaged value on the
        sampler.

        Args:
            precondition: whether to then set the pooled variance of these steps' positions on the sampler.
        """
        tunable = self.sampler.tunable  # its bounds may depend on the preconditioner
        assert tunable is not None
        averaging = DualAveraging(tunable, self._search(tunable))
        moments = [_Moments() for _ in self.states] if precondition else []
        self.run(steps, (tunable, averaging), moments)
        self.sampler = self.sampler.tuned(**{tunable.name: averaging.averaged})
        if precondition:
            self._precondition(self._reduce([m.sums() for m in moments]))

    def run(
        self, steps: int, tuned: tuple[Tunable, DualAveraging] | None = None, moments: Sequence[_Moments] = ()
    ) -> None:
        """Make ``steps`` steps of every block, each with the sampler that the earlier steps produced."""
        for _ in range(steps):
            if tuned is not None:
                self.sampler = self.sampler.tuned(**{tuned[0].name: tuned[1].value})
            sums = self._step(None if tuned is None else tuned[0])
            for block, state in zip(moments, self.states, strict=False):
                block.add(state.position)
            self._done += 1
            scalars = {}
            if tuned is not None:
                acceptance = mean_acceptance(sums, tuned[0].harmonic)
                tuned[1].update(acceptance)
                scalars = {"acceptance": acceptance, tuned[0].name: tuned[1].value}
                sums = sums[2:]
            if self._adaptation is not None:
                progress = self._done / self._total
                self.sampler = self._adaptation.update(self.sampler, sums, self._num_chains, progress)
            if self._done % REPORT_EVERY == 0 or self._done == self._total:
                self._on_progress(Progress("warmup", self._done, self._total, scalars))

    def frozen(self) -> WarmUp:
        sampler = self.sampler if self._adaptation is None else self._adaptation.freeze(self.sampler)
        return WarmUp(sampler, tuple(self.states), int(self._reduce(self._diverged)[0]))

    def _step(self, tunable: Tunable | None) -> Tensor:
        """Step every block.

        Returns sums over all chains for dual averaging (the first two) and the adaptation; (0,) without either.
        """
        rows = []
        for index, before in enumerate(self.states):
            after, info = self.sampler.step(before, self._potential, self._generators[index])
            self.states[index] = after
            self._diverged[index] += info.diverged.sum()
            parts = [] if tunable is None else [acceptance_sums(info, HARMONIC_FLOOR if tunable.harmonic else None)]
            if self._adaptation is not None:
                parts.append(self._adaptation.statistics(self.sampler, before, after, info))
            rows.append(parts)
        if tunable is None and self._adaptation is None:
            return torch.empty(0)
        return self._reduce([torch.cat(parts) for parts in rows])

    def _precondition(self, sums: Tensor) -> None:
        """Set the pooled variance on the sampler; on a tilted potential, at most the prior's 1.

        A variance above the prior's shows the distance between modes, not the width of one. As a scale it would shorten
        the steps in every other coordinate.
        """
        variance = shrunk_variance(sums).to(self.states[0].position)
        if isinstance(self._potential, TiltedPotential):
            variance = variance.clamp(max=1.0)
        self.sampler = self.sampler.tuned(inverse_mass=variance)

    def _search(self, tunable: Tunable) -> float:
        """Double or halve the current value until the mean acceptance crosses the target, within the bounds."""
        value = min(max(float(getattr(self.sampler, tunable.name)), tunable.low), tunable.high)
        direction = 0
        for _ in range(SEARCH_STEPS):
            trial = self.sampler.tuned(**{tunable.name: value})
            rows = []
            for state, generator in zip(self.states, self._generators, strict=True):
                _, info = trial.step(state, self._potential, generator)
                rows.append(acceptance_sums(info, HARMONIC_FLOOR if tunable.harmonic else None))
            acceptance = mean_acceptance(self._reduce(rows), tunable.harmonic)
            wanted = 1 if acceptance > tunable.target else -1
            nearer = min(max(value * 2.0**wanted, tunable.low), tunable.high)
            if wanted == -direction or nearer == value:
                break
            direction, value = wanted, nearer
        return value
