"""Errors that a user can act on, each with the exit code of the command line.

Every error carries a one-sentence message (what was wrong, the value seen, what is allowed) and an optional hint (what to
do next). The command line prints both and never a traceback; in Python they are ordinary exceptions.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable


class GebmKitError(Exception):
    """Base class: ``str(error)`` is the message, ``error.hint`` the advice, ``error.exit_code`` the process's exit code."""

    exit_code = 1
    code = "failed"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class RunFailed(GebmKitError):
    """Failure of work that had started: a full disk, a loss that is no longer finite."""


class NotConverged(RunFailed):
    """Draws that were made and written, but whose diagnostics say not to rely on them."""

    code = "not-converged"

    def __init__(self, message: str, *, problems: Iterable[str], hint: str = "") -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join([message, *(f"  {p}" for p in self.problems)]), hint=hint)


class UsageError(GebmKitError):
    """Arguments that a command or a call can't use."""

    exit_code = 2
    code = "usage"


class RecipeError(GebmKitError):
    """A recipe with one or more problems; ``problems`` holds all of them, one line each."""

    exit_code = 2
    code = "recipe"

    def __init__(self, message: str, *, problems: Iterable[str] = (), hint: str = "") -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join([message, *(f"  {p}" for p in self.problems)]), hint=hint)


class DataError(GebmKitError):
    """Input data that are missing, empty or malformed, or do not fit the model."""

    exit_code = 2
    code = "data"


class CheckpointError(GebmKitError):
    """A run directory or a checkpoint that can't be read."""

    exit_code = 2
    code = "checkpoint"


class PluginError(GebmKitError):
    """A component that no installed plugin provides, or a plugin that is broken."""

    exit_code = 3
    code = "plugin"


class Interrupted(GebmKitError):
    """Work stopped by Ctrl-C (exit code 130) or SIGTERM (143) after its state was saved."""

    code = "interrupted"

    def __init__(self, message: str, *, signum: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.exit_code = 128 + signum


_SHORT = reprlib.Repr()
_SHORT.maxlevel = 4
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = _SHORT.maxset = 12
_SHORT.maxlong = _SHORT.maxstring = _SHORT.maxother = 320


def shown(value: object) -> str:
    """Return ``repr(value)`` for a message; long text, lists and mappings are shortened.

    >>> shown([0] * 1000)
    '[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ...]'
    """
    return _SHORT.repr(value)


LONGEST_LIST = 100
"""Most choices that a message names."""

LONGEST_WORD = 100
"""Length up to which the nearest choices to a word are looked for; the search takes a time of its square."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return the end of a message about a misspelt ``word``: the nearest ``choices``, or all of them if none is near.

    >>> nearest("malla", ["mala", "hmc"])
    'did you mean mala?'
    """
    options = sorted(set(choices))
    close = []
    if len(word) <= LONGEST_WORD:
        close = difflib.get_close_matches(word, options, n=3, cutoff=0.6)  # difflib's defaults
    if close:
        return f"did you mean {' or '.join(close)}?"
    if not options:
        return "there are none"
    if len(options) > LONGEST_LIST:
        return f"allowed: {', '.join(options[:LONGEST_LIST])} and {len(options) - LONGEST_LIST:,} more"
    return f"allowed: {', '.join(options)}"
