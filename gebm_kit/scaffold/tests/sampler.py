"""Tests of the sampler."""

import pytest

from gebm_kit.core.errors import UsageError
from gebm_kit.core.plugins import installed
from gebm_kit.scaffold.examples.sampler import Example
from gebm_kit.testing import check_sampler


def test_it_does_what_every_sampler_must() -> None:
    check_sampler(Example(step_size=0.2))


def test_the_kit_finds_it_by_name() -> None:
    assert installed().registry.get("sampler", "example").load() is Example


def test_a_step_size_of_zero_is_refused() -> None:
    with pytest.raises(UsageError, match="step_size must be a number > 0"):
        Example(step_size=0.0)
