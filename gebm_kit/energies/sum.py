"""Several energies that act together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Annotated

import torch
from torch import Tensor, nn

from gebm_kit.core.classes import is_conditional, own_labels, scored
from gebm_kit.core.components import OfKind
from gebm_kit.core.errors import UsageError, shown
from gebm_kit.core.interfaces import Dataset, Energy, HasFitting, OnCodes


class SumEnergy(Energy):
    """A weighted sum ``E(x) = sum_i w_i E_i(x)`` of energies; (B, *D) -> (B,).

    A trained energy and a scorer, or several scorers, act together: the weights of the base are multiplied,
    ``exp(-E) = prod_i exp(-w_i E_i)``. Training changes the parts that can be trained, and leaves ``pretrained`` and
    ``classifier`` parts as they are. The sum is conditional if a part is; the other parts then ignore the class.

    Args:
        parts: energies on data, each with its parameters.
        weights: one weight for each part, of any sign; null: all 1.

    Raises:
        UsageError: there is no part; a part is an energy on codes; the weights don't fit the parts; conditional parts have
            different numbers of classes.
    """

    def __init__(self, parts: Annotated[list[Energy], OfKind("energy")], weights: list[float] | None = None) -> None:
        super().__init__()
        if not isinstance(parts, list | tuple) or not parts:
            raise UsageError(
                "energy 'sum' needs at least one part", hint="parts: [{name: mlp}, {name: pretrained, ...}]"
            )
        for part in parts:
            if isinstance(part, OnCodes) or not isinstance(part, nn.Module):
                what = "is defined on codes" if isinstance(part, OnCodes) else "is not an energy"
                raise UsageError(f"energy 'sum' adds energies on data, and its part {type(part).__name__} {what}")
        chosen = [1.0] * len(parts) if weights is None else list(weights)
        if len(chosen) != len(parts):
            raise UsageError(f"energy 'sum' has {len(parts)} parts and {len(chosen)} weights; each part needs one")
        if not all(isinstance(w, int | float) and math.isfinite(w) for w in chosen):
            raise UsageError(f"energy 'sum' needs finite weights, got {shown(chosen)}")
        self.parts = nn.ModuleList(parts)
        self.weights = [float(w) for w in chosen]
        self.frozen = all(part.frozen for part in parts)
        counts = {part.num_classes for part in parts if is_conditional(part)}
        if len(counts) > 1:
            seen = " and ".join(sorted(map(str, counts)))
            raise UsageError(f"energy 'sum' has parts with {seen} classes; they must agree")
        self.conditional, self.num_classes = bool(counts), next(iter(counts), None)

    @property
    def fitted(self) -> Tensor:
        """Whether every part that is learned from the data beforehand has been, () bool."""
        return torch.tensor(all(bool(part.fitted) for part in self._learned()))

    def fit(
        self, dataset: Dataset, device: torch.device, seed: int, on_step: Callable[[int, int], None] | None = None
    ) -> None:
        """Fit the parts that are learned from the data beforehand; arguments as in `HasFitting`."""
        for part in self._learned():
            if not part.fitted:
                part.fit(dataset, device, seed, on_step)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        labels = own_labels("energy", self, labels)
        values = [weight * scored(part, x, labels) for weight, part in zip(self.weights, self.parts, strict=True)]
        return torch.stack(values).sum(0)

    def _learned(self) -> Iterator[HasFitting]:
        return (part for part in self.parts if isinstance(part, HasFitting))
