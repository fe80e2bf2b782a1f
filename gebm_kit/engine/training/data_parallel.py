"""Training on several ranks: each computes on its part of every batch, and all make the same update.

The gradients are averaged after the backward pass by a flattened all-reduce, not by wrapping modules in
DistributedDataParallel, whose reducer assumes one forward and one backward pass of one module whose parameters always
require gradients. Here two networks are trained in turn, each while the other is frozen; an energy step calls the energy
several times, once inside ``torch.autograd.grad`` for a penalty that is differentiated again, which that reducer does not
support; the log-partition is a parameter of neither network; and `torch.compile` sees plain modules, whose names in a
checkpoint are those of one process. What this gives up is the overlap of communication and backward pass.

The convention is DistributedDataParallel's, an average over ranks (core/reduce.py has the estimates that go with it: the
log-partition and the importance weights are those of the global batch). Random numbers are drawn for the global batch on
every rank, from generators in the same state, so that W ranks train what one process trains, up to the rounding of sums.
What is random in another way (dropout) differs from rank to rank and from one process.

References:
    PyTorch Distributed: Experiences on Accelerating Data Parallel Training. S. Li et al., VLDB 2020.
    https://arxiv.org/abs/2006.15704
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gebm_kit.config.schema import Recipe
from gebm_kit.core import reduce
from gebm_kit.core.errors import UsageError
from gebm_kit.core.progress import GebmKitWarning, warn
from gebm_kit.core.seeds import stream
from gebm_kit.engine.process.distributed import Ranks
from gebm_kit.engine.run_directory.checkpoint import Checkpoint

if TYPE_CHECKING:
    pass


BUCKET_BYTES = 25 * 2**20
"""Gradients in one all-reduce, at least, where there are that many: DistributedDataParallel's default."""


def check_batches(recipe: Recipe, size: int) -> None:
    """Refuse batches that ``size`` ranks can't share evenly.

    Raises:
        UsageError: names the key, its value, and values near it that will do.
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
    """Refuse, before anything is built, what several ranks can't do.

    Raises:
        UsageError: a batch that they can't share evenly; one GPU for all of them.
    """
    check_batches(recipe, ranks.size)
    asked = device or recipe.device
    if ranks.size > 1 and asked.startswith("cuda:") and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        raise UsageError(
            f"device {asked} is one GPU, and there are {os.environ['LOCAL_WORLD_SIZE']} processes on this machine",
            hint="Use device cuda or auto: each process takes the GPU of its number.",
        )


def note_ranks(checkpoint: Checkpoint, ranks: Ranks) -> None:
    """Say so when another number of processes goes on: it is the same training, but for the rounding of sums."""
    before = int(checkpoint.state.get("ranks", 1))
    if before != ranks.size:
        warn(
            f"{checkpoint.path.name} was trained by {_processes(before)}, and {_processes(ranks.size)} go on: the batches "
            "stay the same, but sums are rounded in another order, so the weights will not be the same to the last bit"
        )


def _processes(count: int) -> str:
    return "one process" if count == 1 else f"{count} processes"


@contextmanager
def voice(ranks: Ranks) -> Iterator[None]:
    """Inside the block only the first rank's warnings are shown: those of the others are the same."""
    with warnings.catch_warnings():
        if ranks.rank > 0:
            warnings.simplefilter("ignore", GebmKitWarning)
        yield


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace every gradient by its mean over the ranks; they are the same bits on all of them afterwards.

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
    """Consecutive tensors of one type that take `BUCKET_BYTES` or more together, and what is left."""
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
    """``model`` with batch norms that normalise over the batch of all ranks, where torch can: on CUDA devices.

    On a CPU each rank normalises its own rows, which trains something else than one process does, and a warning says so;
    running statistics are averaged over the ranks (`average_statistics`).

    Args:
        rows: of the smallest batch, on one rank.

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
            f"batch norm needs more than one row, and each of {reduce.world_size()} processes has {rows} of a batch",
            hint="Raise train.batch_size, start fewer processes, or take a base with another norm.",
        )
    if reduce.rank() == 0:
        warn(
            f"each of the {reduce.world_size()} processes normalises its own {rows} rows of a batch: batch norm over all of "
            "them needs CUDA, so what is trained depends on the number of processes. A base with norm: layer has no such "
            "dependence."
        )
    return model


def average_statistics(model: nn.Module) -> None:
    """Make batch norms' running statistics their means over the ranks, where these keep their own.

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
    """Give each of several ranks random numbers of its own for a cycle (dropout), which need not be saved to go on."""
    if reduce.world_size() > 1:
        torch.manual_seed(stream(seed, "rank", reduce.rank(), step).initial_seed())
