"""Processes that share one training or sampling: the ranks of torchrun, or a single process.

The ranks exchange bytes on the CPU here, over gloo, whatever their devices; nothing is pickled. (Gradients and
estimates go through core/reduce.py, over NCCL on CUDA devices.) A rank that fails leaves its error in the ranks' store
and closes its connections, which wakes the ranks that wait for it: all of them end with its message. A rank that is
killed leaves no message, and the others report that it is gone.
"""

from __future__ import annotations

import datetime
import functools
import importlib
import json
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from gebm_kit.core import reduce
from gebm_kit.core.attribution import plugin_error
from gebm_kit.core.errors import GebmKitError, Interrupted, RunFailed
from gebm_kit.core.reduce import in_block_order
from gebm_kit.engine.process.torchrun import under_torchrun

RANK_TIMEOUT = datetime.timedelta(days=1)
"""How long ranks wait for one that works alone (metrics, pictures). They learn at once of a rank that ended."""


FAREWELL_SECONDS = 10.0
"""Seconds that a failed rank stays so that the others can read its error."""


ARRIVAL_SECONDS = 900.0
"""Seconds that ranks wait for each other at the beginning."""


_FAILED, _LEFT = "failed", "left"
"""Keys of the store: the error of the rank that failed first, and how many ranks have left since."""


