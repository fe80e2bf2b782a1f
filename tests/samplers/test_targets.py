"""Tests that the draws, energies and normalising constants of the targets agree."""

from __future__ import annotations

import functools
import math

import pytest
import torch

from gebm_kit.core.tilt import tilt, tilt_and_grad
from gebm_kit.testing import Target, all_targets
from gebm_kit.testing.statistics import ALPHA, confirmed, disagreement, z_p_value
from gebm_kit.testing.targets import PlainPotential, linear_gaussian

TARGETS = {target.name: target for target in all_targets()}


@pytest.mark.parametrize("name", TARGETS)
def test_exact_draws_have_the_stated_projections(name: str) -> None:
    target = TARGETS[name]
    draw = functools.partial(target.exact, 20_000)
    assert not confirmed(lambda seed: disagreement(draw(torch.Generator().manual_seed(seed)), target))


@pytest.mark.parametrize("name", TARGETS)
def test_exact_draws_are_those_of_the_energy(name: str) -> None:
    """By integration by parts E[z_i dU/dz_j] is 1 for i = j and 0 otherwise, and E[dU/dz_j] = 0."""
    target = TARGETS[name]

    def failures(seed: int) -> dict[str, float]:
        z = target.exact(40_000, torch.Generator().manual_seed(seed))
        with target.potential() as potential:
            grad = potential.value_and_grad(z).grad
        ones = torch.cat([torch.ones(len(z), 1, dtype=z.dtype), z], dim=1)
        products = ones.unsqueeze(2) * grad.unsqueeze(1)
        expected = torch.cat([torch.zeros(1, z.shape[1]), torch.eye(z.shape[1])])
        scores = (products.mean(0) - expected) / (products.std(0) / math.sqrt(len(z)))
        p_values = {f"moment {i}": z_p_value(float(score)) for i, score in enumerate(scores.flatten())}
        return {key: p for key, p in p_values.items() if p < ALPHA / len(p_values)}

    assert not confirmed(failures)


@pytest.mark.parametrize("name", TARGETS)
def test_log_partition_is_that_of_the_energy(name: str) -> None:
    """``exp(A) = E_eta[exp(-beta E)]``, by Monte Carlo."""
    target: Target = TARGETS[name]

    def failures(seed: int) -> dict[str, float]:
        z = torch.randn(200_000, target.model.latent_dim, generator=torch.Generator().manual_seed(seed)).double()
        with target.potential() as potential:
            ratio = torch.exp(-potential.tilt(z) - target.log_partition)
        error = float(ratio.mean()) - 1
        p = z_p_value(error / max(float(ratio.std()) / math.sqrt(len(z)), 1e-12))
        return {"mean": p} if p < ALPHA else {}

    assert not confirmed(failures)


def test_every_potential_has_a_tilt() -> None:
    target = linear_gaussian()
    z = target.exact(7, torch.Generator().manual_seed(0))
    with target.potential() as potential:
        plain = PlainPotential(potential)
        torch.testing.assert_close(tilt(plain, z), tilt(potential, z))
        for ours, theirs in zip(tilt_and_grad(plain, z), tilt_and_grad(potential, z), strict=True):
            torch.testing.assert_close(ours, theirs)
