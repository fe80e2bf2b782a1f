"""Hamiltonian Monte Carlo whose trajectory length is learnt from how far many chains' trajectories go: ChEES-HMC."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.hamiltonian import Phase, energy_error, evaluate, integrate
from gebm_kit.core.interfaces import DIVERGENCE_THRESHOLD, Adaptation, Info, Potential, Sampler, Tunable

LEARNING_RATE = 0.05
"""Adam's, on log T: twice the published one, as warm-ups are short and about half of the steps count (`WHOLE`)."""

SECOND_MOMENT_DECAY = 0.95
"""Adam's, as published; there is no first moment."""

WHOLE = 0.8
"""Share of T that trajectories must have to lengthen it: far below T the criterion always rises. They may shorten it."""

AVERAGED_FROM = 0.5
"""Share of warm-up after which log T is averaged for the value to freeze."""

FORGET = 0.1
"""Least weight of the newest value in the running means: of the chains' centre, of log h and of log T."""


class CheesState(NamedTuple):
    """Chains at ``position`` (C, Z) with the cached ``value`` (C,) and gradient ``grad`` (C, Z).

    Both are of the tilt when the potential is split into prior and tilt, else of the whole potential.
    """

    position: Tensor
    value: Tensor
    grad: Tensor


class Chees(Sampler):
    """ChEES-HMC: Hamiltonian Monte Carlo with trajectories of a tuned length T, of L = ceil(T / h) steps.

    Trajectories are those of `gebm_kit.core.hamiltonian`: kick-rotate where the prior is split off, leapfrog elsewhere, with
    the diagonal preconditioner s² = ``inverse_mass`` (1 until warm-up sets it) and velocities v = s p ~ N(0, I). Their
    ends are accepted with probability min(1, exp(-dH)), dH the error of the total energy; a non-finite proposal or
    dH > 1000 is a divergence, rejected and counted.

    Warm-up lets T climb the change in the estimator of the expected square,

        ChEES(T) = ¼ E[(|y(t)|² - |y(0)|²)²],   y = (z - m) / s,  m the chains' centre,
        dChEES/dlog T = E[t (|y(t)|² - |y(0)|²) y(t)·v(t)],

    each proposal weighed by its acceptance probability, by Adam on log T. Beside it h follows the harmonic mean over
    chains of the acceptance to 0.651. L is a number of Python's, the same for all chains, and nothing waits for the
    device; so the length is jittered as ``t = T u`` through the step, u uniform on [1 - jitter, 1] and drawn afresh for
    each chain and trajectory before anything else: the frozen kernel is a mixture of exact ones. While warm-up lasts
    L = ceil(T / max(h, g)), g the running geometric mean of h: h swings, and small values would be dear.

    ``s T`` stays below pi in the widest coordinate (s > 1 counted as 1): half a turn of the prior's own rotation, where it
    starts to come back. On these models twice the quarter turn of ``hmc`` costs nothing where the criterion wants less,
    and where it wants more, along ridges and between modes, it raised the effective sample size a gradient by half.

    Args:
        step_size: h, a length in units of the prior's standard deviation; the steps are T / L, at most h.
        trajectory_length: T, in the units of h, before warm-up.
        max_leapfrog: largest L, gradient evaluations a trajectory; it binds in narrow, strongly correlated posteriors.
        jitter: share of the length that is random.

    Raises:
        UsageError: an argument outside its range.

    References:
        An adaptive MCMC scheme for setting trajectory lengths in Hamiltonian Monte Carlo. M. D. Hoffman, A. Radul,
        P. Sountsov, AISTATS 2021. https://proceedings.mlr.press/v130/hoffman21a.html (there u is common to all chains,
        on [0, 1], and L follows it)
    """

    min_chains: ClassVar[int] = 2

    def __init__(
        self,
        step_size: Annotated[float, Range(0, None, low_open=True)] = 0.2,
        trajectory_length: Annotated[float, Range(0, None, low_open=True)] = 1.0,
        max_leapfrog: Annotated[int, Range(1, None)] = 64,
        jitter: Annotated[float, Range(0, 1, high_open=True)] = 0.4,
    ) -> None:
        check_arguments(
            self, step_size=step_size, trajectory_length=trajectory_length, max_leapfrog=max_leapfrog, jitter=jitter
        )
        self.step_size = step_size
        self.trajectory_length = trajectory_length
        self.max_leapfrog = max_leapfrog
        self.jitter = jitter
        self.inverse_mass: Tensor | None = None
        self.centre: Tensor | None = None
        """m, (Z,), while warm-up lasts: then steps say what they tell of T."""
        self.typical_step: float | None = None
        """g, while warm-up lasts."""
        self._scale = 1.0

    @property
    def tunable(self) -> Tunable:
        """The harmonic mean of 0.651; s h stays below pi / 2."""
        return Tunable("step_size", target=0.651, low=1e-6, high=math.pi / 2 / self._scale, harmonic=True)

    def adaptation(self) -> CheesAdaptation:
        return CheesAdaptation()

    @property
    def longest(self) -> float:
        """The largest T: half a turn of the widest coordinate."""
        return math.pi / self._scale

    @property
    def angle(self) -> float:
        """``s T`` of the widest coordinate."""
        return min(self.trajectory_length, self.longest) * self._scale

    def tuned(self, **values: Any) -> Chees:
        """A copy with the named attributes replaced; with a new preconditioner the trajectories keep their `angle`."""
        twin = super().tuned(**values)
        assert isinstance(twin, Chees)
        if values.get("inverse_mass") is not None:
            twin._scale = min(float(values["inverse_mass"].max().sqrt()), 1.0)
            twin.trajectory_length = self.angle / twin._scale
        return twin

    def plan(self) -> tuple[int, float]:
        """L and the unjittered step of the next trajectory."""
        length = min(self.trajectory_length, self.longest)
        step = self.step_size if self.typical_step is None else max(self.step_size, self.typical_step)
        num = min(math.ceil(length / step), self.max_leapfrog)
        return num, min(length / num, self.step_size)

    def init(self, z: Tensor, potential: Potential, generator: torch.Generator) -> CheesState:
        """Chains at ``z``: (C, Z)."""
        return CheesState(z, *evaluate(potential, z))

    def step(self, state: CheesState, potential: Potential, generator: torch.Generator) -> tuple[CheesState, Info]:
        """One trajectory and its acceptance test, for every chain."""
        z, value, grad = state
        velocity = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
        uniform = torch.rand(2, z.shape[0], generator=generator, dtype=z.dtype, device=z.device)
        num_leapfrog, h = self.plan()
        steps = torch.add(torch.full_like(uniform[0], h), uniform[0], alpha=-h * self.jitter)
        tau = steps.unsqueeze(1) if self.inverse_mass is None else steps.unsqueeze(1) * self.inverse_mass.sqrt()
        start = Phase(z, velocity, value, grad)
        end = integrate(start, tau, num_leapfrog, potential)

        error = energy_error(start, end, potential)
        diverged = error > DIVERGENCE_THRESHOLD
        acceptance = error.neg_().exp_().clamp_(max=1)
        accepted = uniform[1] < acceptance
        told = None if self.centre is None else self._tell(z, end, num_leapfrog * steps, acceptance, self.centre)
        moves = accepted.unsqueeze(1)
        new_state = CheesState(
            torch.where(moves, end.position, z),
            torch.where(accepted, end.value, value),
            torch.where(moves, end.grad, grad),
        )
        return new_state, Info(acceptance, accepted, diverged, grad_evals=num_leapfrog, statistics=told)

    def _tell(self, z: Tensor, end: Phase, length: Tensor, acceptance: Tensor, centre: Tensor) -> Tensor:
        """Each chain's term of dChEES/dlog T, times its acceptance, and the acceptance; (C, 2)."""
        before, after = z - centre, end.position - centre
        if self.inverse_mass is not None:
            before, after = before * self.inverse_mass.rsqrt(), after * self.inverse_mass.rsqrt()
        change = (after.square() - before.square()).sum(1)
        slope = length * change * torch.linalg.vecdot(after, end.velocity)
        return torch.stack([torch.where(acceptance > 0, acceptance * slope, 0.0), acceptance], dim=1)