class Ranks:
    """The ranks of a single process; `joined_ranks` gives those of several.

    Attributes:
        rank, size: number of this rank, from 0, and how many ranks there are.
    """

    rank: int = 0
    size: int = 1

    def gather(self, payload: bytes) -> list[bytes]:
        """Return the payloads of all ranks, on every rank. Every rank must call it.

        Raises:
            GebmKitError: another rank failed; it is that rank's error.
        """
        return [payload]

    def wait(self) -> None:
        """Wait until every rank has come here. Every rank must call it.

        Raises:
            GebmKitError: another rank failed; it is that rank's error.
        """
        self.gather(b"")

    def from_first(self, text: str) -> str:
        """Return rank 0's text, on every rank. Every rank must call it."""
        return self.gather(text.encode())[0].decode()

    def broadcast(self, payload: bytes) -> bytes:
        """Return rank 0's payload, on every rank; the other ranks' payloads are ignored. Every rank must call it."""
        return payload

    def agreed(self, number: int) -> int:
        """Return the largest number that any rank passed in the previous call; a single process gets its number back.

        It costs no waiting, because the ranks compare while they continue. Every rank must call it equally often.
        """
        return number

    def poll(self) -> None:
        """Raise the error of a rank that has failed, if one has; call it now and then where nothing is gathered."""

    @contextmanager
    def together(self) -> Iterator[None]:
        """Make all ranks leave the block together: when one fails in it, all fail with the same error."""
        yield

    def mine(self, count: int) -> range:
        """Return which of ``count`` pieces of work this rank does: every ``size``-th."""
        return range(self.rank, count, self.size)

    def sum_over_blocks(self, rows: Sequence[Tensor], num_blocks: int) -> Tensor:
        """Add the rows of all ranks' blocks by `in_block_order`; (K,) float64 on the CPU.

        Args:
            rows: (K,) for each block of this rank. A rank without blocks passes any one row, which is not counted.
        """
        if self.size == 1:
            return in_block_order(rows)
        mine = torch.stack(list(rows)).cpu()
        parts = self.gather(mine.numpy().tobytes() if self.rank < num_blocks else b"")
        found = [torch.from_numpy(np.frombuffer(part).reshape(-1, mine.shape[1]).copy()) for part in parts]
        return in_block_order([found[block % self.size][block // self.size] for block in range(num_blocks)])


ALONE = Ranks()
"""The only rank of a process that shares its work with no other."""


class _Torchrun(Ranks):
    """The ranks of a process group.

    Args:
        group: a group with the gloo backend; None: the default group has it.
        store: a store that the ranks share; None: a failure is sent and noticed in the next exchange.
        work: what the ranks do, for messages.
    """

    def __init__(self, group: Any, store: dist.Store | None, work: str) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._group, self._store, self._work = group, store, work
        self._told = self._teller = False
        self._vote: tuple[Any, Tensor] | None = None

    def gather(self, payload: bytes) -> list[bytes]:
        return self._exchange(payload, failed=False)

    def broadcast(self, payload: bytes) -> bytes:
        size = torch.tensor([len(payload)])
        with self._lost_raises():
            dist.broadcast(size, 0, group=self._group)
            if not int(size):
                return b""
            content = torch.empty(int(size), dtype=torch.uint8)
            if self.rank == 0:
                content = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
            dist.broadcast(content, 0, group=self._group)
        return content.numpy().tobytes()

    def agreed(self, number: int) -> int:
        before, found = self._vote, 0
        with self._lost_raises():
            if before is not None:
                before[0].wait()
                found = int(before[1])
            vote = torch.tensor([number])
            self._vote = (dist.all_reduce(vote, dist.ReduceOp.MAX, group=self._group, async_op=True), vote)
        return found

    def poll(self) -> None:
        error = self._failure()
        if error is not None:
            raise error

    @contextmanager
    def together(self) -> Iterator[None]:
        try:
            yield
            self.wait()
        except reduce.RankLost as error:
            raise self._ending() from error
        except BaseException as error:
            if not self._told:
                first = self._failure()  # the error of this rank may follow from that one
                if first is not None and first.message != getattr(error, "message", None):
                    raise first from error
                if first is None:
                    self._tell(error)
            raise

    def leave(self) -> None:
        """Close the connections after a failure, and stay until the other ranks have read the error,
        or for ten seconds."""
        self._group = self._vote = None
        _close_after_failure()
        if self._store is None:
            return
        with suppress(RuntimeError):
            self._store.add(_LEFT, 1)
            end = time.monotonic() + FAREWELL_SECONDS
            while self._teller and self._store.add(_LEFT, 0) < self.size and time.monotonic() < end:
                time.sleep(0.02)

    def _tell(self, error: BaseException) -> None:
        self._told = True
        if self._store is None:
            with suppress(GebmKitError):
                self._exchange(_described(error, self.rank), failed=True)
        else:
            self._teller = True
            with suppress(RuntimeError):
                self._store.set(_FAILED, _described(error, self.rank).decode())

    def _failure(self) -> GebmKitError | None:
        """Return the error that another rank has left in the store, if any."""
        with suppress(RuntimeError):
            if self._store is not None and not self._told and self._store.check([_FAILED]):
                self._told = True
                return _revived(self._store.get(_FAILED))
        return None

    def _ending(self) -> GebmKitError:
        """Return the error to raise when a collective broke: the other rank's own, or one that says it is gone."""
        error = self._failure()
        self._told = True
        return error or RunFailed(
            f"another rank of this {self._work} is gone",
            hint="Its own message, if any, is above; --resume continues.",
        )

    @contextmanager
    def _lost_raises(self) -> Iterator[None]:
        try:
            with reduce.collective():
                yield
        except reduce.RankLost as error:
            raise self._ending() from error

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
        with self._lost_raises():
            dist.all_gather(parts, tensor, group=self._group)
        return parts


@contextmanager
def joined_ranks(device: torch.device | None = None, work: str = "sampling") -> Iterator[Ranks]:
    """Give the ranks of this training or sampling: torchrun's, those of the caller's process group, or this process
    alone.

    Args:
        device: device of tensors that will be reduced (core/reduce.py); None: the ranks exchange only bytes.
        work: what the ranks do, for messages.
    """
    if not dist.is_available():
        yield ALONE
    elif dist.is_initialized():
        if dist.get_world_size() == 1:
            yield ALONE
            return
        group = None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo", timeout=RANK_TIMEOUT)
        yield _Torchrun(group, None, work)
    elif under_torchrun():
        ranks = _join_torchrun(device, work)
        try:
            yield ranks
        except BaseException:
            ranks.leave()
            raise
        ranks._group = ranks._vote = None
        dist.destroy_process_group()
    else:
        yield ALONE


def _join_torchrun(device: torch.device | None, work: str) -> _Torchrun:
    # torch.distributed.nn has `group.WORLD` as a default argument. When torch imports it after the process group exists
    # (an optimizer does), that default keeps the group, and its threads, alive until the interpreter has gone, which
    # aborts now and then ("terminate called without an active exception").
    importlib.import_module("torch.distributed.nn")
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    shared = dist.PrefixStore("gebm_kit", _store(os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]))
    store = dist.PrefixStore(_met(shared, rank, size), shared)
    if device is None or device.type != "cuda":
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=RANK_TIMEOUT)
        return _Torchrun(None, store, work)
    torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl", store=store, rank=rank, world_size=size)
    return _Torchrun(dist.new_group(backend="gloo", timeout=RANK_TIMEOUT), store, work)


def _met(store: dist.Store, rank: int, size: int) -> str:
    """Agree with the other living processes on a name for their keys in the store.

    torchrun keeps its store when it restarts processes, including the addresses of processes that have ended. The
    living processes therefore write under a name of their own. Each one says hello with a fresh word; rank 0 answers
    with the name until all have confirmed that they know it.

    Raises:
        RunFailed: not all processes came.
    """
    end = time.monotonic() + ARRIVAL_SECONDS
    name, word, missing = uuid.uuid4().hex, uuid.uuid4().hex, set(range(1, size))
    if rank > 0:
        store.set(f"hello/{rank}", word)
    while time.monotonic() < end:
        if rank > 0 and store.check([f"welcome/{word}"]):
            name = store.get(f"welcome/{word}").decode()
            store.set(f"{name}/{rank}", "here")
            return name
        if rank == 0:
            missing = {other for other in missing if not store.check([f"{name}/{other}"])}
            if not missing:
                return name
            for other in missing:
                if store.check([f"hello/{other}"]):  # from this process, or from an ended one, which does no harm
                    store.set(f"welcome/{store.get(f'hello/{other}').decode()}", name)
        time.sleep(0.01)
    raise RunFailed(
        f"of {size} processes, not all have come within {ARRIVAL_SECONDS / 60:.0f} minutes",
        hint="The other processes' messages, if any, are above.",
    )


@functools.cache
def _store(address: str, port: str) -> dist.Store:
    """Return the store where torchrun's processes meet; one for the life of this process."""
    store, _, _ = next(iter(dist.rendezvous("env://")))
    return store


def _close_after_failure() -> None:
    """Close all connections. NCCL's are aborted, because they may have work that never ends."""
    if not dist.is_initialized():
        return
    abort = getattr(dist.distributed_c10d, "_abort_process_group", None)
    with suppress(Exception):
        if "nccl" in str(dist.get_backend_config()) and abort is not None:
            abort()
            return
    with suppress(Exception):
        dist.destroy_process_group()


def _described(error: BaseException, rank: int) -> bytes:
    error = plugin_error(error) or error
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
