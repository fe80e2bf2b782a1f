"""The ends of chains: what a kernel's run leaves behind, to continue it from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from gebm_kit.core.interfaces import Sampler
from gebm_kit.engine.sampling.blocks import Layout
from gebm_kit.engine.sampling.settings import SampleSettings


@dataclass(frozen=True, slots=True)
class Ends:
    """One block's chains: the kernel's state, on the device, and the state of the generator of its further numbers."""

    state: Any
    generator: Tensor


@dataclass(frozen=True, slots=True)
class Chains:
    """Chains at the end of a run, from which `gebm_kit.engine.sampling.continued.continue_chains` continues.

    Attributes:
        sampler: the sampler as warm-up froze it.
        settings: the settings of the run.
        layout: how the chains are cut into blocks.
        length: steps that every chain has made since its prior draw, warm-up included.
        ends: this rank's blocks by their numbers.
    """

    sampler: Sampler
    settings: SampleSettings
    layout: Layout
    length: int
    ends: Mapping[int, Ends]

    def first(self, num_chains: int) -> Chains:
        """Return the first ``num_chains`` chains. Their blocks run on as before, filled up with chains that are not kept."""
        num_blocks = -(-num_chains // self.layout.rows)
        layout = replace(self.layout, chains=num_chains, num_blocks=num_blocks)
        return replace(
            self, layout=layout, ends={number: ends for number, ends in self.ends.items() if number < num_blocks}
        )
