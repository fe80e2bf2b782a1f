"""Permission to load programs in this process: generators that somebody exported as code.

A recipe or a run directory can't give that permission. Only the person at the keyboard can: with ``--trust-program`` on the
command line, or `trust_programs` in Python.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_trusted = False


def programs_trusted() -> bool:
    """Return whether programs may be loaded."""
    return _trusted


@contextmanager
def trust_programs(trusted: bool = True) -> Iterator[None]:
    """Allow programs to be loaded inside the block, in every thread of the process; ``trusted=False`` forbids it.

    A TorchScript or torch.export program is code: it can do on this machine whatever its author chose. Trust only programs
    whose author you trust and that reached you in a way you trust.
    """
    global _trusted
    before, _trusted = _trusted, trusted
    try:
        yield
    finally:
        _trusted = before


def set_trusted(trusted: bool) -> None:
    """Allow or forbid programs until the surrounding `trust_programs` block ends; the command line uses this."""
    global _trusted
    _trusted = trusted


def trust_words() -> list[str]:
    """Return the words that a command needs to resume this work with the same trust."""
    return ["--trust-program"] if programs_trusted() else []
