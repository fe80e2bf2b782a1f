"""Tests of the dataset."""

import torch

from gebm_kit.core.plugins import installed
from gebm_kit.scaffold.examples.dataset import Example
from gebm_kit.testing import check_dataset


def test_it_does_what_every_dataset_must() -> None:
    check_dataset(Example(num_train=200, num_valid=50, num_test=50))


def test_the_kit_finds_it_by_name() -> None:
    assert installed().registry.get("dataset", "example").load() is Example


def test_a_seed_gives_the_same_points_again() -> None:
    first, again, other = (Example(seed=seed).split("test").first(10) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
