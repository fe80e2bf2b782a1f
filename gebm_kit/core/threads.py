"""Evaluation of a batch in pieces, in parallel on the threads of a CPU.

An operator on a few hundred rows is too short to be shared among threads: they would wait for one another after every
operator. Here each thread takes whole pieces, forward and backward, with single-threaded operators, and waits only once, at
the end. A piece's result does not depend on which thread computes it, nor on the number of threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import torch

Result = TypeVar("Result")


class OnDevice(Protocol):
    """Something with a device, such as a tensor."""

    @property
    def device(self) -> torch.device: ...


Piece = TypeVar("Piece", bound=OnDevice)


class PieceThreads:
    """A pool of as many threads as torch uses on the CPU, started when it is first needed.

    Gradient mode and other settings of a thread are not passed on to the pool: a mapped function sets its own.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    def map(self, function: Callable[[Piece], Result], pieces: Sequence[Piece]) -> list[Result]:
        """Return ``[function(piece) for piece in pieces]``; the error of the first failed piece is raised once all ended."""
        num_threads = torch.get_num_threads()
        if num_threads == 1 or len(pieces) == 1 or pieces[0].device.type != "cpu":
            return [function(piece) for piece in pieces]
        if self._pool is None:
            self._pool = _pool(num_threads)
        futures = [self._pool.submit(function, piece) for piece in pieces]
        errors = [error for future in futures if (error := future.exception())]
        if errors:
            raise errors[0]
        return [future.result() for future in futures]

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def _pool(num_threads: int) -> ThreadPoolExecutor:
    """Start threads in which each of torch's operators uses one thread."""
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="gebm-kit-piece")
    together = threading.Barrier(num_threads)  # every thread of the pool must call `begin`, none of them twice

    def begin() -> None:
        torch.get_num_threads()  # otherwise the first operator would reset this thread's number
        torch.set_num_threads(1)  # for this thread, and the default of threads started later
        together.wait()

    for future in [pool.submit(begin) for _ in range(num_threads)]:
        future.result()
    torch.set_num_threads(num_threads)  # restores the default of threads started later
    return pool
