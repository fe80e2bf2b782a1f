"""Whether programs may be loaded in this process: generators that somebody exported as code.

A recipe or a run directory can't give that permission, only the person at the keyboard: ``--trust-program`` on the command
line, `trust_programs` in Python.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_trusted = False


def programs_trusted() -> bool:
    """Whether programs may be loaded."""
    return _trusted


@contextmanager
def trust_programs(trusted: bool = True) -> Iterator[None]:
    """Inside the block programs may be loaded (``trusted=False``: may not), in every thread of the process.

    A TorchScript or torch.export program is code: it can do on this machine whatever its author chose. Trust those alone
    that come from a person you trust, by a way that you trust.
    """
    global _trusted
    before, _trusted = _trusted, trusted
    try:
        yield
    finally:
        _trusted = before


def set_trusted(trusted: bool) -> None:
    """For a command, until the surrounding `trust_programs` block ends."""
    global _trusted
    _trusted = trusted


def trust_words() -> list[str]:
    """What a command that goes on with this work must say of trust."""
    return ["--trust-program"] if programs_trusted() else []
