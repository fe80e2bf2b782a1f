"""Negative controls: the tests that every sampler passes must fail samplers that are wrong in known ways."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gebm_kit.core.hamiltonian import Phase, integrate
from gebm_kit.core.interfaces import Info, Potential, Sampler
from gebm_kit.core.resampling import multinomial
from gebm_kit.samplers import mams
from gebm_kit.samplers.chees import Chees, CheesState
from gebm_kit.samplers.elliptical import Elliptical
from gebm_kit.samplers.hmc import Hmc, HmcState
from gebm_kit.samplers.imh import Imh, ImhState
from gebm_kit.samplers.isir import Isir
from gebm_kit.samplers.mala import Mala, MalaState
from gebm_kit.samplers.meads import Meads
from gebm_kit.samplers.pcn import Pcn
from gebm_kit.samplers.pt import Pt
from gebm_kit.samplers.rwm import Rwm
from gebm_kit.samplers.sir import Sir, SirState
from gebm_kit.testing import (
    SAMPLER_CHECKS,
    HostSyncError,
    check_sampler,
    estimates,
    forbid_host_sync,
    invariance,
    movement,
)
from gebm_kit.testing.statistics import confirmed
from gebm_kit.testing.targets import linear_gaussian, two_modes


def _info(acceptance: Tensor, accepted: Tensor, grad_evals: int) -> Info:
    return Info(acceptance, accepted, torch.zeros_like(accepted), grad_evals)


class NoOp(Sampler):
    """A sampler that never moves; every distribution is invariant."""

    def init(self, z: Tensor, potential: Potential, generator: torch.Generator) -> MalaState:
        return MalaState(z, *potential.value_and_grad(z))

    def step(self, state: Any, potential: Potential, generator: torch.Generator) -> tuple[Any, Info]:
        return state, _info(torch.ones_like(state.value), torch.ones_like(state.value, dtype=torch.bool), 0)


class TextbookMala(NoOp):
    """MALA as in textbooks. Its correction is |.|^2 / (4 h), or (h/4) |.|^2 when ``wrong``."""

    def __init__(self, step_size: float, wrong: bool) -> None:
        self.step_size, self.wrong = step_size, wrong

    def step(self, state: Any, potential: Potential, generator: torch.Generator) -> tuple[Any, Info]:
        h, (z, value, grad) = self.step_size, state
        noise = torch.randn(z.shape, generator=generator, dtype=z.dtype)
        proposal = z - h * grad + math.sqrt(2 * h) * noise
        new_value, new_grad = potential.value_and_grad(proposal)
        back = (z - proposal + h * new_grad).square().sum(1)
        if self.wrong:
            log_ratio = value - new_value + h / 4 * ((proposal - z + h * grad).square().sum(1) - back)
        else:
            log_ratio = value - new_value + 0.5 * noise.square().sum(1) - back / (4 * h)
        acceptance = log_ratio.exp().clamp(max=1)
        accepted = torch.rand(value.shape, generator=generator, dtype=z.dtype) < acceptance
        moves = accepted.unsqueeze(1)
        new_state = MalaState(
            torch.where(moves, proposal, z), torch.where(accepted, new_value, value), torch.where(moves, new_grad, grad)
        )
        return new_state, _info(acceptance, accepted, 1)


class StaleHmc(Hmc):
    """Kick-rotate HMC that, when ``wrong``, keeps the rejected proposal's gradient for the next first kick."""

    def __init__(self, step_size: float, wrong: bool) -> None:
        super().__init__(step_size, num_leapfrog=5)
        self.wrong = wrong

    def step(self, state: Any, potential: Potential, generator: torch.Generator) -> tuple[HmcState, Info]:
        z, value, grad = state
        velocity = torch.randn(z.shape, generator=generator, dtype=z.dtype)
        uniform = torch.rand(2, len(z), generator=generator, dtype=z.dtype)
        start = Phase(z, velocity, value, grad)
        end = integrate(start, self.steps(uniform[0], potential), self.num_leapfrog, potential)
        kinetic = (end.velocity.square() - velocity.square()).sum(1) / 2
        prior = (end.position.square() - z.square()).sum(1) / 2
        acceptance = (value - end.value - kinetic - prior).exp().clamp(max=1)
        accepted = uniform[1] < acceptance
        moves = accepted.unsqueeze(1)
        kept = end.grad if self.wrong else torch.where(moves, end.grad, grad)
        new_state = HmcState(torch.where(moves, end.position, z), torch.where(accepted, end.value, value), kept)
        return new_state, _info(acceptance, accepted, self.num_leapfrog)


class ColdPcn(Pcn):
    """pCN that ignores beta: it accepts on E instead of beta E."""

    def step(self, state: Any, potential: Any, generator: torch.Generator) -> tuple[Any, Info]:
        return super().step(state, potential.at(1.0), generator)

    def init(self, z: Tensor, potential: Any, generator: torch.Generator) -> Any:
        return super().init(z, potential.at(1.0), generator)


