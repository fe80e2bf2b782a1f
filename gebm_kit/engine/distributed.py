"""Processes that share one sampling: the ranks of torchrun, or the only process there is.

What passes between ranks are bytes on the CPU, over gloo, whatever the device of each; nothing is pickled. A rank that fails
says so in the next exchange, so that all end with its message and none waits for it in vain.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from gebm_kit.core.errors import GebmKitError, Interrupted, RunFailed
from gebm_kit.engine.warmup import in_block_order

_FAILED = "gebm_kit_sampling_failed"


class Ranks:
    """A process alone; see `joined` for several.

    Attributes:
        rank, size: which of how many this is.
    """

    rank: int = 0
    size: int = 1

    def gather(self, payload: bytes) -> list[bytes]:
        """The payloads of all ranks, on every rank. Every rank must call it.

        Raises:
            GebmKitError: another rank failed; it is that rank's error.
        """
        return [payload]

    def from_first(self, text: str) -> str:
        """What the first rank says, on every rank."""
        return self.gather(text.encode())[0].decode()

    def poll(self) -> None:
        """Raises the error of a rank that failed meanwhile, if one did; call it now and then where nothing is gathered."""

    @contextmanager
    def together(self) -> Iterator[None]:
        """Leave the block together: when one rank fails in it, all do, with the same error."""
        yield

    def mine(self, count: int) -> range:
        """Which of ``count`` pieces of work are this rank's: every ``size``-th."""
        return range(self.rank, count, self.size)

    def sum_over_blocks(self, rows: Sequence[Tensor], num_blocks: int) -> Tensor:
        """`in_block_order` of every rank's blocks; (K,) float64 on the CPU.

        Args:
            rows: (K,) for each block of this rank; of a rank without blocks any one row, which is not counted.
        """
        if self.size == 1:
            return in_block_order(rows)
        mine = torch.stack(list(rows)).cpu()
        parts = self.gather(mine.numpy().tobytes() if self.rank < num_blocks else b"")
        found = [torch.from_numpy(np.frombuffer(part).reshape(-1, mine.shape[1]).copy()) for part in parts]
        return in_block_order([found[block % self.size][block // self.size] for block in range(num_blocks)])


ALONE = Ranks()


class _Torchrun(Ranks):
    """The ranks of a process group.

    Args:
        group: of backend gloo; None: the default group, if it is.
        store: shared by the ranks; None: failures are noticed at the next exchange only.
    """

    def __init__(self, group: Any, store: dist.Store | None) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._group, self._store = group, store
        self._told = False

    def gather(self, payload: bytes) -> list[bytes]:
        return self._exchange(payload, failed=False)

    def poll(self) -> None:
        if self._store is not None and self._store.check([_FAILED]):
            self.gather(b"")

    @contextmanager
    def together(self) -> Iterator[None]:
        try:
            yield
            self.gather(b"")
        except BaseException as error:
            if not self._told:
                self._told = True
                if self._store is not None:
                    self._store.set(_FAILED, str(self.rank))
                with suppress(GebmKitError):
                    self._exchange(_described(error, self.rank), failed=True)
            raise

    def _exchange(self, payload: bytes, *, failed: bool) -> list[bytes]:
        sizes = self._all(torch.tensor([len(payload), failed], dtype=torch.int64))
        longest = max(int(size[0]) for size in sizes)
        if longest:
            padded = torch.zeros(longest, dtype=torch.uint8)
            padded[: len(payload)] = torch.frombuffer(bytearray(payload or b"\0"), dtype=torch.uint8)[: len(payload)]
            parts = self._all(padded)
            found = [part[: int(size[0])].numpy().tobytes() for part, size in zip(parts, sizes, strict=True)]
        else:
            found = [b""] * self.size
        for size, part in zip(sizes, found, strict=True):
            if bool(size[1]) and not failed:
                self._told = True
                raise _revived(part)
        return found

    def _all(self, tensor: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        try:
            dist.all_gather(parts, tensor, group=self._group)
        except RuntimeError as error:
            self._told = True
            raise RunFailed(
                "another rank of this sampling is gone",
                hint="What it said, if anything, stands above; --resume goes on.",
            ) from error
        return parts


@contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks of this sampling: torchrun's, or of a process group that the caller has made; else this process alone."""
    if not dist.is_available():
        yield ALONE
    elif dist.is_initialized():
        if dist.get_world_size() == 1:
            yield ALONE
            return
        group = None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
        yield _Torchrun(group, None)
    elif under_torchrun():
        store, rank, size = next(iter(dist.rendezvous("env://")))
        dist.init_process_group("gloo", store=dist.PrefixStore("gebm_kit", store), rank=rank, world_size=size)
        try:
            yield _Torchrun(None, store)
        finally:
            dist.destroy_process_group()
    else:
        yield ALONE


def under_torchrun() -> bool:
    """Whether the environment says that this process is one of several."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def first_rank() -> bool:
    """Whether this process is the one that writes and prints what all have in common."""
    return not under_torchrun() or os.environ["RANK"] == "0"


def local_device(device: torch.device | str | None) -> torch.device | str | None:
    """``device``, and where that leaves the choice among GPUs (``auto``, ``cuda``) the one of this rank."""
    if under_torchrun() and str(device) in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return device


def _described(error: BaseException, rank: int) -> bytes:
    if isinstance(error, GebmKitError):
        found = {"message": error.message, "hint": error.hint, "exit_code": error.exit_code, "code": error.code}
    else:
        found = {"message": f"rank {rank} failed: {type(error).__name__}: {error}", "hint": "", "exit_code": 1}
    return json.dumps(found).encode()


def _revived(payload: bytes) -> GebmKitError:
    found = json.loads(payload)
    code = found.get("code", RunFailed.code)
    if code == Interrupted.code:
        return Interrupted(found["message"], signum=found["exit_code"] - 128, hint=found["hint"])
    error = RunFailed(found["message"], hint=found["hint"])
    error.exit_code, error.code = found["exit_code"], code
    return error
