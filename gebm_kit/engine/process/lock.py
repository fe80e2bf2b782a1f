"""One process at a time trains in a run directory.

The lock is the operating system's (``flock``) on the file ``.lock``, held as long as the process lives: a killed process
leaves none, and nothing has to be cleaned up. That file is also the first thing in a new run directory: by it, one whose
making was interrupted is told from a directory of the user's.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path
from types import TracebackType

from gebm_kit.core.errors import UsageError
from gebm_kit.core.files import writing

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps two processes apart
    fcntl = None  # type: ignore[assignment, unused-ignore]


LOCK = ".lock"
"""Name of the locked file in a run directory."""

LOCK_SECONDS = 1.0
"""Seconds that a lock is asked for: whoever lists runs holds a shared one for an instant."""


class RunLock:
    """Holds at most one run directory from `hold` to the end of the ``with`` block.

    Args:
        active: False: do nothing (of several ranks, the first one alone holds it).
        work, hint: what another process that holds it is doing there, and what can be done about that.
    """

    def __init__(
        self,
        *,
        active: bool = True,
        work: str = "training in",
        hint: str = "Wait for it or stop it (Ctrl-C or SIGTERM save its state), or choose another --out.",
    ) -> None:
        self.active, self.work, self.hint = active, work, hint
        self._handle: int | None = None

    def hold(self, path: Path) -> None:
        """Lock the run directory ``path``, which exists.

        Raises:
            UsageError: another process trains there, or the place can't be written.
        """
        if not self.active:
            return
        with writing(path):
            handle = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._handle = handle
        try:
            _lock(handle)
        except BlockingIOError:
            holder = os.pread(handle, 200, 0).decode(errors="replace").strip()
            self.release()
            raise UsageError(
                f"another process is {self.work} {path}" + (f": {holder}" if holder else ""), hint=self.hint
            ) from None
        except OSError:
            return  # a file system without locks
        with contextlib.suppress(OSError):  # who holds it is a courtesy: a full disk must not stop anything
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def release(self) -> None:
        """Let go."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _lock(handle: int) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    while fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return
