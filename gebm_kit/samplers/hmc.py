"""Hamiltonian Monte Carlo in latent space: kick-rotate when the prior is split off, else leapfrog."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.hamiltonian import Phase, energy_error, evaluate, integrate
from gebm_kit.core.interfaces import DIVERGENCE_THRESHOLD, Info, Potential, Sampler, Tunable
from gebm_kit.core.tilt import is_tilted


class HmcState(NamedTuple):
    """Chains at ``position`` (C, Z) with the cached ``value`` (C,) and gradient ``grad`` (C, Z).

    The value is the tilt when the potential is split into prior and tilt, else the whole potential.
    """

    position: Tensor
    value: Tensor
    grad: Tensor


class Hmc(Sampler):
    """Hamiltonian Monte Carlo with trajectories of L steps.

    Kick-rotate integrates the prior of a `TiltedPotential` U(z) = ½|z|² + tilt(z) exactly. With g = grad tilt one step is

        p -= (h/2) g;   z' = z cos(s h) + s p sin(s h),  p' = p cos(s h) - (z/s) sin(s h);   p -= (h/2) g,

    where p ~ N(0, s^-2). At inverse temperature 0 every proposal is accepted for every h. The total angle s L h u (u is
    the jitter below) is therefore capped: its mean is at most ``max_angle``, a quarter turn by default. On any other
    potential the step is leapfrog's with g = grad U: kick, z += h s² p, kick. The capped angle is then L h u, by which a
    coordinate of variance s² turns.

    s² = ``inverse_mass`` is a diagonal preconditioner (1 until warm-up sets it). The code carries the velocity
    v = s p ~ N(0, I). In terms of v both schemes need no preconditioner, only a step ``tau = s h`` of its own for each
    coordinate.

    The step is jittered: it is ``h u`` with u uniform on [1 - jitter, 1]. u is drawn afresh for each chain and trajectory
    before anything else, so the kernel is a mixture of exact kernels. L is fixed, so nothing waits for the device.

    The proposal is accepted with probability min(1, exp(-dH)), where dH is the error of the total energy. A non-finite
    proposal or dH > 1000 is a divergence: it is rejected and counted. The kinetic and prior parts of dH are subtracted
    before they are summed, which keeps float32 accurate in many dimensions.

    Args:
        step_size: h, a length in units of the prior's standard deviation; tuned by warm-up to an acceptance of 0.7.
        num_leapfrog: L, the number of gradients a trajectory.
        jitter: share of the step that is random.
        max_angle: largest mean angle of a whole trajectory, in radians. After a quarter turn a coordinate as wide as the
            prior is independent of where it was. Beyond that it is anticorrelated: estimates of its mean need fewer
            draws, but estimates of its variance need more. After a half turn |z| is what it was.

    Raises:
        UsageError: an argument is outside its range.

    References:
        MCMC using Hamiltonian dynamics. R. M. Neal, 2011. https://arxiv.org/abs/1206.1901
        Split Hamiltonian Monte Carlo. B. Shahbaba et al., 2014. https://arxiv.org/abs/1106.5941 (the exact rotation)
        Optimal tuning of the hybrid Monte Carlo algorithm. A. Beskos et al., 2013. https://arxiv.org/abs/1001.4460
        (the acceptance of 0.651 in many dimensions; a little more is safer in few)
    """

    caches_tilt: ClassVar[bool] = True

    def __init__(
        self,
        step_size: Annotated[float, Range(0, None, low_open=True)] = 0.2,
        num_leapfrog: Annotated[int, Range(1, None)] = 4,
        jitter: Annotated[float, Range(0, 1, high_open=True)] = 0.4,
        max_angle: Annotated[float, Range(0, math.pi, low_open=True)] = math.pi / 2,
    ) -> None:
        check_arguments(self, step_size=step_size, num_leapfrog=num_leapfrog, jitter=jitter, max_angle=max_angle)
        self.step_size = step_size
        self.num_leapfrog = num_leapfrog
        self.jitter = jitter
        self.max_angle = max_angle
        self.inverse_mass: Tensor | None = None
        self._largest_scale = 1.0

    @property
    def tunable(self) -> Tunable:
        """The step size, tuned to an acceptance of 0.7, with the mean of the whole angle below `max_angle`.

        On a tilted potential warm-up scales a coordinate by at most 1, the prior's scale. A larger scale thus belongs to a
        potential that has no prior to rotate under, and does not bound its steps.
        """
        return Tunable("step_size", target=0.7, low=1e-6, high=self._longest_step(min(self._largest_scale, 1.0)))

    def _longest_step(self, scale: float) -> float:
        """Return the step with which a trajectory turns a coordinate of scale ``scale`` by `max_angle` on average."""
        return self.max_angle / (self.num_leapfrog * scale * (1 - self.jitter / 2))

    def tuned(self, **values: Any) -> Hmc:
        """Return a copy with the named attributes replaced. The cap on the angle follows the preconditioner."""
        twin = super().tuned(**values)
        assert isinstance(twin, Hmc)
        if values.get("inverse_mass") is not None:
            twin._largest_scale = float(values["inverse_mass"].max().sqrt())
        return twin

    def init(self, z: Tensor, potential: Potential, generator: torch.Generator) -> HmcState:
        """Start chains at ``z``, (C, Z)."""
        return HmcState(z, *evaluate(potential, z))

    def step(self, state: HmcState, potential: Potential, generator: torch.Generator) -> tuple[HmcState, Info]:
        """Run and test one trajectory for every chain."""
        z, value, grad = state
        velocity = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
        # the first row of uniforms is for the jitter, the second for the acceptance test
        uniform = torch.rand(2, z.shape[0], generator=generator, dtype=z.dtype, device=z.device)
        start = Phase(z, velocity, value, grad)
        end = integrate(start, self.steps(uniform[0], potential), self.num_leapfrog, potential)

        error = energy_error(start, end, potential)
        diverged = error > DIVERGENCE_THRESHOLD
        acceptance = error.neg_().exp_().clamp_(max=1)
        accepted = uniform[1] < acceptance  # never for a divergence, whose acceptance is exp(-1000) = 0
        moves = accepted.unsqueeze(1)
        new_state = HmcState(
            torch.where(moves, end.position, z),
            torch.where(accepted, end.value, value),
            torch.where(moves, end.grad, grad),
        )
        return new_state, Info(acceptance, accepted, diverged, grad_evals=self.num_leapfrog)

    def steps(self, uniform: Tensor, potential: Potential) -> Tensor:
        """Return each chain's jittered step ``tau = s h u``; uniforms (C,) -> (C, 1), or (C, Z) with a preconditioner."""
        h = self.step_size
        if is_tilted(type(potential)):
            h = min(h, self._longest_step(self._largest_scale))
        tau = torch.add(torch.full_like(uniform, h), uniform, alpha=-h * self.jitter).unsqueeze(1)
        return tau if self.inverse_mass is None else tau * self.inverse_mass.sqrt()