class PriorlessRwm(Rwm):
    """A random walk that accepts on the tilt and forgets the prior."""

    def init(self, z: Tensor, potential: Any, generator: torch.Generator) -> Any:
        return super().init(z, _TiltAsWhole(potential), generator)

    def step(self, state: Any, potential: Any, generator: torch.Generator) -> tuple[Any, Info]:
        return super().step(state, _TiltAsWhole(potential), generator)


class _TiltAsWhole:
    """A potential that returns its tilt as U."""

    def __init__(self, inner: Any) -> None:
        self.value = inner.tilt


class PriorTwiceImh(Imh):
    """Prior proposals that are accepted on the whole potential, which counts the prior twice."""

    def init(self, z: Tensor, potential: Any, generator: torch.Generator) -> Any:
        return ImhState(z, potential.value(z))

    def step(self, state: Any, potential: Any, generator: torch.Generator) -> tuple[Any, Info]:
        return super().step(state, _WholeAsTilt(potential), generator)


class _WholeAsTilt:
    """A potential whose tilt is U. It is not a split potential, so U must include |z|²/2 once more to lose it again."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def value(self, z: Tensor) -> Tensor:
        return self.inner.value(z) + 0.5 * z.square().sum(1)


class PriorTwiceElliptical(Elliptical):
    """Elliptical slices whose level is that of the whole potential, which counts the prior twice."""

    def init(self, z: Tensor, potential: Any, generator: torch.Generator) -> Any:
        return super().init(z, _WholeAsTilt(potential), generator)

    def step(self, state: Any, potential: Any, generator: torch.Generator) -> tuple[Any, Info]:
        return super().step(state, _WholeAsTilt(potential), generator)


class ForgetfulIsir(Isir):
    """i-SIR that gives the chain's own point no weight. It just resamples N - 1 prior draws, with a bias for finite N."""

    def step(self, state: Any, potential: Any, generator: torch.Generator) -> tuple[Any, Info]:
        return super().step(state._replace(value=torch.full_like(state.value, math.inf)), potential, generator)


class TextbookSir(Sir):
    """SIR with the whole pool at once. When ``wrong``, draws are chosen from the pool regardless of their weights."""

    def __init__(self, num_candidates: int, wrong: bool) -> None:
        super().__init__(num_candidates)
        self.wrong = wrong

    def init(self, z: Tensor, potential: Any, generator: torch.Generator) -> Any:
        pool = torch.randn(self.num_candidates * len(z), z.shape[1], generator=generator, dtype=z.dtype)
        log_weights = -potential.tilt(pool)
        picks = multinomial(torch.zeros_like(log_weights) if self.wrong else log_weights, len(z), generator)
        full = torch.tensor(self.num_candidates)
        return SirState(pool[picks], -log_weights[picks], log_weights.view(-1, len(z)), log_weights.logsumexp(0), full)


class OneSidedPt(Pt):
    """Parallel tempering that accepts a swap on the colder replica's term alone."""

    @staticmethod
    def swap_probability(hot: Tensor, cold: Tensor, gap: Tensor) -> Tensor:
        return Pt.swap_probability(torch.zeros_like(hot), cold, gap)


class StalePt(Pt):
    """Parallel tempering that swaps positions but not their tilts."""

    def swap(self, tilts: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        self.unswapped = tilts[:, 1:]
        return super().swap(tilts, uniform)

    def step(self, state: Any, potential: Potential, generator: torch.Generator) -> tuple[Any, Info]:
        new, info = super().step(state, potential, generator)
        return new._replace(tilts=self.unswapped, value=self.unswapped[:, -1]), info


class KineticlessMams(mams.Mams):
    """Microcanonical trajectories that are accepted on dU alone, as if isokinetic dynamics preserved volume."""

    def step(self, state: Any, potential: Potential, generator: torch.Generator) -> tuple[Any, Info]:
        right = mams.integrate

        def forgetful(*arguments: Any) -> Any:
            flight = right(*arguments)
            return flight._replace(kinetic_change=torch.zeros_like(flight.kinetic_change))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mams, "integrate", forgetful)
            return super().step(state, potential, generator)


class KineticlessChees(Chees):
    """ChEES-HMC that accepts on the potential and forgets the kinetic energy."""

    def step(self, state: Any, potential: Potential, generator: torch.Generator) -> tuple[Any, Info]:
        z, value, grad = state
        velocity = torch.randn(z.shape, generator=generator, dtype=z.dtype)
        num, h = self.plan()
        end = integrate(Phase(z, velocity, value, grad), torch.full_like(z, h), num, potential)
        prior = (end.position.square() - z.square()).sum(1) / 2
        acceptance = (value - end.value - prior).exp().clamp(max=1)
        accepted = torch.rand(len(z), generator=generator, dtype=z.dtype) < acceptance
        moves = accepted.unsqueeze(1)
        new_state = CheesState(
            torch.where(moves, end.position, z),
            torch.where(accepted, end.value, value),
            torch.where(moves, end.grad, grad),
        )
        return new_state, _info(acceptance, accepted, num)


