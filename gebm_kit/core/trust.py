"""Permissions that only the person at the keyboard can give, never a recipe, a run directory or a dataset.

- Programs, generators that somebody exported as code, may be loaded: ``--trust-program``, in Python `trust_programs`.
- Files and addresses that a dataset names, and that are not part of it, may be opened: ``--trust-paths``, in Python
  `trust_paths`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_trusted = False
_paths = False


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


def paths_trusted() -> bool:
    """Return whether files and addresses that a dataset names, and that are not part of it, may be opened."""
    return _paths


@contextmanager
def trust_paths(trusted: bool = True) -> Iterator[None]:
    """Allow files and addresses that a dataset names to be opened inside the block, in every thread of the process;
    ``trusted=False`` forbids it.

    The rows of a dataset can name any file on this machine, and any server, which then learns who reads them. Trust only
    datasets whose author you trust.
    """
    global _paths
    before, _paths = _paths, trusted
    try:
        yield
    finally:
        _paths = before


def set_trusted(trusted: bool, paths: bool = False) -> None:
    """Allow or forbid programs, and files that a dataset names, until the surrounding `trust_programs` and `trust_paths`
    blocks end; the command line uses this."""
    global _trusted, _paths
    _trusted, _paths = trusted, paths


def trust_words() -> list[str]:
    """Return the words that a command needs to resume this work with the same trust."""
    return ["--trust-program"] * programs_trusted() + ["--trust-paths"] * paths_trusted()
