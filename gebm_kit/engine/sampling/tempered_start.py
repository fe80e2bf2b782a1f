"""The first part of warm-up: the tilt is switched on slowly, so that chains arrive in proportion and none stays behind.

At a large inverse temperature a draw of the prior lies far up a slope, and a kernel on the full potential runs down into
whatever mode is next, with steps as short as that mode is narrow: where a chain is, is where it started. While the tilt is
weak, steps are long and modes are connected.

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

from gebm_kit.core.interfaces import Info, Potential, Sampler, ValueAndGrad
from gebm_kit.core.tilt import tilt, tilt_and_grad

if TYPE_CHECKING:
    from gebm_kit.engine.sampling.warmup import Reduce


TEMPERED_SHARE = 0.3
"""Of the steps of warm-up, for callers: what remains must do for tuning."""


LEVELS = 5
"""Strengths of the tilt below 1. Each costs an evaluation and makes kernels forget their momentum, so few."""


ARRIVAL_SHARE = 1 / 3
"""Share of the steps at full strength, with a step size that suits the chains in the steepest places as well."""


STUCK = 0.01
"""Least acceptance of a chain in the harmonic mean by which the step size is tuned at full strength."""


GAIN = 2.0
"""Change of the step size's logarithm, in a step, for a mean acceptance that is wrong by one."""


class TemperedPotential:
    """``|z|²/2 + strength * tilt(z)``: the prior at strength 0, the potential at 1."""

    def __init__(self, potential: Potential, strength: float) -> None:
        self.potential, self.strength = potential, strength

    def tilt(self, z: Tensor) -> Tensor:
        """(C, Z) -> (C,)."""
        return self.strength * tilt(self.potential, z)

    def tilt_and_grad(self, z: Tensor) -> ValueAndGrad:
        """(C, Z) -> (C,), (C, Z)."""
        value, grad = tilt_and_grad(self.potential, z)
        return ValueAndGrad(self.strength * value, self.strength * grad)

    def value(self, z: Tensor) -> Tensor:
        """(C, Z) -> (C,)."""
        return self.tilt(z) + 0.5 * z.square().sum(1)

    def value_and_grad(self, z: Tensor) -> ValueAndGrad:
        """(C, Z) -> (C,), (C, Z)."""
        value, grad = self.tilt_and_grad(z)
        return ValueAndGrad(value + 0.5 * z.square().sum(1), grad + z)


@dataclass(frozen=True, slots=True)
class TemperedStart:
    """Result of `tempered_start`.

    Attributes:
        sampler: with a step size to begin tuning from.
        states: of the blocks, on the full potential.
        steps: that were made; 0 where there was nothing to gain.
        divergences: steps at full strength that diverged, over all blocks.
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
    """Run ``steps`` steps of every chain with the sampler itself while ``strength * tilt`` grows to the full tilt.

    1. Strengths ``spread^(j/5 - 1)``, j = 0, ..., 4, where spread is the tilt's standard deviation over the chains: at first
       the chains, draws of the prior, differ by about 1 in their potential. A spread below 1 needs none of this.
    2. Full strength, for a third of the steps, or for all of them.

    The step size h follows the mean acceptance a over chains, ``log h += 2 (a - target)``. At full strength the mean is
    harmonic: one set by the average chain would leave those in steep places where they are, refused in every step.

    Samplers that have no step size to tune, or a ladder of their own, are left alone.

    Chains so forget where they were drawn, whether or not they mix afterwards: nested R-hat must be asked from where this
    leaves them.

    Args:
        states: of the blocks, from ``sampler.init``.
        generators: one for each block.
        reduce: sums over all blocks, as in warm-up.
        on_step: called after every step with their number so far and the sampler for the next.
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
    """The moving parts of one tempered start."""

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
        """Standard deviation of the tilt over all chains."""
        values = [tilt(self._potential, state.position).double() for state in self.states]
        sums = [torch.stack([torch.ones_like(v).sum(), v.sum(), v.square().sum()]) for v in values]
        num, total, squares = self._reduce(sums).tolist()
        return math.sqrt(max(squares / num - (total / num) ** 2, 0.0))

    def level(self, potential: Potential, steps: int, *, harmonic: bool) -> None:
        """``steps`` steps on one potential, for which everything that states hold is computed afresh."""
        pairs = list(zip(self.states, self._generators, strict=True))
        self.states = [self.sampler.init(state.position, potential, generator) for state, generator in pairs]
        for _ in range(steps):
            rows = []
            for index, generator in enumerate(self._generators):
                self.states[index], info = self.sampler.step(self.states[index], potential, generator)
                self.diverged[index] += info.diverged.sum()
                rows.append(_acceptance_sums(info, harmonic))
            total, num = self._reduce(rows).tolist()
            self._tune(num / total if harmonic else total / num)
            self._done += 1
            self._on_step(self._done, self.sampler)

    def _tune(self, acceptance: float) -> None:
        tunable = self.sampler.tunable
        assert tunable is not None
        value = getattr(self.sampler, tunable.name) * math.exp(GAIN * (acceptance - tunable.target))
        self.sampler = self.sampler.tuned(**{tunable.name: min(max(value, tunable.low), tunable.high)})


def _acceptance_sums(info: Info, harmonic: bool) -> Tensor:
    """Sum over a block's chains of the acceptance, or of its inverse, and their number; (2,)."""
    values = (info.acceptance if info.tuning is None else info.tuning).double()
    if harmonic:
        values = values.clamp(min=STUCK).reciprocal()
    return torch.stack([values.sum(), torch.ones_like(values).sum()])
