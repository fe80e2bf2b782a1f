"""Handling of Ctrl-C and SIGTERM: the state is saved at the next safe point, then `Interrupted` is raised."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from gebm_kit.core.errors import Interrupted


class StopSignals:
    """A handler of SIGINT and SIGTERM: while active, the first signal sets `received`, a second one interrupts at once.

    Outside the main thread, where Python can't install handlers, nothing is intercepted.

    Attributes:
        received: number of the signal, or None.
        immediate: whether the handler itself raises, for phases that have nothing left to save.
        hint: how to resume, for the error.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.immediate = False
        self.hint = ""
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if (
                    signal.getsignal(number) is not signal.SIG_IGN
                ):  # a shell's background job ignores Ctrl-C, and so do we
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    @contextmanager
    def at_once(self, saved: bool = True) -> Iterator[None]:
        """Let a signal interrupt at once inside the block, if everything that matters is ``saved``."""
        self.immediate = saved
        try:
            if saved and self.received is not None:
                raise self.interrupted(f"stopped by {signal.Signals(self.received).name}")
            yield
        finally:
            self.immediate = False

    def interrupted(self, message: str) -> Interrupted:
        """Return the error to raise once the state is saved."""
        return Interrupted(message, signum=self.received or signal.SIGINT, hint=self.hint)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        second = self.received is not None
        self.received = number
        if second or self.immediate:
            raise self.interrupted(f"stopped by {signal.Signals(number).name}")
