"""Parallel tempering: each chain carries replicas on a ladder from the prior to the target, and neighbours swap places."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, NamedTuple

import torch
from torch import Tensor

from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.interfaces import DIVERGENCE_THRESHOLD, Adaptation, Info, Potential, Sampler, Tunable
from gebm_kit.core.tilt import tilt_and_grad
from gebm_kit.samplers.pt_ladder import TARGET_ACCEPTANCE, PtAdaptation

FIRST_LADDER = 5.0
"""Power in the first ladder, ``(i / (K - 1))^5``, which is dense near the prior, where the distribution changes fastest.
Friel and Pettitt (2008) use powers of 3 to 5."""


class PtState(NamedTuple):
    """Chains at ``position`` (C, Z) with their tilt ``value`` (C,): the last of each chain's ``replicas``.

    Attributes:
        replicas: positions on the rungs 1 to K - 1, (C, K - 1, Z). Rung 0 is drawn afresh in every step.
        tilts, grads: the tilt and its gradient at the replicas, (C, K - 1) and (C, K - 1, Z).
        fresh: whether a replica has not been on the last rung since it was a prior draw, (C, K - 1), bool.
        restarts: number of fresh replicas that the last rung has received since warm-up, (C,).
        steps: number of steps since warm-up, (C,). ``restarts``, ``swaps`` and ``ratios`` cover them.
        swaps: sums of the swaps' acceptance probabilities, (C, K - 1).
        ratios: ``log sum exp(-(lambda_{i+1} - lambda_i) tilt_i)`` over the steps, (C, K - 1).
    """

    position: Tensor
    value: Tensor
    replicas: Tensor
    tilts: Tensor
    grads: Tensor
    fresh: Tensor
    restarts: Tensor
    steps: Tensor
    swaps: Tensor
    ratios: Tensor


class _Counts(NamedTuple):
    """The fields of `PtState` that accumulate over steps."""

    restarts: Tensor
    steps: Tensor
    swaps: Tensor
    ratios: Tensor


_LOG_ZERO = -1e300
"""A finite stand-in for the logarithm of zero, so that sums stay finite. Any value far below the real logarithms would
do."""


def _no_counts(like: Tensor) -> _Counts:
    """Return the counts before the first step; ``like`` is (C, K - 1)."""
    zeros = torch.zeros_like(like)
    ratios = torch.full_like(like, _LOG_ZERO, dtype=torch.float64)
    return _Counts(zeros[:, 0].clone(), zeros[:, 0].clone(), zeros, ratios)


class _Rungs(NamedTuple):
    """The numbers that differ between rungs, on the chains' device.

    Attributes:
        rung: lambda_i of the rungs 1 to K - 1, (K - 1,).
        step_size: h_i of the rungs 1 to K - 1, (K - 1,).
        gap: ``lambda_{i+1} - lambda_i`` of the rungs 0 to K - 2, (K - 1,).
    """

    rung: Tensor
    step_size: Tensor
    gap: Tensor


@functools.lru_cache(maxsize=16)
def _rungs(
    ladder: tuple[float, ...], step_sizes: tuple[float, ...], longest: float, dtype: torch.dtype, device: torch.device
) -> _Rungs:
    """Copy the numbers to the device. The result is cached, because a copy in every step would wait for the device."""
    gaps = [b - a for a, b in itertools.pairwise(ladder)]
    columns = [ladder[1:], [min(h, longest) for h in step_sizes], gaps]
    return _Rungs(*torch.tensor(columns, dtype=torch.float64).to(device, dtype).unbind())


class Moved(NamedTuple):
    """All K replicas of each chain after their local moves; the first is the prior draw.

    Attributes:
        replicas: positions, (C, K, Z).
        tilts: tilts, (C, K); inf for a prior draw without a finite tilt or gradient.
        grads: gradients of the tilt, (C, K, Z).
        acceptance, accepted: acceptance probability and outcome of the K - 1 moves, (C, K - 1).
        diverged: whether the last rung's move diverged or the prior draw is not finite, (C,).
    """

    replicas: Tensor
    tilts: Tensor
    grads: Tensor
    acceptance: Tensor
    accepted: Tensor
    diverged: Tensor


class Pt(Sampler):
    """Non-reversible parallel tempering (replica exchange) between the prior and the target.

    Each chain has K replicas. The replica on rung i follows ``exp(-|z|²/2 - lambda_i tilt(z))`` on a ladder
    0 = lambda_0 < ... < lambda_{K-1} = 1, and the last replica is the chain itself. A step consists of

    1. local moves: replica 0 is drawn afresh from the prior; each of the others makes a trajectory of L kick-rotate steps
       (see `Hmc`) with its own step size h_i;
    2. swaps of the neighbours (0, 1), (2, 3), ..., then of (1, 2), (3, 4), ..., each with probability
       min(1, exp((lambda_i - lambda_j)(tilt_i - tilt_j))).

    The fixed order of the sweeps carries a replica in one direction until a swap is refused; in random order it would
    diffuse. Swaps cost no evaluation, so every step makes both sweeps. Modes that no local move could connect are
    connected through the prior, whose draws are independent. All replicas of all chains are evaluated as one batch.
    Chains do not interact.

    Warm-up spaces the ladder so that all neighbours swap equally often. It inverts the estimated communication barrier
    Lambda(lambda), which is the sum of the pairs' rejection rates up to lambda. It also tunes each h_i to an acceptance of
    0.7. The target's diagonal preconditioner s² = ``inverse_mass`` becomes 1 / (1 + lambda (1/s² - 1)) on the rung lambda,
    as the variances of Gaussians do.

    `summary` reports the lowest and mean swap rate of a pair, the barrier Lambda = Lambda(1), and the restarts of a chain,
    that is the number of prior draws that have come up to the target. A ladder works well at swap rates around 1/2, which
    takes about 2 Lambda + 1 rungs. `log_partition` is the stepping-stone estimate
    A = sum_i log E_i[exp(-(lambda_{i+1} - lambda_i) tilt)], where E_i is the mean over rung i.

    Args:
        num_rungs: K, the number of rungs with both ends. A step costs (K - 1) L + 1 gradients.
        num_leapfrog: L, the number of steps of a local move.
        step_size: h, a length in units of the prior's standard deviation: of all rungs before warm-up, then of the target.
        jitter: share of the step size that is random.

    Raises:
        UsageError: an argument is outside its range.

    References:
        Non-reversible parallel tempering: a scalable highly parallel MCMC scheme. S. Syed, A. Bouchard-Côté,
        G. Deligiannidis, A. Doucet, JRSS B 2022. https://arxiv.org/abs/1905.02939 (sweeps, barrier, spacing)
        Improving marginal likelihood estimation for Bayesian phylogenetic model selection. W. Xie et al., Systematic
        Biology 2011. https://doi.org/10.1093/sysbio/syq085 (stepping stones)
        Marginal likelihood estimation via power posteriors. N. Friel, A. N. Pettitt, JRSS B 2008.
        https://doi.org/10.1111/j.1467-9868.2007.00650.x (the first ladder)
    """

    has_ladder: ClassVar[bool] = True
    caches_tilt: ClassVar[bool] = True

    def __init__(
        self,
        num_rungs: Annotated[int, Range(2, None)] = 10,
        num_leapfrog: Annotated[int, Range(1, None)] = 2,
        step_size: Annotated[float, Range(0, None, low_open=True)] = 0.2,
        jitter: Annotated[float, Range(0, 1, high_open=True)] = 0.4,
    ) -> None:
        check_arguments(self, num_rungs=num_rungs, num_leapfrog=num_leapfrog, step_size=step_size, jitter=jitter)
        self.num_rungs = num_rungs
        self.num_leapfrog = num_leapfrog
        self.step_size = step_size
        self.jitter = jitter
        self.inverse_mass: Tensor | None = None
        self.ladder = tuple((i / (num_rungs - 1)) ** FIRST_LADDER for i in range(num_rungs))
        self.step_sizes = (step_size,) * (num_rungs - 2)
        self.adapting = False

    @property
    def tunable(self) -> Tunable:
        """The last rung's h, tuned to an acceptance of 0.7, with L h below a quarter turn, pi / 2."""
        return Tunable("step_size", target=TARGET_ACCEPTANCE, low=1e-6, high=self.longest_step)

    def adaptation(self) -> Adaptation:
        """Return the tuning of the ladder and of the other rungs' h_i."""
        return PtAdaptation(self.ladder, self.step_sizes)

    @property
    def longest_step(self) -> float:
        """The largest h, with which a trajectory is a quarter turn."""
        return math.pi / 2 / self.num_leapfrog

    def init(self, z: Tensor, potential: Potential, generator: torch.Generator) -> PtState:
        """Start chains at ``z``, (C, Z). The other replicas are prior draws, or ``z`` where a draw has no finite tilt."""
        (num_chains, latent_dim), num = z.shape, self.num_rungs - 2
        draws = torch.randn(num_chains, num, latent_dim, generator=generator, dtype=z.dtype, device=z.device)
        values, grads = tilt_and_grad(potential, torch.cat([draws.flatten(0, 1), z]))
        tilts, value = values[:-num_chains].unflatten(0, (num_chains, num)), values[-num_chains:].unsqueeze(1)
        slopes, slope = grads[:-num_chains].unflatten(0, (num_chains, num)), grads[-num_chains:].unsqueeze(1)
        usable = _finite(tilts, slopes)
        rows = usable.unsqueeze(2)
        self._rungs(z)  # copied to the device now, so that the first step does not wait for it
        counts = _no_counts(z.new_empty(num_chains, self.num_rungs - 1))
        return PtState(
            position=z,
            value=value.squeeze(1).clone(),
            replicas=torch.cat([torch.where(rows, draws, z.unsqueeze(1)), z.unsqueeze(1)], 1),
            tilts=torch.cat([torch.where(usable, tilts, value), value], 1),
            grads=torch.cat([torch.where(rows, slopes, slope), slope], 1),
            fresh=torch.zeros_like(counts.swaps, dtype=torch.bool),
            **counts._asdict(),
        )

    def step(self, state: PtState, potential: Potential, generator: torch.Generator) -> tuple[PtState, Info]:
        """Make the local moves of all replicas, then both sweeps of swaps, for every chain."""
        moved = self.local_moves(state, potential, generator)
        uniform = torch.rand(state.swaps.shape, generator=generator, dtype=state.value.dtype, device=state.value.device)
        order, rates = self.swap(moved.tilts, uniform)
        come_from = order[:, 1:]
        rows = come_from.unsqueeze(2).expand(-1, -1, state.position.shape[1])
        replicas, tilts = moved.replicas.gather(1, rows), moved.tilts.gather(1, come_from)
        fresh = torch.nn.functional.pad(state.fresh, (1, 0), value=True).gather(1, come_from)
        arrived = fresh[:, -1].clone()
        fresh[:, -1] = False

        if self.adapting:  # the draws will come from another ladder
            counts = _no_counts(state.swaps)
        else:
            weights = (moved.tilts[:, :-1] * -self._rungs(moved.tilts).gap).double().clamp_(min=_LOG_ZERO)
            ratios = torch.logaddexp(state.ratios, weights)
            counts = _Counts(state.restarts + arrived, state.steps + 1, state.swaps + rates, ratios)
        new_state = PtState(
            position=replicas[:, -1].clone(),
            value=tilts[:, -1].clone(),
            replicas=replicas,
            tilts=tilts,
            grads=moved.grads.gather(1, rows),
            fresh=fresh,
            **counts._asdict(),
        )
        swapped = come_from[:, -1] != self.num_rungs - 1
        info = Info(
            acceptance=moved.acceptance[:, -1].clone(),
            accepted=(moved.accepted[:, -1] | swapped) & ~moved.diverged,
            diverged=moved.diverged,
            grad_evals=(self.num_rungs - 1) * self.num_leapfrog + 1,
            statistics=torch.cat([moved.acceptance[:, :-1], rates], 1) if self.adapting else None,
        )
        return new_state, info

    def swap(self, tilts: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Make both sweeps of swaps between neighbouring rungs.

        Args:
            tilts: tilts of the replicas on the K rungs, (C, K).
            uniform: a uniform number for each pair of neighbours, (C, K - 1).

        Returns:
            The replica that each rung has afterwards, (C, K) int64, and each pair's acceptance probability, (C, K - 1).
        """
        num_rungs, gap = tilts.shape[1], self._rungs(tilts).gap
        order = torch.arange(num_rungs, device=tilts.device).expand(tilts.shape[0], -1)
        rates = torch.zeros_like(uniform)
        for first in range(min(2, num_rungs - 1)):
            last = first + (num_rungs - first) // 2 * 2
            pairs = order[:, first:last].unflatten(1, (-1, 2))
            hot, cold = tilts.gather(1, order)[:, first:last].unflatten(1, (-1, 2)).unbind(2)
            rate = self.swap_probability(hot, cold, gap[first::2])
            swaps = (uniform[:, first::2] < rate).unsqueeze(2)
            exchanged = torch.where(swaps, pairs.flip(2), pairs).flatten(1)
            order = torch.cat([order[:, :first], exchanged, order[:, last:]], 1)
            rates[:, first::2] = rate
        return order, rates

    @staticmethod
    def swap_probability(hot: Tensor, cold: Tensor, gap: Tensor) -> Tensor:
        """Return ``min(1, exp(gap (cold - hot)))``, or 0 where that is undefined.

        ``hot`` is the tilt of the replica at lambda, ``cold`` that of the replica at lambda + ``gap``.
        """
        return ((cold - hot) * gap).exp_().clamp_(max=1).nan_to_num_(nan=0.0)

    def local_moves(self, state: PtState, potential: Potential, generator: torch.Generator) -> Moved:
        """Draw replica 0 from the prior, then run and test one trajectory of every other replica."""
        z, tilts, grads = state.replicas, state.tilts, state.grads
        num_chains, num, latent_dim = z.shape
        noise = torch.randn(num_chains, num + 1, latent_dim, generator=generator, dtype=z.dtype, device=z.device)
        uniform = torch.rand(2, num_chains, num, generator=generator, dtype=z.dtype, device=z.device)
        prior, start = noise[:, 0], noise[:, 1:]
        rung, step_size, _ = self._rungs(z)
        tau = (step_size * (1 - self.jitter * uniform[0])).unsqueeze(2)
        if self.inverse_mass is not None:
            tau = tau * (1 + rung.unsqueeze(1) * (1 / self.inverse_mass - 1)).rsqrt()
        cos, sin, kick = tau.cos(), tau.sin(), tau * rung.unsqueeze(1)

        velocity = torch.addcmul(start, grads, kick, value=-0.5)
        end, new_tilts, new_grads = z, tilts, grads
        for step in range(self.num_leapfrog):
            end, before = torch.mul(end, cos).addcmul_(velocity, sin), end
            velocity.mul_(cos).addcmul_(before, sin, value=-1)
            last = step == self.num_leapfrog - 1
            rows = torch.cat([end.flatten(0, 1), prior]) if last else end.flatten(0, 1)
            values, slopes = tilt_and_grad(potential, rows)
            new_tilts = values[: num_chains * num].view(num_chains, num)
            new_grads = slopes[: num_chains * num].view(num_chains, num, latent_dim)
            velocity.addcmul_(new_grads, kick, value=-0.5 if last else -1.0)
        prior_tilt, prior_grad = values[-num_chains:], slopes[-num_chains:]

        squares = velocity.square_().addcmul_(start, start, value=-1)
        squares.addcmul_(end, end).addcmul_(z, z, value=-1)
        error = squares.sum(2).mul_(0.5).addcmul_(new_tilts - tilts, rung)
        error.nan_to_num_(nan=math.inf, posinf=math.inf, neginf=math.inf)
        finite = _finite(prior_tilt, prior_grad)
        diverged = (error[:, -1] > DIVERGENCE_THRESHOLD) | ~finite
        acceptance = error.neg_().exp_().clamp_(max=1)
        accepted = uniform[1] < acceptance
        moves = accepted.unsqueeze(2)
        prior_tilt = torch.where(finite, prior_tilt, math.inf)  # never swapped in
        return Moved(
            torch.cat([prior.unsqueeze(1), torch.where(moves, end, z)], 1),
            torch.cat([prior_tilt.unsqueeze(1), torch.where(accepted, new_tilts, tilts)], 1),
            torch.cat([prior_grad.unsqueeze(1), torch.where(moves, new_grads, grads)], 1),
            acceptance,
            accepted,
            diverged,
        )

    def _rungs(self, like: Tensor) -> _Rungs:
        return _rungs(self.ladder, (*self.step_sizes, self.step_size), self.longest_step, like.dtype, like.device)

    def log_partition(self, state: PtState) -> Tensor:
        """Return the stepping-stone estimate of A from the steps since warm-up, over all chains, (); NaN without steps."""
        ratios = torch.logsumexp(state.ratios, 0) - state.steps.double().sum().log()
        return torch.where(state.steps.sum() > 0, ratios.sum(), math.nan)

    def summary(self, state: PtState) -> Mapping[str, Tensor]:
        """Return swap rates, communication barrier and restarts since warm-up; NaN before the first step."""
        rates = state.swaps.double().sum(0) / state.steps.double().sum()
        return {
            "swap_rate_min": rates.min(),
            "swap_rate_mean": rates.mean(),
            "communication_barrier": (1 - rates).sum(),
            "restarts": state.restarts.double().mean(),
        }


def _finite(values: Tensor, grads: Tensor) -> Tensor:
    """Say which values (...) and gradients (..., Z) are finite together; (...) bool."""
    return torch.isfinite(values) & torch.isfinite(grads).all(-1)
