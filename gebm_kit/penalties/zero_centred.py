"""The penalties R1 and R2: squared gradient norms of the energy on data, and on base draws or the model's own draws.

References:
    Which Training Methods for GANs do actually Converge? L. Mescheder, A. Geiger, S. Nowozin, ICML 2018.
    https://arxiv.org/abs/1801.04406
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from gebm_kit.core import reduce
from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Batch, Energy, SlopePenalty
from gebm_kit.penalties.gradient import squared_gradient_norm


class _ZeroCentred(SlopePenalty):
    """The arguments and the formula of R1 and R2."""

    serves_classes = True

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
        return self.of_slopes(squared_gradient_norm(energy, batch.x, batch.labels))


class R2(_ZeroCentred):
    """The gradient penalty on base draws, ``(weight / 2) E_B[|grad E|^2]``; weight is the paper's gamma.

    With ``at: negatives`` it acts on the states of the chains instead, ``(weight / 2) E_neg[|grad E|^2]``: where the model's
    own draws go, which base draws may never reach. The energy's updates must then draw negatives, by ``train.negatives``
    or by a loss such as pcd.

    Args:
        weight: gamma.
        every: energy steps from one evaluation to the next. The engine multiplies the penalty by this number, so its mean
            force stays the same.
        at: whose points the penalty acts on.

    Raises:
        UsageError: an argument is outside its range; at evaluation, the batch has no negatives.
    """

    def __init__(
        self,
        weight: Annotated[float, Range(0, None)] = 1.0,
        every: Annotated[int, Range(1, None)] = 1,
        at: Literal["base", "negatives"] = "base",
    ) -> None:
        super().__init__(weight, every)
        self.at = "x_base" if at == "base" else "negatives"
        self.needs = frozenset({"x_base"} if at == "base" else {"negatives"})

    def forward(self, energy: Energy, batch: Batch, generator: torch.Generator) -> Tensor:
        labels = batch.base_labels if self.at == "x_base" else None
        return self.of_slopes(squared_gradient_norm(energy, points_of(batch, self.at), labels))


def points_of(batch: Batch, at: str) -> Tensor:
    """Return the points of a batch that a penalty acts on, (B, *D), without gradient.

    Raises:
        UsageError: the penalty acts on negatives, and the batch has none.
    """
    if at == "x_base":
        return batch.x_base.detach()
    if batch.negatives is None:
        raise UsageError(
            "the penalty acts on negatives, and the batch has none",
            hint="Set train.negatives.share above 0, use a loss with chains such as pcd, or set the penalty's at to base.",
        )
    return batch.negatives.detach()
