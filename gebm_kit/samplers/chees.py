"""ChEES-HMC: Hamiltonian Monte Carlo that learns its trajectory length from how far the trajectories of many chains go."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.hamiltonian import Phase, energy_change, evaluate, integrate
from gebm_kit.core.interfaces import DIVERGENCE_THRESHOLD, Adaptation, Info, Potential, Sampler, Tunable

LENGTH_LEARNING_RATE = 0.05
"""Adam's learning rate on log T. It is twice the published rate, because warm-ups are short here and only about half of the
steps may lengthen T (`FULL_SHARE`)."""

SECOND_MOMENT_DECAY = 0.95
"""Adam's decay of the second moment, as published. Adam runs without a first moment."""

FULL_SHARE = 0.8
"""Share of T that a trajectory must reach before it may lengthen T. Far below T the criterion always rises, so shorter
trajectories (cut by h or ``max_leapfrog``) would drive T up. They may still shorten T."""

AVERAGED_FROM = 0.5
"""Share of warm-up after which log T is averaged; the average is frozen. The first half, in which T still moves to its
place, is left out."""

LEAST_WEIGHT = 0.1
"""Smallest weight of the newest value in the running means of the chains' centre, log h and log T. The means thus cover
about ten steps; more would lag behind chains that still move, fewer would be noisy."""


class CheesState(NamedTuple):
    """Chains at ``position`` (C, Z) with the cached ``value`` (C,) and gradient ``grad`` (C, Z).

    The value is the tilt when the potential is split into prior and tilt, else the whole potential.
    """

    position: Tensor
    value: Tensor
    grad: Tensor


class Chees(Sampler):
    """ChEES-HMC: Hamiltonian Monte Carlo with trajectories of a tuned length T in L = ceil(T / h) steps.

    The trajectories are those of `gebm_kit.core.hamiltonian`: kick-rotate where the prior is split off, leapfrog
    elsewhere. They use the diagonal preconditioner s² = ``inverse_mass`` (1 until warm-up sets it) and velocities
    v = s p ~ N(0, I). The end of a trajectory is accepted with probability min(1, exp(-dH)), where dH is the error of
    the total energy. A non-finite proposal or dH > 1000 is a divergence: it is rejected and counted.

    Warm-up moves T uphill on ChEES, the change in the estimator of the expected square,

        ChEES(T) = ¼ E[(|y(t)|² - |y(0)|²)²],   y = (z - m) / s,  m the chains' centre,
        dChEES/dlog T = E[t (|y(t)|² - |y(0)|²) y(t)·v(t)],

    by Adam on log T, with each proposal weighted by its acceptance probability. At the same time h is tuned until the
    harmonic mean over chains of the acceptance is 0.651. Proposals that left the support (``Info.impossible``) count
    neither for h nor for T: their acceptance of 0 depends on where a trajectory ends, not on its steps.

    L is a Python integer and the same for all chains, so that nothing waits for the device. The length is therefore
    jittered through the step: ``t = T u`` with u uniform on [1 - jitter, 1]. u is drawn afresh for each chain and
    trajectory before anything else, so the frozen kernel is a mixture of exact kernels. During warm-up
    L = ceil(T / max(h, g)), where g is the running geometric mean of h. h fluctuates then, and its small values would
    make trajectories expensive.

    ``s T`` stays below pi in the widest coordinate (s > 1 counts as 1). That is half a turn of the prior's own
    rotation, after which a trajectory starts to come back. It is twice the quarter turn of ``hmc``. On the models of
    this kit the longer bound costs nothing where the criterion asks for less. Where it asks for more, along ridges and
    between modes, the bound raised the effective sample size per gradient by half.

    Args:
        step_size: h, a length in units of the prior's standard deviation; the steps are T / L, at most h.
        trajectory_length: T before warm-up, in the units of h.
        max_leapfrog: largest L, the number of gradients a trajectory. Narrow, strongly correlated posteriors reach it.
        jitter: share of the length that is random.

    Raises:
        UsageError: an argument is outside its range.

    References:
        An adaptive MCMC scheme for setting trajectory lengths in Hamiltonian Monte Carlo. M. D. Hoffman, A. Radul,
        P. Sountsov, AISTATS 2021. https://proceedings.mlr.press/v130/hoffman21a.html (there u is uniform on [0, 1] and
        the same for all chains, and L follows u)
    """

    min_chains: ClassVar[int] = 2
    caches_tilt: ClassVar[bool] = True

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
        """m, (Z,), during warm-up, where steps report their slope of ChEES; else None."""
        self.typical_step: float | None = None
        """g, during warm-up; else None."""
        self._scale = 1.0

    @property
    def tunable(self) -> Tunable:
        """The step size, tuned to a harmonic mean acceptance of 0.651, with s h below a quarter turn, pi / 2."""
        return Tunable("step_size", target=0.651, low=1e-6, high=math.pi / 2 / self._scale, harmonic=True)

    def adaptation(self) -> CheesAdaptation:
        return CheesAdaptation()

    @property
    def longest(self) -> float:
        """The largest T, which is half a turn of the widest coordinate."""
        return math.pi / self._scale

    @property
    def angle(self) -> float:
        """The angle ``s T`` by which the widest coordinate turns."""
        return min(self.trajectory_length, self.longest) * self._scale

    def tuned(self, **values: Any) -> Chees:
        """Return a copy with the named attributes replaced. A new preconditioner does not change the `angle`."""
        twin = super().tuned(**values)
        assert isinstance(twin, Chees)
        if values.get("inverse_mass") is not None:
            twin._scale = min(float(values["inverse_mass"].max().sqrt()), 1.0)
            twin.trajectory_length = self.angle / twin._scale
        return twin

    def plan(self) -> tuple[int, float]:
        """Return L and the unjittered step of the next trajectory."""
        length = min(self.trajectory_length, self.longest)
        step = self.step_size if self.typical_step is None else max(self.step_size, self.typical_step)
        num = min(math.ceil(length / step), self.max_leapfrog)
        return num, min(length / num, self.step_size)

    def init(self, z: Tensor, potential: Potential, generator: torch.Generator) -> CheesState:
        """Start chains at ``z``, (C, Z)."""
        return CheesState(z, *evaluate(potential, z))

    def step(self, state: CheesState, potential: Potential, generator: torch.Generator) -> tuple[CheesState, Info]:
        """Run and test one trajectory for every chain."""
        z, value, grad = state
        velocity = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
        uniform = torch.rand(2, z.shape[0], generator=generator, dtype=z.dtype, device=z.device)
        num_leapfrog, h = self.plan()
        steps = torch.add(torch.full_like(uniform[0], h), uniform[0], alpha=-h * self.jitter)
        tau = steps.unsqueeze(1) if self.inverse_mass is None else steps.unsqueeze(1) * self.inverse_mass.sqrt()
        start = Phase(z, velocity, value, grad)
        end = integrate(start, tau, num_leapfrog, potential)

        change = energy_change(start, end, potential)
        error, impossible = change.error, change.left_support()
        diverged = error > DIVERGENCE_THRESHOLD
        acceptance = error.neg_().exp_().clamp_(max=1)
        accepted = uniform[1] < acceptance
        told = None if self.centre is None else self.slopes(z, end, num_leapfrog * steps, acceptance, self.centre)
        moves = accepted.unsqueeze(1)
        new_state = CheesState(
            torch.where(moves, end.position, z),
            torch.where(accepted, end.value, value),
            torch.where(moves, end.grad, grad),
        )
        return new_state, Info(acceptance, accepted, diverged, num_leapfrog, statistics=told, impossible=impossible)

    def slopes(self, z: Tensor, end: Phase, length: Tensor, acceptance: Tensor, centre: Tensor) -> Tensor:
        """Return each chain's term of dChEES/dlog T times its acceptance, and the acceptance; (C, 2).

        Args:
            z: positions before the trajectories, (C, Z).
            end: their ends.
            length: t of each trajectory, (C,).
            acceptance: acceptance probability of each trajectory, (C,).
            centre: m, (Z,).
        """
        before, after = z - centre, end.position - centre
        if self.inverse_mass is not None:
            before, after = before * self.inverse_mass.rsqrt(), after * self.inverse_mass.rsqrt()
        change = (after.square() - before.square()).sum(1)
        slope = length * change * torch.linalg.vecdot(after, end.velocity)
        return torch.stack([torch.where(acceptance > 0, acceptance * slope, 0.0), acceptance], dim=1)


