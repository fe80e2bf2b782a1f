"""Tests of the kernels without gradients beyond the properties that all samplers share."""

from __future__ import annotations

import functools
import math

import pytest
import torch

import gebm_kit as gk
from gebm_kit.core.errors import UsageError
from gebm_kit.samplers.elliptical import Elliptical
from gebm_kit.samplers.imh import Imh
from gebm_kit.samplers.isir import Isir
from gebm_kit.samplers.pcn import Pcn
from gebm_kit.samplers.rwm import Rwm
from gebm_kit.testing import invariance
from gebm_kit.testing.statistics import confirmed
from gebm_kit.testing.targets import linear_gaussian, prior_only

pytestmark = pytest.mark.filterwarnings("ignore:the chains have not mixed")

SAMPLERS = {"pcn": Pcn, "rwm": Rwm, "imh": Imh, "elliptical": Elliptical}
BY_THE_PRIOR = [Pcn, Imh, Elliptical, Isir]  # proposals that leave the prior invariant


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_gradient_is_spent_on_chains(name: str) -> None:
    """Only the equipartition check of the draws (one each) and the choice of a block size (six rows) take gradients."""
    found = gk.sample(linear_gaussian().model, name, num_samples=40, num_chains=20, warmup=50, steps=10).diagnostics
    assert (found.sampler, found.grad_evals) == (name, 40 + 6)
    assert found.forward_evals > 0
    assert math.isnan(found.ess_per_grad)
    assert found.as_dict()["ess_per_grad"] is None


@pytest.mark.parametrize("kind", BY_THE_PRIOR)
def test_exact_on_a_potential_that_is_not_split(kind: type) -> None:
    assert not confirmed(functools.partial(invariance, kind(), linear_gaussian(), plain=True))


@pytest.mark.parametrize("kind", [Pcn, Imh, Elliptical])
def test_everything_is_accepted_where_the_tilt_is_flat(kind: type) -> None:
    target, generator, sampler = prior_only(64), torch.Generator().manual_seed(0), kind()
    with target.potential(torch.float32) as potential:
        state = sampler.init(target.exact(300, generator).float(), potential, generator)
        for _ in range(5):
            before = state.position
            state, info = sampler.step(state, potential, generator)
            assert bool(info.accepted.all())
            assert bool((info.acceptance == 1).all())
            assert bool((state.position != before).any(1).all())


@pytest.mark.parametrize("value", [0.0, -0.1, 1.1, math.nan, "0.1", True])
def test_bad_rho(value) -> None:
    with pytest.raises(UsageError, match=r"rho must be a number in \(0, 1\]"):
        Pcn(rho=value)


def test_pcn_is_tuned_to_its_acceptance() -> None:
    warm = gk.sample(linear_gaussian().model, "pcn", num_samples=500, num_chains=500, warmup=200, steps=50).diagnostics
    assert warm.acceptance == pytest.approx(0.25, abs=0.05)
    flat = gk.sample(prior_only().model, "pcn", num_samples=9, warmup=50, steps=5, inverse_temperature=0.0).diagnostics
    assert flat.step_size == pytest.approx(1.0, abs=0.05)
