"""Training on several ranks: each computes on its part of every batch, and all make the same update.

A flattened all-reduce averages the gradients after the backward pass. Modules are not wrapped in
DistributedDataParallel: its reducer assumes one forward and one backward pass of one module whose parameters always
require gradients. Here:

- two networks are trained in turn, each while the other is frozen;
- an energy step calls the energy several times, once inside ``torch.autograd.grad`` for a penalty that is differentiated
  again, which that reducer does not support;
- the log-partition is a parameter of neither network;
- `torch.compile` sees plain modules, and their names in a checkpoint are those of one process.

The price is that communication does not overlap with the backward pass.

Gradients are averages over ranks, as in DistributedDataParallel. core/reduce.py has the estimates that go with this: the
log-partition and the importance weights are those of the global batch. Every rank draws random numbers for the global
batch, from generators in the same state. W ranks therefore train what one process trains, up to the rounding of sums.
Other randomness (dropout) differs from rank to rank, and from one process.

References:
    PyTorch Distributed: Experiences on Accelerating Data Parallel Training. S. Li et al., VLDB 2020.
    https://arxiv.org/abs/2006.15704
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gebm_kit.config.schema import Recipe
from gebm_kit.core import reduce
from gebm_kit.core.errors import UsageError
from gebm_kit.core.progress import GebmKitWarning, warn
from gebm_kit.core.seeds import stream
from gebm_kit.engine.process.distributed import Ranks

BUCKET_BYTES = 25 * 2**20
"""Least size of the gradients in one all-reduce, unless fewer are left; DistributedDataParallel's default."""


def check_batches(recipe: Recipe, size: int) -> None:
    """Raise if ``size`` ranks can't share every batch evenly.

    Raises:
        UsageError: they can't; the error names the key, its value, and nearby values that work.
    """
    sizes = {"train.batch_size": recipe.train.batch_size}
    if recipe.train.final.steps and recipe.train.final.batch_size is not None:
        sizes["train.final.batch_size"] = recipe.train.final.batch_size
    for key, rows in sizes.items():
        if rows % size:
            near = [n for n in (rows - rows % size, rows - rows % size + size) if n]
            raise UsageError(
                f"{key}={rows} can't be shared evenly by {size} processes: it is the batch of all of them together",
                hint=f"Set {key}={' or '.join(map(str, near))}, or start another number of processes.",
            )


def check_ranks(recipe: Recipe, device: str | None, ranks: Ranks) -> None:
    """Raise, before anything is built, if the ranks can't train the recipe on this device.

    Raises:
        UsageError: they can't share a batch evenly, or one GPU is named for all of them.
    """
    check_batches(recipe, ranks.size)
    asked = device or recipe.device
    if ranks.size > 1 and asked.startswith("cuda:") and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        raise UsageError(
            f"device {asked} is one GPU, but there are {os.environ['LOCAL_WORLD_SIZE']} processes on this machine",
            hint="Use device cuda or auto: each process takes the GPU of its number.",
        )


@contextmanager
def voice(ranks: Ranks) -> Iterator[None]:
    """Show only the first rank's warnings inside the block: the other ranks give the same ones."""
    with warnings.catch_warnings():
        if ranks.rank > 0:
            warnings.simplefilter("ignore", GebmKitWarning)
        yield


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace every gradient by its mean over the ranks; afterwards all ranks hold the same bits.

    Raises:
        RankLost: another rank is gone.
    """
    if reduce.world_size() == 1:
        return
    for bucket in _buckets(p.grad for p in parameters if p.grad is not None):
        flat = torch.cat([grad.flatten() for grad in bucket])
        reduce.all_reduce(flat)
        flat /= reduce.world_size()
        means = flat.split([grad.numel() for grad in bucket])
        torch._foreach_copy_(bucket, [mean.view_as(grad) for mean, grad in zip(means, bucket, strict=True)])


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Group consecutive tensors of one dtype until they take `BUCKET_BYTES` or more; the last group may be smaller."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and (
            bucket[0].dtype != tensor.dtype or sum(t.numel() * t.element_size() for t in bucket) >= BUCKET_BYTES
        ):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


# --- batch norm ------------------------------------------------------------------------------------------------------
def synchronise_batch_norm(model: nn.Module, device: torch.device, rows: int) -> nn.Module:
    """Return ``model`` with batch norms that normalise over the batch of all ranks, where torch can: on CUDA devices.

    On a CPU each rank normalises its own rows. A warning says that this trains something other than one process does.
    Running statistics are averaged over the ranks (`average_statistics`).

    Args:
        rows: number of rows of the smallest batch on one rank.

    Raises:
        UsageError: a rank would have to normalise over a single row.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if reduce.world_size() == 1 or not norms:
        return model
    if device.type == "cuda":
        synchronised: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return synchronised
    if rows < 2:
        raise UsageError(
            f"batch norm needs more than one row, but each of {reduce.world_size()} processes has {rows} of a batch",
            hint="Raise train.batch_size, start fewer processes, or use a base with another norm.",
        )
    if reduce.rank() == 0:
        warn(
            f"each of the {reduce.world_size()} processes normalises its own {rows} rows of a batch, because batch norm "
            "over the whole batch needs CUDA. The trained model therefore depends on the number of processes; with a base "
            "with norm: layer it does not."
        )
    return model


def average_statistics(model: nn.Module) -> None:
    """Replace batch norms' running statistics by their means over the ranks, where each rank keeps its own.

    Raises:
        RankLost: another rank is gone.
    """
    if reduce.world_size() == 1:
        return
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
            for statistic in (module.running_mean, module.running_var):
                if statistic is not None:
                    reduce.all_reduce(statistic)
                    statistic /= reduce.world_size()


# --- random numbers ------------------------------------------------------------------------------------------
def seed_rank(seed: int, step: int) -> None:
    """Give each of several ranks random numbers of its own for one cycle (dropout).

    Seed, rank and step alone determine them, so a checkpoint need not save them.
    """
    if reduce.world_size() > 1:
        torch.manual_seed(stream(seed, "rank", reduce.rank(), step).initial_seed())
