"""Tests of the feature map."""

import torch

from gebm_kit.core.interfaces import Dataset, Split, SplitName
from gebm_kit.core.plugins import installed
from gebm_kit.scaffold.examples.features import Example
from gebm_kit.testing import check_features


class Cube(Dataset):
    data_shape, value_range = (3,), (0.0, 1.0)

    def split(self, name: SplitName) -> Split:
        raise NotImplementedError


def test_it_does_what_every_feature_map_must() -> None:
    check_features(Example())


def test_the_kit_finds_it_by_name() -> None:
    assert installed().registry.get("features", "example").load() is Example


def test_the_checksum_is_that_of_the_weights() -> None:
    maps = [Example(num_features=5, seed=seed) for seed in (1, 1, 2)]
    for features in maps:
        features.fit(Cube(), torch.device("cpu"))
    first, again, other = (features.checksum for features in maps)
    assert first == again != other
    assert maps[0](torch.rand(7, 3)).shape == (7, 5)
