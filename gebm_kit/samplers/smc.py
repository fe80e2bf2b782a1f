"""Sequential Monte Carlo: a population moves from the prior to the posterior, and gives the log-partition on the way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.estimators import effective_sample_size, largest, log_mean_exp
from gebm_kit.core.interfaces import DIVERGENCE_THRESHOLD, AnnealedSampler, Info, Potential, ValueAndGrad
from gebm_kit.core.resampling import systematic
from gebm_kit.core.tilt import tilt_and_grad

SMALLEST_RUNG = 1e-12
"""Lower end of the search for the next level, as a share of what is left to 1. The search is logarithmic, so the end
can't be 0; it lies far below the rungs that occur."""

FIRST_LEVEL = 1e-3
"""First level of a geometric ladder. It should be small enough for the first weights to be even; a smaller one spends
more of the K rungs near the prior."""

TARGET_ACCEPTANCE = 0.7
"""Target acceptance of the moves, as for `hmc`."""

ADAPTATION_RATE = 1.0
"""Change of log h after each move, for each unit by which the mean acceptance is off its target. A rung has only a few
moves, so a lower rate would let h lag behind the ladder; a higher one would pass on the noise of one move's
acceptance."""

STEP_SPREAD = 100.0
"""Ratio of the largest to the smallest step on a fixed ladder, whose moves may not learn h from the particles. A larger
ratio covers stiffer targets and makes fewer of the steps fit."""

STEP_JITTER = 0.4
"""Share of the step that is random on an adaptive ladder, as for `hmc`."""

SHRINKAGE_ROWS = 10.0
"""Weight of the prior's variance 1 in the population's variance, counted in particles, as in the preconditioner of
kernels. It matters only for small populations."""


class SmcState(NamedTuple):
    """A population at ``position`` (C, Z) with the cached tilt ``value`` (C,) and its gradient ``grad`` (C, Z).

    Attributes:
        level: l, ().
        rungs: number of times that the level was raised, () int64.
        rounds: number of rounds of moves since the level reached 1, () int64.
        log_mass: estimates of ``log E_eta[exp(-l tilt)]``, one for each of G populations, (G,); G = 1 unless `Smc.frozen`.
        step_size: h of the moves, ().
        ess: effective share of a population at the last rung, ().
        ancestor: index of the start from which each particle descends, (C,) int64.
    """

    position: Tensor
    value: Tensor
    grad: Tensor
    level: Tensor
    rungs: Tensor
    rounds: Tensor
    log_mass: Tensor
    step_size: Tensor
    ess: Tensor
    ancestor: Tensor


class _Moved(NamedTuple):
    """Result of a round of moves.

    Attributes:
        position, value, grad: particles with their tilt and its gradient, (C, Z), (C,) and (C, Z).
        step_size: h after the round, ().
        acceptance: mean acceptance probability of each particle, (C,).
        moved: whether a particle accepted a move, (C,) bool.
        diverged: whether a move of a particle diverged, (C,) bool.
    """

    position: Tensor
    value: Tensor
    grad: Tensor
    step_size: Tensor
    acceptance: Tensor
    moved: Tensor
    diverged: Tensor