class CheesAdaptation(Adaptation):
    """Adam on log T, and running means of what the steps need: the chains' centre and log h.

    K = 2 + Z numbers: sums of acceptance-weighted slopes, of acceptances, of positions.
    """

    def __init__(self) -> None:
        self._like = torch.empty(0)
        self._steps = self._moves = self._averaged = 0
        self._second_moment = 0.0
        self._centre = torch.zeros((), dtype=torch.float64)
        self._mass: Tensor | None = None
        self._log_step = self._log_angle = 0.0

    def statistics(self, sampler: Sampler, before: CheesState, after: CheesState, info: Info) -> Tensor:
        self._like = after.position
        told = after.value.new_zeros(1, 2) if info.statistics is None else info.statistics
        return torch.cat([told.double().sum(0), after.position.double().sum(0)])

    def update(self, sampler: Sampler, sums: Tensor, num_chains: int, progress: float) -> Chees:
        assert isinstance(sampler, Chees)
        self._steps += 1
        forget = max(1 / self._steps, FORGET)
        self._centre = self._centre + forget * (sums[2:] / num_chains - self._centre)
        if sampler.inverse_mass is not self._mass or self._steps == 1:  # the step size is in new units
            self._mass, self._log_step = sampler.inverse_mass, math.log(sampler.step_size)
        self._log_step += forget * (math.log(sampler.step_size) - self._log_step)
        num, h = sampler.plan()
        move = self._move(float(sums[0]), float(sums[1]))
        if num * h < WHOLE * sampler.trajectory_length:
            move = min(move, 0.0)
        log_length = math.log(sampler.angle / sampler._scale) + move
        length = min(math.exp(log_length), sampler.longest)
        if progress > AVERAGED_FROM:
            self._averaged += 1
            log_angle = math.log(length * sampler._scale)
            self._log_angle += max(1 / self._averaged, FORGET) * (log_angle - self._log_angle)
        return sampler.tuned(
            trajectory_length=length, centre=self._centre.to(self._like), typical_step=math.exp(self._log_step)
        )

    def freeze(self, sampler: Sampler) -> Chees:
        assert isinstance(sampler, Chees)
        length = math.exp(self._log_angle) / sampler._scale if self._averaged else sampler.trajectory_length
        return sampler.tuned(trajectory_length=length, centre=None, typical_step=None)

    def _move(self, slope: float, weight: float) -> float:
        """Adam's move of log T along the mean slope; none when nothing was accepted."""
        mean = slope / weight if weight > 0 else 0.0
        if mean == 0.0 or not math.isfinite(mean):
            return 0.0
        self._moves += 1
        self._second_moment += (1 - SECOND_MOMENT_DECAY) * (mean * mean - self._second_moment)
        return LEARNING_RATE * mean / math.sqrt(self._second_moment / (1 - SECOND_MOMENT_DECAY**self._moves))
