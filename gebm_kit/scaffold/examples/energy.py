"""Energy with one hidden layer."""

from __future__ import annotations

import math
from typing import Annotated

from torch import Tensor, nn
from torch.nn.functional import softplus

from gebm_kit.core.components import Injected, Range, check_arguments
from gebm_kit.core.interfaces import Energy


class Example(Energy):
    """Energy with one hidden layer, linear far out.

        E(x) = v · softplus(W x + b), (B, *D) -> (B,).

    It has no output bias, since only E + A is identified, and its gradient does not vanish far from the data.

    Args:
        hidden: width of the hidden layer.
        data_shape: ``*D``, from the dataset.
    """

    def __init__(
        self, hidden: Annotated[int, Range(1, None)] = 128, *, data_shape: Annotated[tuple[int, ...], Injected]
    ) -> None:
        super().__init__()
        check_arguments(self, hidden=hidden)
        self.inner = nn.Linear(math.prod(data_shape), hidden)
        self.outer = nn.Linear(hidden, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Compute E; (B, *D) -> (B,)."""
        values: Tensor = self.outer(softplus(self.inner(x.flatten(1)))).squeeze(1)
        return values