class Smc(AnnealedSampler):
    """Sequential Monte Carlo along ``pi_l(z) ∝ N(z; 0, I) exp(-l tilt(z))``, with the level l rising from 0 (prior) to 1.

    A rung goes from l to l' with N particles:

        w_i = exp(-(l' - l) tilt(z_i)),   log Z += log mean_i w_i,   resample by w (systematic),   ``num_moves`` moves.

    Each move is a trajectory of kick-rotate HMC on |z|²/2 + l' tilt(z) with an acceptance test, so pi_l' is invariant.
    Once l is 1, ``final_rounds`` rounds of moves separate copies of the same particle. A step is a rung or a final round.

    On the *adaptive* ladder l' is the level at which the effective sample size (sum w)² / sum w² falls to ``ess_target``
    times N, found by bisection. The moves learn from the population: h from its acceptance after each move, and a
    diagonal preconditioner s² from its variance at the rung, at most 1. All estimates are consistent as N grows, with a
    bias of O(1/N). Z is not unbiased.

    A fixed ladder has K = ``num_rungs`` levels: *equal* (l_k = k / K) or *geometric* (l_k = 10^{-3 (K - k) / (K - 1)}).
    Nothing is learnt from the particles then. Each trajectory draws its own h, log-uniform over two decades up to the
    largest h. Hence **Z is unbiased**, E[exp(log_partition)] = E_eta[exp(-tilt)], for every N and however badly the moves
    mix. The same holds for a population that follows the ladder and moves of an earlier, adaptive one (`frozen`).

    Particles start as prior draws. A particle without a finite tilt has weight zero. A proposal without a finite energy,
    or with an energy error above 1000, is a divergence: it is rejected and counted.

    Args:
        ess_target: share of the population that stays effective at each rung of the adaptive ladder.
        num_moves: number of trajectories at each rung.
        num_leapfrog: number of gradients in a trajectory.
        final_rounds: number of rounds of ``num_moves`` trajectories after the ladder.
        ladder: how the levels are chosen.
        num_rungs: K, the number of levels of a fixed ladder.

    Raises:
        UsageError: an argument is outside its range.

    References:
        Sequential Monte Carlo samplers. P. Del Moral, A. Doucet, A. Jasra, JRSS B 2006. https://arxiv.org/abs/cond-mat/0212648
        An invitation to sequential Monte Carlo samplers. C. Dai, J. Heng, P. E. Jacob, N. Whiteley, JASA 2022.
        https://arxiv.org/abs/2007.11936 (adaptive ladders; why a frozen one is needed for an unbiased Z)
        Adaptive tuning of Hamiltonian Monte Carlo within sequential Monte Carlo. A. Buchholz, N. Chopin, P. E. Jacob,
        Bayesian Analysis 2021. https://arxiv.org/abs/1808.07730
    """

    family: ClassVar[Literal["kernel", "population", "refiner"]] = "population"
    exact: ClassVar[bool] = False
    coupled: ClassVar[bool] = True
    min_chains: ClassVar[int] = 16
    caches_tilt: ClassVar[bool] = True

    def __init__(
        self,
        ess_target: Annotated[float, Range(0.5, 0.9, low_open=True)] = 0.7,
        num_moves: Annotated[int, Range(1, None)] = 3,
        num_leapfrog: Annotated[int, Range(1, None)] = 8,
        final_rounds: Annotated[int, Range(0, None)] = 2,
        ladder: Literal["adaptive", "equal", "geometric"] = "adaptive",
        num_rungs: Annotated[int, Range(2, None)] = 50,
    ) -> None:
        check_arguments(
            self,
            ess_target=ess_target,
            num_moves=num_moves,
            num_leapfrog=num_leapfrog,
            final_rounds=final_rounds,
            ladder=ladder,
            num_rungs=num_rungs,
        )
        self.ess_target = ess_target
        self.num_moves = num_moves
        self.num_leapfrog = num_leapfrog
        self.final_rounds = final_rounds
        self.ladder = ladder
        self.num_rungs = num_rungs
        self.plan: Tensor | None = None
        self.groups = 1

    @property
    def _longest_step(self) -> float:
        return math.pi / 2 / self.num_leapfrog

    def longer(self, factor: int) -> Smc:
        """Return a copy that makes ``factor`` times as many moves at every rung and in every final round."""
        twin = self.tuned(num_moves=factor * self.num_moves)
        assert isinstance(twin, Smc)
        return twin

    def init(self, z: Tensor, potential: Potential, generator: torch.Generator) -> SmcState:
        """Start the population at level 0 with the prior draws ``z``, (C, Z)."""
        zero = torch.zeros((), dtype=torch.float64, device=z.device)
        none = torch.zeros((), dtype=torch.int64, device=z.device)
        return SmcState(
            z,
            *tilt_and_grad(potential, z),
            level=zero,
            rungs=none,
            rounds=none,
            log_mass=zero.repeat(self.groups),
            step_size=zero + self._longest_step,
            ess=zero + 1,
            ancestor=torch.arange(len(z), device=z.device),
        )

    def step(self, state: SmcState, potential: Potential, generator: torch.Generator) -> tuple[SmcState, Info]:
        """Raise the level, resample and move; once the level is 1, only move."""
        usable = torch.isfinite(state.value) & torch.isfinite(state.grad).all(1)
        arrived = state.level >= 1
        level = self._next_level(state, usable)
        rise = torch.where(arrived, 0.0, level - state.level)
        log_weights = torch.where(usable, -rise * state.value.double(), -math.inf)
        order = torch.arange(len(usable), device=usable.device)
        picks = torch.where(arrived, order, systematic(log_weights, generator, self.groups))
        moved = self._moves(state, picks, level, potential, generator)
        columns = log_weights.unflatten(0, (self.groups, -1)).T
        ess = effective_sample_size(columns).mean() / len(columns)
        new_state = SmcState(
            moved.position,
            moved.value,
            moved.grad,
            level=level,
            rungs=state.rungs + (~arrived).long(),
            rounds=state.rounds + arrived.long(),
            log_mass=state.log_mass + torch.where(arrived, 0.0, log_mean_exp(columns)),
            step_size=moved.step_size,
            ess=torch.where(arrived, state.ess, ess),
            ancestor=state.ancestor.index_select(0, picks),
        )
        diverged = moved.diverged | ~usable
        spent = self.num_moves * self.num_leapfrog
        return new_state, Info(moved.acceptance, moved.moved & ~diverged, diverged, grad_evals=spent)

    def finished(self, state: SmcState) -> Tensor:
        """Return True, (), once the level is 1 and the final rounds are done."""
        return (state.level >= 1) & (state.rounds >= self.final_rounds)

    def log_partition(self, state: SmcState) -> Tensor:
        """Return the sum over the rungs of ``log mean w``, (); for several populations the logarithm of their mean Z."""
        return log_mean_exp(state.log_mass)

    def log_partitions(self, state: SmcState) -> Tensor:
        """Return the sum over the rungs of ``log mean w`` for each population, (G,)."""
        return state.log_mass

    def learnt(self, state: SmcState) -> Tensor:
        """Return what an adaptive population used at its last rung: level, step, preconditioner s; (2 + Z,) float64."""
        return torch.cat([torch.stack([state.level, state.step_size.double()]), self._scale(state.position).double()])

    def frozen(self, plan: Tensor, groups: int = 1) -> Smc:
        """Return a copy that learns nothing from its particles.

        Its particles form ``groups`` equal blocks. Each block is a population with its own Z; these are independent and
        unbiased.

        Args:
            plan: level, step and preconditioner of every rung, (K, 2 + Z): the rows that another population has `learnt`.
                The last level must be 1.
            groups: number of populations.
        """
        twin = self.tuned(plan=plan, groups=groups)
        assert isinstance(twin, Smc)
        return twin

    def summary(self, state: SmcState) -> Mapping[str, Tensor]:
        """Return what the ladder and the moves did, as scalars.

        - ``rungs``: number of rungs of the ladder;
        - ``last_ess``: effective share of the population at the last rung;
        - ``ancestors``: number of starts from which some particle descends;
        - ``effective_size``: N² / sum_k n_k², with n_k particles that descend from start k. Particles with the same
          ancestor thus count as copies;
        - ``move_size``: h of the last moves.
        """
        ones = torch.ones_like(state.value, dtype=torch.float64)
        offspring = torch.zeros_like(ones).scatter_add(0, state.ancestor, ones)
        return {
            "effective_size": len(ones) ** 2 / offspring.square().sum(),
            "rungs": state.rungs.double(),
            "last_ess": state.ess,
            "ancestors": (offspring > 0).sum(),
            "move_size": state.step_size,
        }

    def _next_level(self, state: SmcState, usable: Tensor) -> Tensor:
        """Return the level of the next rung, (); exactly 1 for the last."""
        rung = state.rungs + 1
        if self.plan is not None:
            return self._planned(self.plan, state)[0]
        if self.ladder == "equal":
            return torch.where(rung >= self.num_rungs, 1.0, rung.double() / self.num_rungs)
        if self.ladder == "geometric":
            power = (self.num_rungs - rung).double() / (self.num_rungs - 1)
            return torch.where(rung >= self.num_rungs, 1.0, FIRST_LEVEL**power)
        values = state.value.double()
        wanted = self.ess_target * usable.sum()

        def enough(rise: Tensor) -> Tensor:
            return effective_sample_size(torch.where(usable, -rise * values, -math.inf)) >= wanted

        left = 1 - state.level
        return torch.where(enough(left), 1.0, state.level + largest(enough, left, SMALLEST_RUNG))

    def _planned(self, plan: Tensor, state: SmcState) -> Tensor:
        """Return the plan's row for the next rung, (2 + Z,); after the last rung, the last row."""
        return plan.index_select(0, state.rungs.clamp(max=len(plan) - 1).reshape(1)).squeeze(0)

    def _moves(
        self, state: SmcState, picks: Tensor, level: Tensor, potential: Potential, generator: torch.Generator
    ) -> _Moved:
        """Make ``num_moves`` trajectories of the particles ``picks``, (C,), at ``level``."""
        z, value, grad = (t.index_select(0, picks) for t in (state.position, state.value, state.grad))
        force, h, scale = level.to(z.dtype), state.step_size, self._scale(z)
        if self.plan is not None:
            planned = self._planned(self.plan, state)
            h, scale = planned[1], planned[2:].to(z.dtype)
        mean, moved = torch.zeros_like(value), torch.zeros_like(value, dtype=torch.bool)
        diverged = torch.zeros_like(moved)
        for _ in range(self.num_moves):
            velocity = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
            uniform = torch.rand(2, len(z), generator=generator, dtype=z.dtype, device=z.device)
            tau = self._steps(uniform[0], h).unsqueeze(1) * scale
            end, new_value, new_grad, squares = self._trajectory(z, velocity, grad, tau, force, potential)
            error = 0.5 * squares + force * (new_value - value)
            error = error.nan_to_num(nan=math.inf, posinf=math.inf, neginf=math.inf)
            diverged |= error > DIVERGENCE_THRESHOLD
            acceptance = error.neg().exp().clamp(max=1)
            accepted = uniform[1] < acceptance
            moves = accepted.unsqueeze(1)
            z, grad = torch.where(moves, end, z), torch.where(moves, new_grad, grad)
            value = torch.where(accepted, new_value, value)
            moved |= accepted
            mean = mean + acceptance / self.num_moves
            if self.ladder == "adaptive" and self.plan is None:
                change = ADAPTATION_RATE * (acceptance.double().mean() - TARGET_ACCEPTANCE)
                h = (h * change.exp()).clamp(max=self._longest_step)
        return _Moved(z, value, grad, h, mean.clamp(max=1), moved, diverged)

    def _trajectory(
        self, z: Tensor, velocity: Tensor, grad: Tensor, tau: Tensor, force: Tensor, potential: Potential
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Run kick-rotate from ``z`` (C, Z).

        Returns:
            The end, its tilt and gradient, and the change of ``|z|² + |velocity|²``, (C,).
        """
        cos, sin, kick = tau.cos(), tau.sin(), force * tau
        speed = velocity - 0.5 * kick * grad
        end, value, end_grad = z, grad, grad  # value is replaced below: L >= 1
        for step in range(self.num_leapfrog):
            end, speed = end * cos + speed * sin, speed * cos - end * sin
            value, end_grad = ValueAndGrad(*tilt_and_grad(potential, end))
            speed = speed - (0.5 if step == self.num_leapfrog - 1 else 1.0) * kick * end_grad
        squares = (speed.square() - velocity.square() + end.square() - z.square()).sum(1)
        return end, value, end_grad, squares

    def _steps(self, uniform: Tensor, h: Tensor) -> Tensor:
        """Return the step of each trajectory, (C,), from one uniform number each."""
        if self.ladder == "adaptive":
            return h.to(uniform.dtype) * (1 - STEP_JITTER * uniform)
        return self._longest_step * torch.exp(-math.log(STEP_SPREAD) * uniform)

    def _scale(self, z: Tensor) -> Tensor:
        """Return s, (Z,): the population's standard deviation, shrunk toward 1 on a logarithmic scale, at most 1."""
        if self.ladder != "adaptive" or self.plan is not None:
            return torch.ones_like(z[0])
        variance = z.double().var(0).clamp(1e-12, 1)
        return variance.pow(0.5 * len(z) / (len(z) + SHRINKAGE_ROWS)).to(z.dtype)
