"""The penalties R1 and R2: squared gradient norms of the energy on data and on base draws.

References:
    Which Training Methods for GANs do actually Converge? L. Mescheder, A. Geiger, S. Nowozin, ICML 2018.
    https://arxiv.org/abs/1801.04406
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from gebm_kit.core import reduce
from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Batch, Energy, SlopePenalty
from gebm_kit.penalties.gradient import squared_gradient_norm


class _ZeroCentred(SlopePenalty):
    """The arguments and the formula of R1 and R2."""

    def __init__(
        self, weight: Annotated[float, Range(0, None)] = 1.0, every: Annotated[int, Range(1, None)] = 1
    ) -> None:
        super().__init__()
        check_arguments(self, weight=weight, every=every)
        self.weight = float(weight)
        self.every = every

    def of_slopes(self, squared: Tensor) -> Tensor:
        return 0.5 * self.weight * reduce.mean(squared)


class R1(_ZeroCentred):
    """The gradient penalty on data, ``(weight / 2) E_P[|grad E|^2]``; weight is the paper's gamma.

    Args:
        weight: gamma; the paper uses 10 for images in [-1, 1] and a logistic loss.
        every: energy steps from one evaluation to the next. The engine multiplies the penalty by this number, so its mean
            force stays the same.
    """

    at = "x"

    def forward(self, energy: Energy, batch: Batch, generator: torch.Generator) -> Tensor:
        if batch.x is None:
            raise UsageError("the r1 penalty needs data, and the batch has none")
        return self.of_slopes(squared_gradient_norm(energy, batch.x))


class R2(_ZeroCentred):
    """The gradient penalty on base draws, ``(weight / 2) E_B[|grad E|^2]``; weight is the paper's gamma.

    Args:
        weight: gamma.
        every: energy steps from one evaluation to the next. The engine multiplies the penalty by this number, so its mean
            force stays the same.
    """

    at = "x_base"

    def forward(self, energy: Energy, batch: Batch, generator: torch.Generator) -> Tensor:
        return self.of_slopes(squared_gradient_norm(energy, batch.x_base))
