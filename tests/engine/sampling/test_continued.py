"""Continued runs: the same draws as one longer run."""

from __future__ import annotations

import pytest
import torch

from gebm_kit.core.interfaces import Sampler
from gebm_kit.core.model import GEBM
from gebm_kit.engine.sampling.continued import continue_chains
from gebm_kit.engine.sampling.draw import draw
from gebm_kit.engine.sampling.settings import SampleSettings
from gebm_kit.samplers.chees import Chees
from gebm_kit.samplers.hmc import Hmc
from gebm_kit.samplers.isir import Isir
from gebm_kit.samplers.mclmc import Mclmc
from gebm_kit.samplers.pt import Pt
from gebm_kit.testing.targets import IdentityBase, TwoModesEnergy


def model() -> GEBM:
    return GEBM(IdentityBase(2), TwoModesEnergy(torch.tensor([1.5, 0.0])))


def settings(steps: int, **given: int) -> SampleSettings:
    values = {"num_samples": 48, "num_chains": 24, "warmup": 12, "thin": 2, "seed": 4, "block_size": 10} | given
    return SampleSettings(steps=steps, **values)


@pytest.mark.parametrize("sampler", [Hmc(), Chees(), Isir(), Mclmc(), Pt()])
def test_a_continued_run_ends_where_one_long_run_ends(sampler: Sampler) -> None:
    short = draw(model(), sampler, settings(5), keep_chains=True)
    assert short.chains is not None
    assert short.chains.length == 17
    middle = continue_chains(model(), short.chains, 7, 48)
    assert middle.chains is not None
    assert middle.chains.length == 24
    end = continue_chains(model(), middle.chains, 9, 48)
    whole = draw(model(), sampler, settings(21))
    assert torch.equal(end.z, whole.z)
    assert torch.equal(end.x, whole.x)
    assert torch.equal(end.chain, whole.chain)
    assert not torch.equal(middle.z, whole.z)


def test_chains_can_be_continued_twice_from_one_place() -> None:
    ends = draw(model(), Hmc(), settings(5), keep_chains=True).chains
    assert ends is not None
    assert torch.equal(continue_chains(model(), ends, 6, 24).z, continue_chains(model(), ends, 6, 24).z)


def test_the_first_chains_go_the_same_way_alone() -> None:
    whole = draw(model(), Hmc(), settings(5), keep_chains=True).chains
    assert whole is not None
    all_of_them = continue_chains(model(), whole, 6, 24)
    first = continue_chains(model(), whole.first(13), 6, 13)
    assert torch.equal(first.z, all_of_them.z[:13])
    assert first.chain.tolist() == list(range(13))


def test_chains_are_kept_only_where_they_are_asked_for() -> None:
    assert draw(model(), Hmc(), settings(5)).chains is None
