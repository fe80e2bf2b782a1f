"""Energy distance between draws and data."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.interfaces import EvalContext, Metric


class Example(Metric):
    """Energy distance between draws and data, the root of

        D² = 2 mean |x_i - y_j| - mean |x_i - x_j| - mean |y_i - y_j|, (N, *D), (M, *D) -> a float.

    It is zero for two equal sets. Like every distance between finite samples it is biased upwards: compare it with the
    value of held-out data of the same size.

    Args:
        max_rows: most draws, and most rows of data, that are compared; larger sets are thinned at random.

    References:
        Energy statistics: A class of statistics based on distances. G. J. Székely, M. L. Rizzo, JSPI 143, 2013.
        https://doi.org/10.1016/j.jspi.2013.03.018
    """

    lower_is_better = True
    least_rows = 2

    def __init__(self, max_rows: Annotated[int, Range(2, None)] = 2000) -> None:
        check_arguments(self, max_rows=max_rows)
        self.max_rows = max_rows

    def __call__(self, context: EvalContext) -> dict[str, float]:
        """Compute the distance; a metric with one value names it as the component is named."""
        x, y = (self._thinned(rows, context.generator) for rows in (context.samples, context.reference))
        squared = 2 * _mean_distance(x, y) - _mean_distance(x, x) - _mean_distance(y, y)
        return {"example": float(squared.clamp(min=0).sqrt())}

    def protocol(self, context: EvalContext) -> dict[str, Any]:
        """Return what the value depends on."""
        return {**super().protocol(context), "max_rows": self.max_rows}

    def _thinned(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Return at most ``max_rows`` rows, flattened, (N, prod D) float64."""
        if len(rows) > self.max_rows:
            chosen = torch.randperm(len(rows), generator=generator, device=generator.device)[: self.max_rows]
            rows = rows[chosen.to(rows.device)]
        return rows.flatten(1).double()


def _mean_distance(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").mean()
