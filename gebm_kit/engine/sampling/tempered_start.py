"""The first part of warm-up: the tilt is switched on slowly, so that chains reach each mode in proportion to its mass.

At a large inverse temperature, a draw of the prior lies far up a slope. A kernel on the full potential then runs down
into the nearest mode, with steps as short as that mode is narrow, so where a chain ends depends on where it started.
While the tilt is weak, steps are long and modes are connected.

References:
    Optimization by simulated annealing. S. Kirkpatrick, C. D. Gelatt, M. P. Vecchi, Science 1983.
    https://doi.org/10.1126/science.220.4598.671
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gebm_kit.core.interfaces import Potential, Sampler, ValueAndGrad
from gebm_kit.core.tilt import tilt, tilt_and_grad
from gebm_kit.engine.sampling.acceptance import acceptance_sums, mean_acceptance

if TYPE_CHECKING:
    from gebm_kit.engine.sampling.warmup import Reduce


TEMPERED_SHARE = 0.3
"""Share of the warm-up steps that callers give to the tempered start; the rest must be enough for tuning."""


LEVELS = 5
"""Number of strengths of the tilt below 1. Few, because each costs an evaluation and resets the kernels' momentum."""


ARRIVAL_SHARE = 1 / 3
"""Share of the steps at full strength, whose step size also suits the chains in the steepest places."""


STUCK = 0.01
"""Least acceptance of a chain in the harmonic mean that tunes the step size at full strength."""


GAIN = 2.0
"""Change of the step size's logarithm in one step, for a mean acceptance that is off by 1."""


class TemperedPotential:
    """The potential ``|z|²/2 + strength * tilt(z)``: the prior at strength 0, the full potential at 1."""

    def __init__(self, potential: Potential, strength: float) -> None:
        self.potential, self.strength = potential, strength

    def tilt(self, z: Tensor) -> Tensor:
        """Compute the tempered tilt; (C, Z) -> (C,)."""
        return self.strength * tilt(self.potential, z)

    def tilt_and_grad(self, z: Tensor) -> ValueAndGrad:
        """Compute the tempered tilt and its gradient; (C, Z) -> (C,), (C, Z)."""
        value, grad = tilt_and_grad(self.potential, z)
        return ValueAndGrad(self.strength * value, self.strength * grad)

    def value(self, z: Tensor) -> Tensor:
        """Compute the tempered potential; (C, Z) -> (C,)."""
        return self.tilt(z) + 0.5 * z.square().sum(1)

    def value_and_grad(self, z: Tensor) -> ValueAndGrad:
        """Compute the tempered potential and its gradient; (C, Z) -> (C,), (C, Z)."""
        value, grad = self.tilt_and_grad(z)
        return ValueAndGrad(value + 0.5 * z.square().sum(1), grad + z)


@dataclass(frozen=True, slots=True)
class TemperedStart:
    """Result of `tempered_start`.

    Attributes:
        sampler: the sampler with a step size to begin tuning from.
        states: states of the blocks, on the full potential.
        steps: steps that were made; 0 when the sampler was left alone.
        divergences: divergent steps at full strength, over all blocks.
    """

    sampler: Sampler
    states: tuple[Any, ...]
    steps: int
    divergences: int


def tempered_start(
    sampler: Sampler,
    states: Sequence[Any],
    potential: Potential,
    generators: Sequence[torch.Generator],
    steps: int,
    *,
    reduce: Reduce,
    on_step: Callable[[int, Sampler], None] = lambda step, sampler: None,
) -> TemperedStart:
    """Run ``steps`` steps of every chain with the sampler itself, while ``strength * tilt`` grows to the full tilt.

    1. Strengths ``spread^(j/5 - 1)``, j = 0, ..., 4, where spread is the tilt's standard deviation over the chains. At
    the
       first strength the chains, draws of the prior, differ by about 1 in their potential. With a spread of at most 1
       this part is skipped.
    2. Full strength, for a third of the steps, or for all of them when part 1 is skipped.

    The step size h follows the mean acceptance a over chains, ``log h += 2 (a - target)``. At full strength the mean is
    harmonic. A step size for the average chain would be rejected in every step of chains in steep places.

    Samplers without a step size to tune, or with a ladder of their own, are left alone.

    This makes chains forget where they were drawn, whether or not they mix afterwards. Nested R-hat must therefore be
    computed from where the tempered start leaves the chains.

    Args:
        states: states of the blocks, from ``sampler.init``.
        generators: one for each block.
        reduce: adds sums over all blocks, as in warm-up.
        on_step: called after every step with the number of steps so far and the sampler for the next step.
    """
    if steps == 0 or sampler.tunable is None or sampler.has_ladder:
        return TemperedStart(sampler, tuple(states), 0, 0)
    run = _Start(sampler, states, potential, generators, reduce, on_step)
    spread = run.spread()
    tempered = steps - math.ceil(steps * ARRIVAL_SHARE) if spread > 1 else 0
    for level in range(LEVELS):
        begin, end = tempered * level // LEVELS, tempered * (level + 1) // LEVELS
        if begin < end:
            run.level(TemperedPotential(potential, spread ** (level / LEVELS - 1)), end - begin, harmonic=False)
    run.diverged = [torch.zeros_like(d) for d in run.diverged]
    run.level(potential, steps - tempered, harmonic=True)
    return TemperedStart(run.sampler, tuple(run.states), steps, int(reduce(run.diverged)[0]))


class _Start:
    """The state of one tempered start while it runs."""

    def __init__(
        self,
        sampler: Sampler,
        states: Sequence[Any],
        potential: Potential,
        generators: Sequence[torch.Generator],
        reduce: Reduce,
        on_step: Callable[[int, Sampler], None],
    ) -> None:
        self._done, self._on_step = 0, on_step
        self.sampler, self.states = sampler, list(states)
        self.diverged = [torch.zeros(1, dtype=torch.float64, device=s.position.device) for s in states]
        self._potential, self._generators, self._reduce = potential, generators, reduce

    def spread(self) -> float:
        """Compute the standard deviation of the tilt over all chains."""
        values = [tilt(self._potential, state.position).double() for state in self.states]
        sums = [torch.stack([torch.ones_like(v).sum(), v.sum(), v.square().sum()]) for v in values]
        num, total, squares = self._reduce(sums).tolist()
        return math.sqrt(max(squares / num - (total / num) ** 2, 0.0))

    def level(self, potential: Potential, steps: int, *, harmonic: bool) -> None:
        """Make ``steps`` steps on one potential, after computing everything that the states hold for it afresh."""
        pairs = list(zip(self.states, self._generators, strict=True))
        self.states = [self.sampler.init(state.position, potential, generator) for state, generator in pairs]
        for _ in range(steps):
            rows = []
            for index, generator in enumerate(self._generators):
                self.states[index], info = self.sampler.step(self.states[index], potential, generator)
                self.diverged[index] += info.diverged.sum()
                rows.append(acceptance_sums(info, STUCK if harmonic else None))
            self._tune(mean_acceptance(self._reduce(rows), harmonic))
            self._done += 1
            self._on_step(self._done, self.sampler)

    def _tune(self, acceptance: float) -> None:
        tunable = self.sampler.tunable
        assert tunable is not None
        value = getattr(self.sampler, tunable.name) * math.exp(GAIN * (acceptance - tunable.target))
        self.sampler = self.sampler.tuned(**{tunable.name: min(max(value, tunable.low), tunable.high)})
