"""Two-state bridge sampling: the log-partition from draws of both the base and the model.

References:
    Simulating ratios of normalizing constants via a simple identity: a theoretical exploration. X.-L. Meng, W. H. Wong,
    Statistica Sinica 1996. https://www3.stat.sinica.edu.tw/statistica/j6n4/j6n43/j6n43.htm
    Efficient estimation of free energy differences from Monte Carlo data. C. H. Bennett, Journal of Computational Physics
    1976. https://doi.org/10.1016/0021-9991(76)90078-4
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gebm_kit.core.estimators import log_mean_exp

NEWTON_STEPS = 30
"""Most Newton steps. The function is nearly linear in A, so five steps are usual."""


@dataclass(frozen=True, slots=True)
class Bridge:
    """Estimates of A from both sides.

    Attributes:
        value, se: the bridge's estimate, and its standard error over the groups.
        overlap: Kish's effective number of draws that carry the sum, on the base's side or the model's, whichever is
            smaller. When it is small, base and model do not overlap, and neither value nor error means anything.
        forward: ``log mean_G exp(-tilt)`` over base draws, which tends to be too low.
        reverse: ``-log mean_Q exp(tilt)`` over model draws, which tends to be too high.
    """

    value: float
    se: float
    forward: float
    reverse: float
    overlap: float


def bridge(base: Tensor, model: Tensor, effective: float | None = None) -> Bridge:
    """Estimate A by solving

        sum_G sigma(s) = (n_Q / M) sum_Q sigma(-s),    s = -tilt - A + log(n_Q / n_G),

    where sigma is the logistic function, G are the base draws and Q the M model draws. Among all bridge functions this one
    has the least variance when n_Q counts independent draws; any n_Q is consistent. The error comes from the groups'
    contributions h_r to the difference of the two sides, ``se = sqrt(R / (R - 1) sum_r h_r²) / |d sum_r h_r / dA|``.

    Args:
        base: ``beta E`` of base draws, (R, N) in R independent groups, float64.
        model: ``beta E`` of model draws, (R, M) in R independent groups, float64.
        effective: n_Q, the number of independent draws that the model draws are worth; None: all of them.
    """
    base, model = base.clamp(max=1e300), model.clamp(max=1e300)  # an infinite energy is a weight of zero
    num_base, num_model = base.numel(), model.numel()
    share = 1.0 if effective is None else min(max(effective, 1.0) / num_model, 1.0)
    forward, reverse = log_mean_exp(-base.flatten()), -log_mean_exp(model.flatten())
    offset = math.log(share * num_model / num_base)
    value = 0.5 * (forward + reverse)
    for _ in range(NEWTON_STEPS):
        rise = _logit(base, value, offset), _logit(model, value, offset)
        left = torch.logsumexp(torch.nn.functional.logsigmoid(rise[0]).flatten(), 0)
        right = torch.logsumexp(torch.nn.functional.logsigmoid(-rise[1]).flatten(), 0) + math.log(share)
        slope = _weighted(torch.sigmoid(-rise[0]), rise[0]) + _weighted(torch.sigmoid(rise[1]), -rise[1])
        change = (left - right) / slope.clamp(min=0.05)
        value = value + change
        if abs(float(change)) < 1e-10:
            break
    low, high = torch.sigmoid(_logit(base, value, offset)), torch.sigmoid(-_logit(model, value, offset))
    overlap = min(float(side.sum() ** 2 / side.square().sum()) for side in (low, high))
    groups = low.sum(1) - share * high.sum(1)
    slope = (low * (1 - low)).sum() + share * (high * (1 - high)).sum()
    num = len(groups)
    se = math.sqrt(num / (num - 1)) * float(groups.norm() / slope) if num > 1 else math.nan
    return Bridge(float(value), se, float(forward), float(reverse), overlap)


def _logit(tilt: Tensor, value: Tensor, offset: float) -> Tensor:
    """Compute s of `bridge` at A = ``value``."""
    return -tilt - value + offset


def _weighted(values: Tensor, logits: Tensor) -> Tensor:
    """Compute the mean of ``values`` with weights sigma(logits): the absolute slope of a log-sum of sigmas."""
    log_weights = torch.nn.functional.logsigmoid(logits).flatten()
    return (torch.softmax(log_weights, 0) * values.flatten()).sum()
