"""Squared energies of data and base draws."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from gebm_kit.core import reduce
from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.interfaces import Batch, Energy, Penalty


class Example(Penalty):
    """Squared energies of data and base draws, which keep E near zero.

        weight (E_P[E(x)²] + E_B[E(x_base)²]), a scalar, ().

    Args:
        weight: factor of the penalty.
        every: number of energy steps from one evaluation to the next; the engine multiplies by it.

    References:
        Implicit Generation and Modeling with Energy-Based Models. Y. Du, I. Mordatch, NeurIPS 2019.
        https://arxiv.org/abs/1903.08689
    """

    needs = frozenset({"x", "x_base"})

    def __init__(
        self, weight: Annotated[float, Range(0, None)] = 0.01, every: Annotated[int, Range(1, None)] = 1
    ) -> None:
        super().__init__()
        check_arguments(self, weight=weight, every=every)
        self.weight, self.every = weight, every

    def forward(self, energy: Energy, batch: Batch, generator: torch.Generator) -> Tensor:
        """Compute the weighted penalty, (); random numbers, if it needs any, come from ``generator``."""
        assert batch.x is not None
        on_data, on_base = energy(batch.x), energy(batch.x_base)
        return self.weight * (reduce.mean(on_data.square()) + reduce.mean(on_base.square()))
