"""The mean acceptance over chains that warm-up tunes a step size by, as sums that add up over blocks.

Proposals that left the support (`Info.impossible`) are left out. Their acceptance is 0 for every step size, because it
depends on where a trajectory ends and not on how well it is integrated. In a harmonic mean, and for trajectories whose
length does not shrink with the step, they would drive the step size to nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gebm_kit.core.interfaces import Info


def acceptance_sums(info: Info, floor: float | None = None) -> Tensor:
    """Sum the acceptance over a block's chains, or its inverse for a harmonic mean; then count the chains; (2,) float64.

    Args:
        info: report of one step; its ``tuning`` takes the acceptance's place.
        floor: least acceptance of a chain in a harmonic mean; None: the mean is arithmetic.
    """
    values = (info.acceptance if info.tuning is None else info.tuning).double()
    if floor is not None:
        values = values.clamp(min=floor).reciprocal()
    counted = torch.ones_like(values)
    if info.impossible is not None:
        values, counted = torch.where(info.impossible, 0.0, values), (~info.impossible).double()
    return torch.stack([values.sum(), counted.sum()])


def mean_acceptance(sums: Tensor, harmonic: bool) -> float:
    """Return the mean from the `acceptance_sums` of all blocks; 0 when every proposal was impossible."""
    total, count = float(sums[0]), float(sums[1])
    if count == 0:
        return 0.0
    return count / total if harmonic else total / count
