"""Warm-up of parallel tempering: the spacing of the ladder and the step sizes on its rungs.

References:
    Non-reversible parallel tempering: a scalable highly parallel MCMC scheme. S. Syed, A. Bouchard-Côté, G. Deligiannidis,
    A. Doucet, JRSS B 2022. https://arxiv.org/abs/1905.02939 (inverts the barrier, in rounds of doubling length)
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from gebm_kit.core.interfaces import Adaptation, Info, Sampler

TARGET_ACCEPTANCE = 0.7
"""Target acceptance of the local moves, as for `hmc`."""

LADDER_UPDATES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Shares of warm-up after which the ladder is spaced again, from the swaps since the last spacing. The rounds double in
length, as published. The second half of warm-up keeps the ladder and tunes only the step sizes."""

GAIN_DECAY = 0.6
"""Power of 1 / t in the gain of the step-size tuning. Stochastic approximation converges for powers in (½, 1]. A small power
forgets the start sooner but is noisier, which the average over the later half makes up for."""


class OnLadder(Protocol):
    """The part of parallel tempering that `PtAdaptation` reads.

    Attributes:
        ladder: levels of the K rungs, from 0 to 1.
        adapting: whether steps report what the adaptation needs.
        inverse_mass: the preconditioner s², (Z,), or None.
    """

    ladder: tuple[float, ...]
    adapting: bool
    inverse_mass: Tensor | None

    @property
    def longest_step(self) -> float:
        """Upper bound of every step size."""
        ...


class PtAdaptation(Adaptation):
    """The tuning of the ladder and of all step sizes except the last rung's, which is the `Tunable`.

    A step's sums are the acceptances of the moves on the rungs 1 to K - 2, (K - 2,), and those of the swaps, (K - 1,).
    """

    def __init__(self, ladder: Sequence[float], step_sizes: Sequence[float]) -> None:
        self._num = len(ladder) - 1
        self._log_steps = _logs(step_sizes)
        self._mean_log_steps = list(self._log_steps)
        self._since_change = 0
        self._rates, self._rows = torch.zeros(self._num, dtype=torch.float64), 0
        self._updates = list(LADDER_UPDATES)
        self._inverse_mass: Tensor | None = None

    def statistics(self, sampler: Sampler, before: Any, after: Any, info: Info) -> Tensor:
        if info.statistics is None:  # the step before the first update
            return torch.zeros(2 * self._num - 1, dtype=torch.float64, device=after.value.device)
        return info.statistics.double().sum(0)

    def update(self, sampler: Sampler, sums: Tensor, num_chains: int, progress: float) -> Sampler:
        pt = cast("OnLadder", sampler)
        if not pt.adapting:
            return sampler.tuned(adapting=True)
        if pt.inverse_mass is not self._inverse_mass:
            self._inverse_mass, self._since_change = pt.inverse_mass, 0
        moves, swaps = sums[: self._num - 1], sums[self._num - 1 :]
        self._tune_steps((moves / num_chains).tolist(), math.log(pt.longest_step))
        self._rates, self._rows, ladder = self._rates + swaps, self._rows + num_chains, pt.ladder
        if self._updates and progress >= self._updates[0]:
            ladder = self._space(ladder)
            self._updates = [update for update in self._updates if update > progress]
        return sampler.tuned(ladder=ladder, step_sizes=tuple(math.exp(h) for h in self._log_steps))

    def freeze(self, sampler: Sampler) -> Sampler:
        return sampler.tuned(step_sizes=tuple(math.exp(h) for h in self._mean_log_steps), adapting=False)

    def _tune_steps(self, acceptance: Sequence[float], longest: float) -> None:
        """Set ``log h_i += 2 t^-0.6 (a_i - 0.7)`` at the t-th step since something changed, and average the later half."""
        self._since_change += 1
        gain, forget = 2 * self._since_change**-GAIN_DECAY, min(2 / self._since_change, 1)
        for i, a in enumerate(acceptance):
            self._log_steps[i] = min(self._log_steps[i] + gain * (a - TARGET_ACCEPTANCE), longest)
            self._mean_log_steps[i] += forget * (self._log_steps[i] - self._mean_log_steps[i])

    def _space(self, ladder: tuple[float, ...]) -> tuple[float, ...]:
        """Return a new ladder from the swaps since the last one; step sizes are interpolated from the old rungs."""
        new = equalised(ladder, (1 - self._rates / self._rows).tolist())
        if len(self._log_steps) > 1:
            self._log_steps = _interpolated(_logs(new[1:-1]), _logs(ladder[1:-1]), self._log_steps)
        self._mean_log_steps, self._since_change = list(self._log_steps), 0
        self._rates, self._rows = torch.zeros_like(self._rates), 0
        return new


def equalised(ladder: Sequence[float], rejection: Sequence[float]) -> tuple[float, ...]:
    """Return the ladder on which every pair of neighbours would be rejected equally often.

    ``Lambda(lambda_i) = sum_{j < i} rejection_j`` is interpolated linearly and inverted at K equally spaced values from 0
    to Lambda(1).
    """
    # a thousandth of the mean rate for pairs that were never rejected: Lambda must increase strictly to have an inverse
    floor = 1e-3 * max(sum(rejection) / len(rejection), 1e-3)
    barrier = [0.0, *itertools.accumulate(max(r, floor) for r in rejection)]
    levels = [barrier[-1] * i / len(rejection) for i in range(1, len(rejection))]
    return (0.0, *_interpolated(levels, barrier, ladder), 1.0)


def _interpolated(at: Sequence[float], x: Sequence[float], y: Sequence[float]) -> list[float]:
    """Interpolate linearly at ``at`` through the points (x, y), x increasing; constant beyond the ends."""
    values = []
    for point in at:
        right = min(bisect_right(x, point), len(x) - 1)
        left = max(right - 1, 0)
        share = min(max((point - x[left]) / (x[right] - x[left]), 0.0), 1.0) if right > left else 0.0
        values.append(y[left] + share * (y[right] - y[left]))
    return values


def _logs(values: Sequence[float]) -> list[float]:
    return [math.log(value) for value in values]