class LocalChees(Chees):
    """ChEES-HMC that keeps adapting: a chain's trajectory is long or short depending on where it is."""

    def step(self, state: Any, potential: Potential, generator: torch.Generator) -> tuple[Any, Info]:
        far, info = super().step(state, potential, generator)
        near, _ = Chees.step(self.tuned(trajectory_length=0.2), state, potential, generator)
        long = (state.position.square().sum(1) > 4).unsqueeze(1)
        position = torch.where(long, far.position, near.position)
        return self.init(position, potential, generator), info


class BrokenMeads(Meads):
    """MEADS with a ``fault``: ``turn`` does not reverse momenta after rejections, ``level`` never moves the level.

    ``right`` has no fault.
    """

    def __init__(self, fault: str) -> None:
        super().__init__(step_size=0.3, damping=0.3)
        self.fault = fault

    def step(self, state: Any, potential: Potential, generator: torch.Generator) -> tuple[Any, Info]:
        new, info = super().step(state, potential, generator)
        if self.fault == "turn":
            new = new._replace(momentum=torch.where(info.accepted.unsqueeze(1), new.momentum, -new.momentum))
        if self.fault == "level":
            new = new._replace(level=state.level)
        return new, info


def test_noop_is_caught_by_movement_alone() -> None:
    target = two_modes()
    assert not confirmed(functools.partial(invariance, NoOp(), target))
    assert confirmed(functools.partial(movement, NoOp(), target))
    with pytest.raises(AssertionError, match="do not reach the target|not counted"):
        check_sampler(NoOp(), targets=(target,))


@pytest.mark.parametrize("wrong", [False, True])
def test_mala_with_the_wrong_correction_is_caught(wrong: bool) -> None:
    target = linear_gaussian()
    sampler = TextbookMala(0.3 / target.largest_curvature, wrong)
    failures = confirmed(functools.partial(invariance, sampler, target, num_chains=20_000, steps=20, tune=False))
    assert bool(failures) is wrong


@pytest.mark.parametrize("wrong", [False, True])
def test_hmc_with_a_stale_gradient_is_caught(wrong: bool) -> None:
    target = linear_gaussian()
    sampler = StaleHmc(0.3, wrong)
    generator = torch.Generator().manual_seed(0)
    with target.potential() as potential:
        state = sampler.init(target.exact(4000, generator), potential, generator)
        _, info = StaleHmc(0.3, False).step(state, potential, generator)
    assert 0.6 < float(info.acceptance.mean()) < 0.85  # the error is invisible when nearly everything is accepted
    failures = confirmed(functools.partial(invariance, sampler, target, num_chains=20_000, steps=20, tune=False))
    assert bool(failures) is wrong


@pytest.mark.parametrize("fault", ["right", "turn", "level"])
def test_a_broken_meads_is_caught(fault: str) -> None:
    """The step is rejected every second time, because at an acceptance of 0.7 the fault ``turn`` is invisible."""
    check = functools.partial(invariance, BrokenMeads(fault), linear_gaussian(), tune=False, steps=40)
    assert bool(confirmed(check)) is (fault != "right")


@pytest.mark.parametrize("kind", [Chees, KineticlessChees, LocalChees])
def test_a_broken_chees_is_caught(kind: type[Chees]) -> None:
    sampler = kind(step_size=0.25, trajectory_length=1.5)
    failures = confirmed(functools.partial(invariance, sampler, linear_gaussian(), tune=False))
    assert bool(failures) is (kind is not Chees)


BROKEN = {
    "pcn that ignores beta": ColdPcn(),
    "rwm that forgets the prior": PriorlessRwm(),
    "imh that counts the prior twice": PriorTwiceImh(),
    "elliptical that counts the prior twice": PriorTwiceElliptical(),
    "isir that leaves out its own point": ForgetfulIsir(8, num_local=0),
    "pt that swaps on one replica's term": OneSidedPt(),
    "pt that swaps positions without their tilts": StalePt(),
    "mams that leaves out the kinetic energy": KineticlessMams(max_leapfrog=4),
}


@pytest.mark.parametrize("twin", BROKEN)
def test_a_broken_twin_is_caught(twin: str) -> None:
    """The correct class passes the same test in test_samplers.py."""
    assert confirmed(functools.partial(invariance, BROKEN[twin], linear_gaussian()))


@pytest.mark.parametrize("wrong", [False, True])
def test_sir_that_forgets_the_weights_is_caught(wrong: bool) -> None:
    failures = confirmed(functools.partial(estimates, TextbookSir(20, wrong), linear_gaussian()))
    assert bool(failures) is wrong


def test_a_sampler_that_reads_the_device_is_caught() -> None:
    class Reads(Mala):
        def step(self, state, potential, generator):
            if state.value.max() > 1e9:
                raise ValueError
            return super().step(state, potential, generator)

    class Masks(Mala):
        def step(self, state, potential, generator):
            new, info = super().step(state, potential, generator)
            new.position[info.accepted] += 0
            return new, info

    for sampler in (Reads(), Masks()):
        with pytest.raises(HostSyncError):
            SAMPLER_CHECKS["no_host_sync"](sampler)
    with forbid_host_sync():
        torch.where(torch.zeros(3) > 0, torch.ones(3), torch.zeros(3))
