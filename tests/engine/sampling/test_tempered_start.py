"""The tempered start of warm-up: strengths, step sizes, blocks, and that chains forget where they started."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from gebm_kit.core.interfaces import Energy, Sampler, TiltedPotential
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.reduce import in_block_order
from gebm_kit.engine.sampling import tempered_start as module
from gebm_kit.engine.sampling.tempered_start import LEVELS, TemperedPotential, TemperedStart, tempered_start
from gebm_kit.engine.sampling.warmup import warm_up
from gebm_kit.samplers.imh import Imh
from gebm_kit.samplers.klmc import Klmc
from gebm_kit.samplers.mala import Mala
from gebm_kit.samplers.pcn import Pcn
from gebm_kit.samplers.pt import Pt
from gebm_kit.testing.targets import IdentityBase, PlainPotential, linear_gaussian, prior_only, two_modes


class TwoWells(Energy):
    """``E(x) = 2 (x_0² - 1)² + x_0 / 4 + |x_{1:}|²``: two wells a wall of height 2 apart, the left one deeper by 1/2."""

    def forward(self, x: Tensor) -> Tensor:
        along = x[:, 0]
        return 2 * (along.square() - 1).square() + along / 4 + x[:, 1:].square().sum(1)


class FlatWithCliffs(Energy):
    """``E(x) = 100 relu(|x_0| - 1.5)²``: nothing in the middle, and an eighth of the prior on steep slopes."""

    def forward(self, x: Tensor) -> Tensor:
        return 100 * nn.functional.relu(x[:, 0].abs() - 1.5).square()


def _start(
    sampler: Sampler, potential: LatentPotential, z: Tensor, steps: int, blocks: int = 1, seed: int = 0
) -> TemperedStart:
    parts = z.chunk(blocks)
    generators = [torch.Generator().manual_seed(seed + i) for i in range(blocks)]
    states = [sampler.init(part, potential, g) for part, g in zip(parts, generators, strict=True)]
    return tempered_start(sampler, states, potential, generators, steps, reduce=in_block_order)


def _prior(num: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_tempered_potential_scales_the_tilt_alone() -> None:
    target, z = linear_gaussian(), _prior(7, 4)
    with target.potential() as inner:
        for potential in (TemperedPotential(inner, 0.3), TemperedPotential(PlainPotential(inner), 0.3)):
            assert isinstance(potential, TiltedPotential)
            value, grad = inner.tilt_and_grad(z)
            torch.testing.assert_close(potential.tilt(z), 0.3 * value)
            torch.testing.assert_close(potential.tilt_and_grad(z).grad, 0.3 * grad)
            torch.testing.assert_close(potential.value(z), 0.3 * value + 0.5 * z.square().sum(1))
            torch.testing.assert_close(potential.value_and_grad(z).grad, 0.3 * grad + z)


@pytest.mark.parametrize("steps", [1, 4, 30])
def test_strengths_rise_from_one_over_the_spread_to_one(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, int]] = []
    level = module._Start.level

    def spy(self, potential, count, *, harmonic):
        seen.append((getattr(potential, "strength", 1.0), count))
        assert harmonic is (seen[-1][0] == 1.0)
        level(self, potential, count, harmonic=harmonic)

    monkeypatch.setattr(module._Start, "level", spy)
    z = _prior(200, 4)
    with linear_gaussian().potential() as potential:
        spread = float(potential.tilt(z).std(correction=0))
        found = _start(Mala(), potential, z, steps)
    strengths, counts = zip(*seen, strict=True)
    assert spread > 5
    assert sum(counts) == found.steps == steps
    assert list(strengths) == sorted(strengths)
    assert strengths[-1] == 1
    assert counts[-1] == math.ceil(steps / 3)
    if steps == 30:
        assert strengths == pytest.approx([spread ** (j / LEVELS - 1) for j in range(LEVELS)] + [1.0])
        assert counts == (4, 4, 4, 4, 4, 10)


def test_states_are_those_of_the_full_potential() -> None:
    with linear_gaussian().potential() as potential:
        found = _start(Mala(), potential, _prior(50, 4), 20)
        value, grad = potential.value_and_grad(found.states[0].position)
    torch.testing.assert_close(found.states[0].value, value)
    torch.testing.assert_close(found.states[0].grad, grad)


@pytest.mark.parametrize("sampler", [Imh(), Pt()], ids=["imh", "pt"])
def test_samplers_without_a_step_size_or_with_a_ladder_are_left_alone(sampler: Sampler) -> None:
    with linear_gaussian().potential() as potential:
        found = _start(sampler, potential, _prior(20, 4), 10)
    assert found.sampler is sampler
    assert (found.steps, found.divergences) == (0, 0)


def test_the_same_seeds_make_the_same_start_in_blocks() -> None:
    with two_modes().potential() as potential:
        first, second = (_start(Klmc(), potential, _prior(40, 2), 15, blocks=4) for _ in range(2))
    assert len(first.states) == 4
    for one, other in zip(first.states, second.states, strict=True):
        assert torch.equal(one.position, other.position)
    assert first.sampler.step_size == second.sampler.step_size != Klmc().step_size


def test_a_flat_tilt_keeps_the_step_size_within_its_bounds() -> None:
    with prior_only().potential() as potential:
        sampler = _start(Pcn(), potential, _prior(50, 3), 40).sampler
    assert sampler.rho == pytest.approx(1.0)


def test_nothing_is_done_in_no_steps() -> None:
    with linear_gaussian().potential() as potential:
        assert _start(Mala(), potential, _prior(20, 4), 0).steps == 0


def test_chains_forget_where_they_started() -> None:
    """At beta = 20 chains stay on their side of the wall; after the start, neither well knows where they came from."""
    z = _prior(1000, 3)
    left = z[:, 0] < 0

    def shares(state) -> list[float]:
        now = state.position[:, 0] < 0
        return [float(now[left].double().mean()), float(now[~left].double().mean())]

    with LatentPotential(GEBM(IdentityBase(3), TwoWells()), 20.0) as potential:
        generator = torch.Generator().manual_seed(0)
        quenched = shares(warm_up(Mala(), Mala().init(z, potential, generator), potential, generator, 120).state)
        found = _start(Mala(), potential, z, 60)
        started = shares(warm_up(found.sampler, found.states[0], potential, generator, 60).state)
    assert quenched[0] - quenched[1] > 0.7
    assert abs(started[0] - started[1]) < 0.2


def test_chains_on_cliffs_come_off_them() -> None:
    """The mean acceptance of all chains says that steps are short enough when those on the slopes never move."""
    z = _prior(500, 2)
    with LatentPotential(GEBM(IdentityBase(2), FlatWithCliffs()), 1.0) as potential:
        generator = torch.Generator().manual_seed(0)
        plain = warm_up(Mala(), Mala().init(z, potential, generator), potential, generator, 60).state.position
        found = _start(Mala(), potential, z, 20)
        helped = warm_up(found.sampler, found.states[0], potential, generator, 40).state.position
    edge = 1.5 + 3 / math.sqrt(200)  # three widths of what the slope leaves
    beyond = [float((position[:, 0].abs() > edge).double().mean()) for position in (z, plain, helped)]
    assert beyond[0] > 0.05
    assert beyond[1] > 0.05
    assert beyond[2] < 0.01
