"""A lock that lets one process at a time work in a directory.

The lock is the operating system's (``flock``) on the file ``.lock``. It ends with the process, so a killed process
leaves no lock and nothing has to be cleaned up. The lock of a run directory is in run_directory/lock.py.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from gebm_kit.core.errors import UsageError
from gebm_kit.core.files import open_own, writing

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps two processes apart
    fcntl = None  # type: ignore[assignment, unused-ignore]


LOCK = ".lock"
"""Name of the locked file in a directory."""

LOCK_SECONDS = 1.0
"""Seconds to keep trying for a lock, because a command that lists runs holds a shared one for an instant."""


_HOLDER = re.compile(r"process \d+ on [\w.-]+")
"""What the file says of the process that holds the lock; anything else in it is not shown."""


class DirectoryLock:
    """The lock on at most one directory, from `hold` to the end of the ``with`` block.

    Args:
        active: False: do nothing (only rank 0 of several ranks holds the lock).
        work, hint: for the error: what the process that holds the lock is doing, and what the user can do.
    """

    def __init__(self, *, active: bool = True, work: str, hint: str) -> None:
        self.active, self.work, self.hint = active, work, hint
        self._handle: int | None = None

    def hold(self, path: Path) -> None:
        """Lock the directory ``path``, which exists.

        Raises:
            UsageError: another process holds the lock, the directory can't be written, or its lock is a symbolic link.
        """
        if not self.active:
            return
        with writing(path):
            handle = open_own(path / LOCK, os.O_RDWR | os.O_CREAT)
        self._handle = handle
        try:
            _lock(handle)
        except BlockingIOError:
            holder = _HOLDER.match(os.pread(handle, 200, 0).decode(errors="replace"))
            self.release()
            raise UsageError(
                f"another process is {self.work} {path}" + (f": {holder[0]}" if holder else ""), hint=self.hint
            ) from None
        except OSError:
            return  # a file system without locks
        with contextlib.suppress(OSError):  # a full disk must not stop anything: naming the holder is a courtesy
            if os.fstat(handle).st_nlink > 1:  # a hard link: the file is not this directory's alone
                return
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def release(self) -> None:
        """Release the lock."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> Self:
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
