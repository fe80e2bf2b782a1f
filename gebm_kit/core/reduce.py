"""Reductions over the batch that are global under torch.distributed and plain in a single process.

Losses use these so that an estimate such as a log-mean-exp is that of the global batch (averaging per-rank estimates is
wrong). Gradients follow the convention of DistributedDataParallel, which averages gradients over ranks: with
W ranks the local gradient is W times the derivative of the global value, so that the average is the derivative itself.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of ranks; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _GlobalLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        top = values.max()
        dist.all_reduce(top, op=dist.ReduceOp.MAX)
        top = torch.where(torch.isfinite(top), top, torch.zeros_like(top))  # inf - inf would make nan of a plain inf
        total = torch.exp(values - top).sum()
        dist.all_reduce(total)
        result = top + total.log()
        ctx.save_for_backward(values, result)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        values, result = ctx.saved_tensors
        return grads[0] * world_size() * torch.exp(values - result)


def logsumexp(values: Tensor) -> Tensor:
    """``log sum_i exp(values_i)`` over the global batch; values: (B,), result: ()."""
    if world_size() == 1:
        return torch.logsumexp(values, dim=0)
    return _GlobalLogSumExp.apply(values)


def log_mean_exp(values: Tensor) -> Tensor:
    """``log (1/N) sum_i exp(values_i)`` over the global batch of N; values: (B,), result: ()."""
    return logsumexp(values) - math.log(values.shape[0] * world_size())


def mean(values: Tensor) -> Tensor:
    """Mean over the global batch (every rank holds equally many), differentiable in DDP's convention; result: ()."""
    local = values.mean()
    if world_size() == 1:
        return local
    total = local.detach().clone()
    dist.all_reduce(total)
    return local + (total / world_size() - local.detach())


def softmax_weights(log_weights: Tensor) -> Tensor:
    """``softmax`` over the global batch, without gradient; (B,) -> (B,). The weights of all ranks sum to 1."""
    log_weights = log_weights.detach()
    return torch.exp(log_weights - logsumexp(log_weights))


def gather(values: Tensor) -> Tensor:
    """Rows of every rank, in rank order, without gradient; (B, ...) -> (W B, ...)."""
    values = values.detach()
    if world_size() == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)
