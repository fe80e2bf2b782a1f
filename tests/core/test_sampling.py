"""What the kit asks of a sampler's class."""

import pytest

from gebm_kit.core.plugins import installed
from gebm_kit.core.sampling import Sampler


@pytest.mark.parametrize(
    ("family", "coupled", "one_block"),
    [
        ("kernel", False, False),
        ("kernel", True, True),
        ("population", False, True),
        ("population", True, True),
        ("refiner", False, True),
    ],
)
def test_coupled_kernels_populations_and_refiners_need_one_block(family, coupled, one_block):
    class Asked(Sampler):
        pass

    Asked.family, Asked.coupled = family, coupled
    assert Asked.needs_one_block() is one_block


def test_every_registered_sampler_answers_before_it_is_built():
    registry = installed().registry
    kinds = {registry.short_name(record): record.load() for record in registry.of_kind("sampler")}
    whole = {name for name, kind in kinds.items() if kind.needs_one_block()}
    assert {"smc", "sir", "drs", "dot"} <= whole
    assert not whole & {"hmc", "mala", "ula", "pcn"}
