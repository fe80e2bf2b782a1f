"""Sequential Monte Carlo: a population led from the prior to the posterior, with the log-partition on the way."""

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
"""Share of what is left of the ladder below which no rung is made."""

FIRST_LEVEL = 1e-3
"""Where a geometric ladder begins."""

TARGET_ACCEPTANCE = 0.7
"""Of the moves, as for `hmc`."""

ADAPTATION_RATE = 1.0
"""Change of log h for a unit of acceptance too much or too little, after each move."""

STEP_SPREAD = 100.0
"""Ratio of the largest to the smallest step on a fixed ladder."""

JITTER = 0.4
"""Share of the step that is random on an adaptive ladder, as for `hmc`."""

SHRINKAGE_ROWS = 10.0
"""Weight, in particles, of the prior's variance 1 in the population's."""


class SmcState(NamedTuple):
    """A population at ``position`` (C, Z) with the cached tilt ``value`` (C,) and its gradient ``grad`` (C, Z).

    ``level`` () is l, ``rungs`` () int64 how often it was raised and ``rounds`` () int64 the rounds of moves since it is 1;
    ``log_mass`` (G,) the estimates of ``log E_eta[exp(-l tilt)]``, one of each of G populations (one unless `Smc.frozen`);
    ``step_size`` () the h of the moves; ``ess`` () the share of a population effective at the last rung; ``ancestor`` (C,)
    int64 which start each particle descends from.
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
    """After a round of moves: positions with tilt and gradient, the step size, mean acceptance, who moved, who diverged."""

    position: Tensor
    value: Tensor
    grad: Tensor
    step_size: Tensor
    acceptance: Tensor
    moved: Tensor
    diverged: Tensor


class Smc(AnnealedSampler):
    """Sequential Monte Carlo along ``pi_l(z) ∝ N(z; 0, I) exp(-l tilt(z))``, the level l raised from 0, the prior, to 1.

    At every rung, from l to l', with N particles:

        w_i = exp(-(l' - l) tilt(z_i)),   log Z += log mean_i w_i,   resample by w (systematic),   ``num_moves`` moves.

    Each move is a trajectory of kick-rotate HMC on |z|²/2 + l' tilt(z), accepted or rejected, so that pi_l' is invariant.
    Once l is 1, ``final_rounds`` rounds of moves draw copies of one particle apart. A step is a rung, or a final round.

    On the *adaptive* ladder l' is where the effective sample size (sum w)² / sum w² falls to ``ess_target`` N, found by
    bisection, and the moves learn from the population: h from its acceptance, after each move, and a diagonal
    preconditioner s² from its variance at the rung, at most 1. All estimates are consistent as N grows, with a bias of
    O(1/N); Z is not unbiased.

    On a fixed ladder of K = ``num_rungs`` levels, *equal* (l_k = k / K) or *geometric* (l_k = 10^{-3 (K - k) / (K - 1)}),
    nothing is learnt from the particles: each trajectory draws its own h, log-uniform over two decades up to the largest.
    Then **Z is unbiased**, E[exp(log_partition)] = E_eta[exp(-tilt)], for every N and however badly the moves mix. So it is
    with the ladder and the moves of an earlier, adaptive population (`frozen`).

    Particles start as prior draws; one without a finite tilt has weight zero. A proposal without a finite energy, or an
    energy error above 1000, is a divergence, rejected and counted.

    Args:
        ess_target: share of the population that remains effective at each rung of the adaptive ladder.
        num_moves: trajectories at each rung.
        num_leapfrog: gradients in a trajectory.
        final_rounds: rounds of ``num_moves`` after the ladder.
        ladder: how levels are chosen.
        num_rungs: K, levels of a fixed ladder.

    Raises:
        UsageError: an argument outside its range.

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

    def init(self, z: Tensor, potential: Potential, generator: torch.Generator) -> SmcState:
        """The population at level 0, at ``z``: (C, Z), prior draws."""
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
        """A rung: raise the level, resample, move. Once the level is 1: move."""
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
        """Once the level is 1 and the final rounds are done."""
        return (state.level >= 1) & (state.rounds >= self.final_rounds)

    def log_partition(self, state: SmcState) -> Tensor:
        """Sum over the rungs of ``log mean w``, (); over several populations the logarithm of their mean Z."""
        return log_mean_exp(state.log_mass)

    def log_partitions(self, state: SmcState) -> Tensor:
        """The same of each population, (G,)."""
        return state.log_mass

    def learnt(self, state: SmcState) -> Tensor:
        """What an adaptive population used at its last rung: level, step, preconditioner; (2 + Z,) float64."""
        return torch.cat([torch.stack([state.level, state.step_size.double()]), self._scale(state.position).double()])

    def frozen(self, plan: Tensor, groups: int = 1) -> Smc:
        """A copy that learns nothing: rung k has level, step and preconditioner of row k of ``plan``, (K, 2 + Z), what
        another population has `learnt`; the last level must be 1. Its particles are ``groups`` equal blocks, which are
        populations of their own with a Z each; those are independent, and unbiased.
        """
        twin = self.tuned(plan=plan, groups=groups)
        assert isinstance(twin, Smc)
        return twin

    def summary(self, state: SmcState) -> Mapping[str, Tensor]:
        """``rungs`` of the ladder; ``last_ess``, effective share at the last of them; ``ancestors`` that the population has
        at the start; ``effective_size`` N² / sum_k n_k², n_k the particles that descend from start k, which counts those
        with a common ancestor as copies; ``move_size``, the h of the last moves.
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
        """The level of the next rung, (), exactly 1 at the last."""
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
        """The row of the rung to come, the last one once there is none; (2 + Z,)."""
        return plan.index_select(0, state.rungs.clamp(max=len(plan) - 1).reshape(1)).squeeze(0)

    def _moves(
        self, state: SmcState, picks: Tensor, level: Tensor, potential: Potential, generator: torch.Generator
    ) -> _Moved:
        """``num_moves`` trajectories of the particles ``picks`` (C,) at ``level``."""
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
        """Kick-rotate from ``z`` (C, Z): end, its tilt and gradient, change of ``|z|² + |velocity|²`` (C,)."""
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
        """Step of each trajectory, (C,), from one uniform each."""
        if self.ladder == "adaptive":
            return h.to(uniform.dtype) * (1 - JITTER * uniform)
        return self._longest_step * torch.exp(-math.log(STEP_SPREAD) * uniform)

    def _scale(self, z: Tensor) -> Tensor:
        """s, (Z,): the population's standard deviation, shrunk toward 1 on a logarithmic scale, at most 1."""
        if self.ladder != "adaptive" or self.plan is not None:
            return torch.ones_like(z[0])
        variance = z.double().var(0).clamp(1e-12, 1)
        return variance.pow(0.5 * len(z) / (len(z) + SHRINKAGE_ROWS)).to(z.dtype)