class CheesAdaptation(Adaptation):
    """The tuning of T by Adam on log T, with running means of the chains' centre and of log h.

    It sums K = 2 + Z numbers over the chains: acceptance-weighted slopes, acceptances and positions.
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
        forget = max(1 / self._steps, LEAST_WEIGHT)
        self._centre = self._centre + forget * (sums[2:] / num_chains - self._centre)
        if sampler.inverse_mass is not self._mass or self._steps == 1:  # h is in new units
            self._mass, self._log_step = sampler.inverse_mass, math.log(sampler.step_size)
        self._log_step += forget * (math.log(sampler.step_size) - self._log_step)
        num, h = sampler.plan()
        move = self._move(float(sums[0]), float(sums[1]))
        if num * h < FULL_SHARE * sampler.trajectory_length:
            move = min(move, 0.0)
        log_length = math.log(sampler.angle / sampler._scale) + move
        length = min(math.exp(log_length), sampler.longest)
        if progress > AVERAGED_FROM:
            self._averaged += 1
            log_angle = math.log(length * sampler._scale)
            self._log_angle += max(1 / self._averaged, LEAST_WEIGHT) * (log_angle - self._log_angle)
        return sampler.tuned(
            trajectory_length=length, centre=self._centre.to(self._like), typical_step=math.exp(self._log_step)
        )

    def freeze(self, sampler: Sampler) -> Chees:
        assert isinstance(sampler, Chees)
        length = math.exp(self._log_angle) / sampler._scale if self._averaged else sampler.trajectory_length
        return sampler.tuned(trajectory_length=length, centre=None, typical_step=None)

    def _move(self, slope: float, weight: float) -> float:
        """Return Adam's change of log T along the mean slope; 0 when nothing was accepted."""
        mean = slope / weight if weight > 0 else 0.0
        if mean == 0.0 or not math.isfinite(mean):
            return 0.0
        self._moves += 1
        self._second_moment += (1 - SECOND_MOMENT_DECAY) * (mean * mean - self._second_moment)
        return LENGTH_LEARNING_RATE * mean / math.sqrt(self._second_moment / (1 - SECOND_MOMENT_DECAY**self._moves))
