"""Resampling: rows of a population chosen by their weights, without waiting for the device.

References:
    Comparison of resampling schemes for particle filtering. R. Douc, O. Cappé, E. Moulines, 2005.
    https://arxiv.org/abs/cs/0507025
"""

from __future__ import annotations

import torch
from torch import Tensor


def multinomial(log_weights: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """``num`` independent indices k with probability ∝ exp(log_weights_k); (N,) -> (num,) int64.

    A weight of zero, ``-inf``, is never chosen while any other is positive.
    """
    points = torch.rand(num, generator=generator, dtype=torch.float64, device=log_weights.device)
    return _inverse(log_weights, points)


def systematic(log_weights: Tensor, generator: torch.Generator, groups: int = 1) -> Tensor:
    """N indices from one uniform u: those whose share of the cumulative weight covers (i + u) / N; (N,) -> (N,) int64.

    Row k appears N w_k / sum(w) times on average, rounded up or down each time. A weight of zero is never chosen while any
    other is positive.

    Args:
        groups: equal blocks of rows, each of which is resampled by itself, with a uniform of its own.
    """
    blocks = log_weights.unflatten(0, (groups, -1))
    num = blocks.shape[1]
    device = log_weights.device
    shift = torch.rand((groups, 1), generator=generator, dtype=torch.float64, device=device)
    points = (torch.arange(num, dtype=torch.float64, device=device) + shift) / num
    picks = _inverse(blocks, points.clamp(max=1 - torch.finfo(torch.float64).eps))
    return (picks + num * torch.arange(groups, device=device).unsqueeze(1)).flatten()


def _inverse(log_weights: Tensor, points: Tensor) -> Tensor:
    """First index whose normalised cumulative weight exceeds each of ``points`` in [0, 1); shapes (..., N), (..., M)."""
    wide = log_weights.double()
    cumulative = (wide - wide.amax(-1, keepdim=True)).exp().cumsum(-1)
    index = torch.searchsorted(cumulative / cumulative[..., -1:], points, right=True)
    return index.clamp(max=log_weights.shape[-1] - 1)  # reached only when no weight is positive
