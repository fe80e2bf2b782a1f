"""Discriminator rejection sampling: base draws are accepted in proportion to their weight, exactly if the bound holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.interfaces import Info, Potential, Sampler
from gebm_kit.core.tilt import prior_pool, tilt


class DrsState(NamedTuple):
    """The draws so far at ``position`` (C, Z), with their tilt ``value`` (C,).

    Attributes:
        accepted: whether a chain has accepted a draw, (C,) bool; its draw no longer changes then.
        log_total: logarithm of the total weight of each chain's proposals so far, (C,).
        bound: m, ().
        proposals: number of proposals of each chain, () int64.
        violations: number of proposals below the bound, over all chains that were still waiting, () int64.
    """

    position: Tensor
    value: Tensor
    accepted: Tensor
    log_total: Tensor
    bound: Tensor
    proposals: Tensor
    violations: Tensor


class Drs(Sampler):
    """Discriminator rejection sampling: each chain draws from the prior, once a step, until it accepts a draw.

    A draw is accepted with probability

        min(1, exp(m - tilt(z))),   m a lower bound of the tilt.

    Accepted draws are independent. They are **exact if the tilt is nowhere below m**. m is ``bound`` if given, else the
    smallest tilt of ``pool_size`` prior draws minus ``margin``. An estimated bound may not hold. A waiting chain
    accepts every proposal whose tilt is below m, and such proposals are counted as ``violations``. Places with a tilt
    below m are drawn too rarely, by the factor exp(tilt - m).

    The acceptance is exp(A + m) with A = log E[exp(-tilt)]; it falls exponentially with beta. A chain that has accepted
    none of its ``max_proposals`` keeps one of them, chosen by weight as they come (importance resampling). Such draws
    are biased toward the base and are counted as ``exhausted``.

    Args:
        max_proposals: largest number of evaluations of the model for each draw.
        pool_size: prior draws from which the bound is estimated.
        margin: nats by which the bound lies below the smallest tilt of the pool. Each nat divides the acceptance by e.
        bound: a known lower bound of beta E(G(z)), in nats; nothing is estimated then.

    Raises:
        UsageError: an argument is outside its range.

    References:
        Discriminator rejection sampling. S. Azadi, C. Olsson, T. Darrell, I. Goodfellow, A. Odena, ICLR 2019.
        https://arxiv.org/abs/1810.06758
    """

    family: ClassVar[Literal["kernel", "population", "refiner"]] = "refiner"
    exact: ClassVar[bool] = False
    caches_tilt: ClassVar[bool] = True

    def __init__(
        self,
        max_proposals: Annotated[int, Range(1, None)] = 1000,
        pool_size: Annotated[int, Range(1, None)] = 10_000,
        margin: Annotated[float, Range(0, None)] = 0.0,
        bound: Annotated[float | None, Range(None, None)] = None,
    ) -> None:
        check_arguments(self, max_proposals=max_proposals, pool_size=pool_size, margin=margin)
        if bound is not None:
            check_arguments(self, bound=bound)
        self.max_proposals = max_proposals
        self.pool_size = pool_size
        self.margin = margin
        self.bound = bound

    def init(self, z: Tensor, potential: Potential, generator: torch.Generator) -> DrsState:
        """Start chains with the prior draws ``z``, (C, Z), as first proposals; m is estimated from other draws."""
        value = tilt(potential, z)
        if self.bound is None:
            _, pool = prior_pool(potential, z, self.pool_size, generator)
            bound = torch.where(torch.isfinite(pool), pool, math.inf).min() - self.margin
        else:
            bound = torch.full_like(value[0], self.bound)
        uniform = torch.rand(value.shape, generator=generator, dtype=z.dtype, device=z.device)
        finite = torch.isfinite(value)
        return DrsState(
            z,
            value,
            accepted=uniform < self._acceptance(value, bound),
            log_total=torch.where(finite, -value, -math.inf),
            bound=bound,
            proposals=torch.ones((), dtype=torch.int64, device=z.device),
            violations=(finite & (value < bound)).sum(),
        )

    def step(self, state: DrsState, potential: Potential, generator: torch.Generator) -> tuple[DrsState, Info]:
        """Draw one proposal for every chain; chains that have accepted a draw ignore it."""
        z, value, done, log_total, bound, proposals, violations = state
        proposal = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
        new_value = tilt(potential, proposal)
        uniform = torch.rand(2, len(z), generator=generator, dtype=z.dtype, device=z.device)
        finite, waiting = torch.isfinite(new_value), ~done
        log_weight = torch.where(finite, -new_value, -math.inf)
        acceptance = self._acceptance(new_value, bound)
        passed = waiting & (uniform[0] < acceptance)
        total = torch.logaddexp(log_total, log_weight)
        preferred = waiting & (uniform[1] < (log_weight - total).exp())  # NaN (no weight so far) is not preferred
        takes = passed | preferred
        new_state = DrsState(
            torch.where(takes.unsqueeze(1), proposal, z),
            torch.where(takes, new_value, value),
            accepted=done | passed,
            log_total=torch.where(waiting, total, log_total),
            bound=bound,
            proposals=proposals + 1,
            violations=violations + (waiting & finite & (new_value < bound)).sum(),
        )
        return new_state, Info(acceptance, takes, ~finite, grad_evals=0, forward_evals=1)

    def finished(self, state: DrsState) -> Tensor:
        """Return True, (), once every chain has accepted a draw or made ``max_proposals`` proposals."""
        return state.accepted.all() | (state.proposals >= self.max_proposals)

    def summary(self, state: DrsState) -> Mapping[str, Tensor]:
        """Return ``exhausted`` chains, ``violations`` of the ``bound``, ``proposals`` a chain and accepted draws.

        The number of accepted draws is called ``effective_size``.
        """
        return {
            "effective_size": state.accepted.sum().double(),
            "exhausted": (~state.accepted).sum(),
            "violations": state.violations,
            "bound": state.bound,
            "proposals": state.proposals.double(),
        }

    @staticmethod
    def _acceptance(value: Tensor, bound: Tensor) -> Tensor:
        """Return ``min(1, exp(m - tilt))``, or 0 where the tilt is not finite; (C,)."""
        return torch.where(torch.isfinite(value), (bound - value).exp().clamp(max=1), 0.0)
