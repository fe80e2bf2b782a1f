"""The lock that lets one process at a time train in a run directory.

Its file ``.lock`` is also the first thing written to a new run directory: it tells a run whose creation was interrupted
from a directory of the user's.
"""

from __future__ import annotations

from gebm_kit.engine.process.lock import DirectoryLock


class RunLock(DirectoryLock):
    """The lock on at most one run directory, held while training there.

    Args:
        active: False: do nothing (only rank 0 of several ranks holds the lock).
    """

    def __init__(self, *, active: bool = True) -> None:
        super().__init__(
            active=active,
            work="training in",
            hint="Wait for it or stop it (Ctrl-C or SIGTERM save its state), or choose another --out.",
        )
