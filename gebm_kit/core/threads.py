"""Pieces of one evaluation, side by side on the threads of a CPU.

An operator on a few hundred rows is too short to be shared among threads: they wait for each other after every one of them.
Here each thread takes whole pieces, forward and backward, with operators of one thread, and waits once, at the end. A
piece's result does not depend on which thread computes it, nor on how many there are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


class PieceThreads:
    """As many threads as torch uses on the CPU, made when they are first needed.

    Gradient mode and other settings that belong to a thread are not handed on: what is mapped sets its own.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    def map(self, function: Callable[[Tensor], Result], pieces: Sequence[Tensor]) -> list[Result]:
        """``[function(piece) for piece in pieces]``; the first piece that fails raises, once all have ended."""
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
    """Threads in which torch's operators use one thread each."""
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="gebm-kit-piece")
    together = threading.Barrier(num_threads)  # so that every thread is there, and not one of them twice

    def begin() -> None:
        torch.get_num_threads()  # or the first operator would set this thread's number anew
        torch.set_num_threads(1)  # this thread's operators, and the number that threads of the future begin with
        together.wait()

    for future in [pool.submit(begin) for _ in range(num_threads)]:
        future.result()
    torch.set_num_threads(num_threads)  # for threads of the future
    return pool
