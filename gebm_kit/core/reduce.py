"""Reductions over the batch that are global under torch.distributed and plain in a single process.

Losses use these so that an estimate such as a log-mean-exp is computed from the global batch; averaging per-rank
estimates would be wrong. Gradients follow the convention of DistributedDataParallel, which averages gradients over
ranks: with W ranks the local gradient is W times the derivative of the global value, so that the average is the
derivative itself. Every result is the same to the last bit on all ranks, so whatever is learned from it is the same on
all of them.

Every rank draws the same random numbers, for the global batch, and takes its own rows of them (`share`). A batch over
several ranks therefore equals the batch of one process.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Return the number of ranks; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the rank of this process; 0 without torch.distributed."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class RankLost(RuntimeError):
    """A collective failed: another rank has ended, or can't be reached."""


@contextmanager
def collective() -> Iterator[None]:
    """Turn what torch.distributed raises inside the block into `RankLost`."""
    try:
        yield
    except RuntimeError as error:
        raise RankLost(str(error).partition("\n")[0]) from error


def all_reduce(tensor: Tensor, op: Any = None) -> None:
    """Sum over the ranks, or apply another of torch's ``ReduceOp``, in place. A process alone keeps its value.

    Raises:
        RankLost: another rank is gone.
    """
    if world_size() > 1:
        with collective():
            dist.all_reduce(tensor, dist.ReduceOp.SUM if op is None else op)


class _GlobalLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        top = values.max()
        all_reduce(top, dist.ReduceOp.MAX)
        top = torch.where(torch.isfinite(top), top, torch.zeros_like(top))  # inf - inf would make nan of a plain inf
        total = torch.exp(values - top).sum()
        all_reduce(total)
        result = top + total.log()
        ctx.save_for_backward(values, result)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        values, result = ctx.saved_tensors
        return grads[0] * world_size() * torch.exp(values - result)


def logsumexp(values: Tensor) -> Tensor:
    """Compute ``log sum_i exp(values_i)`` over the global batch; values: (B,), result: ()."""
    if world_size() == 1:
        return torch.logsumexp(values, dim=0)
    return _GlobalLogSumExp.apply(values)


def log_mean_exp(values: Tensor) -> Tensor:
    """Compute ``log (1/N) sum_i exp(values_i)`` over the global batch of N; values: (B,), result: ()."""
    return logsumexp(values) - math.log(values.shape[0] * world_size())


class _GlobalMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.shape = values.shape
        total = values.sum()
        all_reduce(total)
        return total / (values.numel() * world_size())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return (grads[0] / math.prod(ctx.shape)).expand(ctx.shape)


def mean(values: Tensor) -> Tensor:
    """Average over the global batch, differentiable in DDP's convention; result: ().

    Every rank holds equally many values.
    """
    return values.mean() if world_size() == 1 else _GlobalMean.apply(values)


def maximum(value: Tensor) -> Tensor:
    """Return the largest of the ranks' values, without gradient; () -> ()."""
    if world_size() == 1:
        return value
    largest = value.detach().clone()
    all_reduce(largest, dist.ReduceOp.MAX)
    return largest


def softmax_weights(log_weights: Tensor) -> Tensor:
    """Compute ``softmax`` over the global batch, without gradient; (B,) -> (B,). The weights of all ranks sum to 1."""
    log_weights = log_weights.detach()
    return torch.exp(log_weights - logsumexp(log_weights))


def gather(values: Tensor) -> Tensor:
    """Collect the rows of every rank, in rank order, without gradient; (B, ...) -> (W B, ...)."""
    values = values.detach()
    if world_size() == 1:
        return values
    values = values.contiguous()
    parts = [torch.empty_like(values) for _ in range(world_size())]
    with collective():
        dist.all_gather(parts, values)
    return torch.cat(parts)


def share(rows: Tensor) -> Tensor:
    """Return this rank's part of rows that all ranks hold: the r-th of W equal parts; (W B, ...) -> (B, ...).

    Raises:
        ValueError: the rows can't be shared evenly.
    """
    if world_size() == 1:
        return rows
    count, rest = divmod(rows.shape[0], world_size())
    if rest:
        raise ValueError(f"{rows.shape[0]} rows can't be shared evenly by {world_size()} ranks")
    return rows[rank() * count : (rank() + 1) * count]


def rand_rows(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw uniform numbers on [0, 1), one for each row of ``like``, as a single process would; (B, *D) -> (B, 1, ...).

    The generator must be in the same state on all ranks, and is afterwards.
    """
    shape = (like.shape[0] * world_size(),) + (1,) * (like.ndim - 1)
    return share(torch.rand(shape, generator=generator, device=generator.device, dtype=like.dtype)).to(like.device)


def randn_like(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw standard normal numbers of the shape of ``like``, (B, *D), as a single process would; see `rand_rows`."""
    shape = (like.shape[0] * world_size(), *like.shape[1:])
    return share(torch.randn(shape, generator=generator, device=generator.device, dtype=like.dtype)).to(like.device)


def in_block_order(rows: Sequence[Tensor]) -> Tensor:
    """Add the blocks' vectors, (K,), one after another, on the CPU; reads the device once."""
    total, *rest = torch.stack(list(rows)).cpu().unbind()
    for row in rest:
        total = total + row
    return total
