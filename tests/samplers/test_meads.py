"""Tests of MEADS beyond the properties that all samplers share."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Info
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.engine.sampling.warmup import warm_up
from gebm_kit.samplers.meads import Folds, Meads, MeadsAdaptation, MeadsState, products
from gebm_kit.testing import invariance
from gebm_kit.testing.statistics import ALPHA, chi_square_p_value, confirmed, ks_p_value
from gebm_kit.testing.targets import IdentityBase, QuadraticEnergy, linear_gaussian

COARSE = 0.25
"""On the linear-Gaussian target a step that is refused now and then."""


def _normal(x: object) -> object:
    from scipy.special import ndtr

    return ndtr(x)


def test_momentum_and_level_keep_their_laws() -> None:
    """The laws are N(0, I) and uniform on [-1, 1]. The step is rejected often enough to matter."""
    target = linear_gaussian()

    def failures(seed: int) -> dict[str, float]:
        generator, sampler, accepted = torch.Generator().manual_seed(seed), Meads(COARSE, damping=0.3), []
        with target.potential() as potential:
            state = sampler.init(target.exact(10_000, generator), potential, generator)
            for _ in range(15):
                state, info = sampler.step(state, potential, generator)
                accepted.append(float(info.accepted.double().mean()))
        assert 0.3 < sum(accepted) / 15 < 0.95
        p_values = {f"momentum {i}": ks_p_value(state.momentum[:, i], _normal) for i in range(4)}
        p_values["level"] = chi_square_p_value(state.level, lambda u: (u + 1) / 2)
        return {name: p for name, p in p_values.items() if p < ALPHA / len(p_values)}

    assert not confirmed(failures)


@pytest.mark.parametrize("scale", [None, [0.2, 0.4, 0.1, 0.3]])
@pytest.mark.parametrize("damping", [0.05, 3.0])
def test_exact_with_refusals(damping: float, scale: list[float] | None) -> None:
    sampler = Meads(COARSE, damping)
    if scale is not None:
        sampler = Meads(0.9, damping).tuned(scale=torch.tensor(scale, dtype=torch.float64))
    assert not confirmed(functools.partial(invariance, sampler, linear_gaussian(), tune=False))


def test_a_refusal_turns_the_chain_round_and_keeps_its_level() -> None:
    target, generator = linear_gaussian(), torch.Generator().manual_seed(0)
    sampler = Meads(COARSE, damping=1e-300)  # no refreshment, and no drift of the level
    with target.potential() as potential:
        before = sampler.init(target.exact(2000, generator), potential, generator)
        after, info = sampler.step(before, potential, generator)
    refused: Tensor = ~info.accepted
    assert 0.02 < float(refused.double().mean()) < 0.98
    for name in ("position", "value", "grad"):
        assert torch.equal(getattr(after, name)[refused], getattr(before, name)[refused])
    torch.testing.assert_close(after.momentum[refused], -before.momentum[refused])
    torch.testing.assert_close(after.level[refused], before.level[refused])
    assert bool((after.level.abs() <= 1).all())


@pytest.mark.parametrize("shape", [(3, 5), (7, 2)])
def test_products_are_those_over_pairs(shape: tuple[int, int]) -> None:
    x, y = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pairs = [(i, j) for i in range(shape[0]) for j in range(shape[0]) if i != j]
    expected = [
        sum(float(x[i] @ x[i]) for i in range(shape[0])),
        sum(float(x[i] @ x[j]) ** 2 for i, j in pairs),
        sum(float(y[i] @ y[i]) for i in range(shape[0])),
        sum(float(y[i] @ y[j]) ** 2 for i, j in pairs),
        sum(float(x[i] @ y[j]) * float(y[i] @ y[j]) for i, j in pairs),
    ]
    torch.testing.assert_close(products(x, y), torch.tensor(expected, dtype=torch.float64))


def test_frozen_values_are_those_of_a_known_gaussian() -> None:
    """With correlations C and P = C^-1, h = ½ (tr P² / tr P)^-½ and gamma = (tr C² / tr C)^-½."""
    target, generator = linear_gaussian(6), torch.Generator().manual_seed(0)
    covariance = target.exact(200_000, torch.Generator().manual_seed(1)).T.cov()
    scale = covariance.diagonal().sqrt()
    correlation = covariance / scale / scale.unsqueeze(1)
    precision = torch.linalg.inv(correlation)
    with target.potential() as potential:
        state = Meads().init(target.exact(800, generator), potential, generator)
        sampler = warm_up(Meads(), state, potential, generator, 150).sampler
    assert isinstance(sampler, Meads)
    assert sampler.folds is None
    assert sampler.scale is not None
    torch.testing.assert_close(sampler.scale, scale, rtol=0.1, atol=0)
    h, gamma = ((m.trace() / m.square().sum()).sqrt() for m in (precision, correlation))
    assert sampler.step_size == pytest.approx(float(h) / 2, rel=0.1)
    assert sampler.damping == pytest.approx(float(gamma), rel=0.1)


def test_a_far_start_does_not_shrink_the_step_for_long() -> None:
    """Chains start at the prior; the target's standard deviations go from 1 to 0.01.

    Squared gradients are 10,000 times larger there than in equilibrium.
    """
    precision = torch.diag(torch.logspace(0, 4, 30, dtype=torch.float64) - 1)
    model = GEBM(IdentityBase(30), QuadraticEnergy(precision, torch.zeros(30, dtype=torch.float64)))
    generator = torch.Generator().manual_seed(0)
    with LatentPotential(model) as potential:
        z = torch.randn(100, 30, generator=generator, dtype=torch.float64)
        sampler = warm_up(Meads(), Meads().init(z, potential, generator), potential, generator, 300).sampler
    assert isinstance(sampler, Meads)
    assert sampler.step_size == pytest.approx(0.5, rel=0.15)


def _state(position: Tensor) -> MeadsState:
    return MeadsState(position, position.sum(1), 2 * position, position, position.sum(1))


def test_a_fold_is_tuned_by_the_one_before_it() -> None:
    """Changing the states of fold 0 changes only the parameters of the chains of fold 1."""
    generator, sampler = torch.Generator().manual_seed(0), Meads()
    z = torch.randn(22, 3, generator=generator, dtype=torch.float64)
    moved = z.clone()
    moved[::4] *= 3
    steps = []
    for position in (z, moved):
        adaptation, state = MeadsAdaptation(), _state(position)
        zeros = torch.zeros(22, dtype=torch.float64)
        info = Info(zeros, zeros > 1, zeros > 1, 1)
        sums = adaptation.statistics(sampler, state, state, info)
        assert sums.shape == (4 * (7 + 2 * 3),)
        steps.append(adaptation.update(sampler, sums, 22, 0.1).parameters(z))
    changed = torch.stack([(first != second).any(1) for first, second in zip(*steps, strict=True)]).any(0)
    assert changed.nonzero().flatten().tolist() == list(range(1, 22, 4))


@pytest.mark.parametrize("num_chains", [3, 5])
def test_small_blocks_give_finite_parameters(num_chains: int) -> None:
    """The blocks have fewer than two chains a fold, or fewer chains than folds."""
    adaptation, sampler = MeadsAdaptation(), Meads()
    state = _state(torch.randn(num_chains, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    flags = torch.zeros(num_chains, dtype=torch.bool)
    for _ in range(3):
        sums = adaptation.statistics(sampler, state, state, Info(flags.double(), flags, flags, 1))
        sampler = adaptation.update(sampler, sums, num_chains, 0.5)
        assert isinstance(sampler.folds, Folds)
        assert all(bool(torch.isfinite(field).all()) for field in sampler.folds)
    assert 0 < adaptation.freeze(sampler).step_size <= 1


@pytest.mark.parametrize("arguments", [{"damping": 0.0}, {"num_folds": 1}, {"num_folds": 2.5}])
def test_bad_arguments(arguments: dict) -> None:
    with pytest.raises(UsageError, match=next(iter(arguments))):
        Meads(**arguments)
