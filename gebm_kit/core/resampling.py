"""Resampling: choose rows of a population by their weights, without waiting for the device.

References:
    Comparison of resampling schemes for particle filtering. R. Douc, O. Cappé, E. Moulines, 2005.
    https://arxiv.org/abs/cs/0507025
"""

from __future__ import annotations

import torch
from torch import Tensor


def multinomial(log_weights: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """Draw ``num`` independent indices k with probability ∝ exp(log_weights_k); (N,) -> (num,) int64.

    A row of weight zero (``-inf``) is never drawn as long as another row has a positive weight.
    """
    points = torch.rand(num, generator=generator, dtype=torch.float64, device=log_weights.device)
    return _inverse(log_weights, points)


def systematic(log_weights: Tensor, generator: torch.Generator, groups: int = 1) -> Tensor:
    """Draw N indices with one uniform number u; (N,) -> (N,) int64.

    Index i is the row whose share of the cumulative weight covers (i + u) / N. Row k appears N w_k / sum(w) times on
    average, and always that number rounded up or down. A row of weight zero is never drawn as long as another has a
    positive weight.

    Args:
        groups: number of equal blocks of rows. Each block is resampled on its own, with its own u.
    """
    blocks = log_weights.unflatten(0, (groups, -1))
    num = blocks.shape[1]
    device = log_weights.device
    shift = torch.rand((groups, 1), generator=generator, dtype=torch.float64, device=device)
    points = (torch.arange(num, dtype=torch.float64, device=device) + shift) / num
    picks = _inverse(blocks, points.clamp(max=1 - torch.finfo(torch.float64).eps))
    return (picks + num * torch.arange(groups, device=device).unsqueeze(1)).flatten()


def _inverse(log_weights: Tensor, points: Tensor) -> Tensor:
    """Return, for each of ``points`` (..., M) in [0, 1), the first index whose normalised cumulative weight exceeds it.

    ``log_weights`` is (..., N), the result (..., M).
    """
    wide = log_weights.double()
    cumulative = (wide - wide.amax(-1, keepdim=True)).exp().cumsum(-1)
    index = torch.searchsorted(cumulative / cumulative[..., -1:], points, right=True)
    return index.clamp(max=log_weights.shape[-1] - 1)  # the clamp acts only when no weight is positive
