"""A guard around code of a plugin that runs at import, in this process and with the user's rights.

It is not a sandbox: a plugin can do whatever Python can. The guard keeps accidents of a plugin's import out of the kit: what
the plugin prints, closes, replaces or sets for the whole process, and how it ends.

Not covered: code in C that never returns or ends the process, signals that can't be caught, threads and exit handlers that
the plugin leaves behind, and functions of other modules that it replaces.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NamedTuple, NoReturn, TextIO, cast

from gebm_kit.core.errors import PluginError
from gebm_kit.core.process_state import ProcessState

TICK_SECONDS = 1.0
"""Seconds between two looks at whether an import makes progress."""

UNDONE = "while it was imported; that was undone"
"""End of the note on something that a plugin changed for the whole process."""

STOPS = (signal.SIGINT, signal.SIGTERM)
"""Signals by which a person or a scheduler ends the command; a plugin must not swallow them."""


class _Ended(BaseException):
    """The end of an import that the guard ends; a BaseException, so that ``except Exception`` in a plugin lets it pass."""


@contextlib.contextmanager
def isolated(module: str, patience: int | None = None) -> Iterator[list[str]]:
    """Run a plugin's import inside the block; undo what it changed for the whole process.

    Output to stdout goes to stderr. Standard input is empty. Whatever the block raises becomes an Exception, except for
    Ctrl-C and SIGTERM from outside.

    Args:
        module: name of the module that is imported. If it fails, modules of its package are forgotten.
        patience: looks (one every `TICK_SECONDS`) without a newly imported module after which the import is ended. None:
            never. Only the main thread is watched.

    Yields:
        A list that names what was changed and set back, filled when the block ends.

    Raises:
        PluginError: the block raised what is not an Exception (SystemExit, KeyboardInterrupt), ended the process
            (``os._exit``), or took too long.
    """
    changes: list[str] = []
    before = ProcessState.now()
    main = threading.current_thread() is threading.main_thread()
    stopped: list[tuple[int, FrameType | None]] = []
    failed = True
    with _streams_kept(), _exit_kept():
        watched = _watch(stopped, patience) if main else []
        try:
            yield changes
            failed = False
        except Exception:
            raise
        except BaseException as error:
            if stopped:
                raise
            raise PluginError(_named(error)) from error
        finally:
            changes += _unwatch(watched)
            changes += before.restore(module, failed=failed)
    if stopped:  # the plugin swallowed the exception
        signum, frame = stopped[0]
        handler = signal.getsignal(signum)
        if callable(handler):
            handler(signum, frame)


def _named(error: BaseException) -> str:
    if isinstance(error, _Ended):
        return str(error)
    return f"{type(error).__name__}: {first_words(error)}".rstrip(": ")


def first_words(value: object, limit: int = 300) -> str:
    """Return at most ``limit`` printable characters of ``str(value)`` on one line, also if ``str`` itself fails."""
    try:
        text = str(value)[: 10 * limit]
    except BaseException as error:
        text = f"(its text can't be had: {type(error).__name__})"
    text = " ".join("".join(c if c.isprintable() or c.isspace() else repr(c)[1:-1] for c in text).split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


# --- time and signals ------------------------------------------------------------------------------------------------


class _Watched(NamedTuple):
    """A signal's handler before the block and inside it."""

    signum: signal.Signals
    before: Any
    inside: Callable[[int, FrameType | None], None]


def _watch(stopped: list[tuple[int, FrameType | None]], patience: int | None) -> list[_Watched]:
    """Note stopping signals, and end the block after ``patience`` looks without progress."""
    watched = []
    for signum in STOPS:
        before = signal.getsignal(signum)
        if callable(before):

            def note(number: int, frame: FrameType | None, then: Callable[..., object] = before) -> None:
                stopped.append((number, frame))
                then(number, frame)

            watched.append(_Watched(signum, before, note))
    if patience is not None and hasattr(signal, "setitimer") and signal.getitimer(signal.ITIMER_REAL)[0] == 0:
        seen, idle = len(sys.modules), 0

        def look(number: int, frame: FrameType | None) -> None:
            nonlocal seen, idle
            idle = idle + 1 if len(sys.modules) == seen else 0
            seen = len(sys.modules)
            if idle >= patience:
                raise _Ended(f"its import did not end: nothing new was imported for {patience * TICK_SECONDS:g} s")

        watched.append(_Watched(signal.SIGALRM, signal.getsignal(signal.SIGALRM), look))
    for each in watched:
        signal.signal(each.signum, each.inside)
    if watched and watched[-1].signum == signal.SIGALRM:
        signal.setitimer(signal.ITIMER_REAL, TICK_SECONDS, TICK_SECONDS)
    return watched


def _unwatch(watched: list[_Watched]) -> list[str]:
    """Set the handlers back; name those that the block replaced."""
    changes = []
    for each in watched:
        if hasattr(signal, "SIGALRM") and each.signum == signal.SIGALRM:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if signal.getsignal(each.signum) is not each.inside:
            changes.append(f"replaced the handler of {each.signum.name}")
        signal.signal(each.signum, signal.SIG_DFL if each.before is None else each.before)
    return changes


@contextlib.contextmanager
def _exit_kept() -> Iterator[None]:
    """Turn ``os._exit`` in this process into an error while the block runs; children that were forked may use it."""
    real, process, active = os._exit, os.getpid(), True

    def leave(status: int) -> NoReturn:
        if active and os.getpid() == process:
            raise _Ended(f"it called os._exit({status})")
        real(status)

    os._exit = leave
    try:
        yield
    finally:
        active, os._exit = False, real


# --- streams ---------------------------------------------------------------------------------------------------------


class _Stream:
    """A stream that writes to another one and can't be closed."""

    def __init__(self, target: TextIO | None) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self).get("_target"), name)

    def write(self, text: str) -> int:
        target = self._target
        if target is not None:
            with contextlib.suppress(OSError, ValueError):  # closed, or on a full disk
                target.write(text)
        return len(text)

    def flush(self) -> None:
        if self._target is not None:
            with contextlib.suppress(OSError, ValueError):
                self._target.flush()

    def close(self) -> None:
        """Do nothing."""

    detach = reconfigure = close

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing."""


@contextlib.contextmanager
def _streams_kept() -> Iterator[None]:
    """Send output to stderr, also that of C code; leave the three streams as they were, even if they were closed."""
    own = {name: getattr(sys, name) for name in ("stdin", "stdout", "stderr", "__stdin__", "__stdout__", "__stderr__")}
    for stream in (own["stdout"], own["__stdout__"], own["stderr"]):
        _flush(stream)
    copies = {number: _duplicate(number) for number in (0, 1, 2)}
    if copies[1] is not None:
        if copies[2] is not None:
            os.dup2(2, 1)
        else:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), 1)
    shown = cast(TextIO, _Stream(own["stderr"]))
    sys.stdin, sys.stdout, sys.stderr = io.StringIO(), shown, shown
    try:
        yield
    finally:
        for stream in (own["stdout"], own["__stdout__"], own["stderr"], own["__stderr__"]):
            _flush(stream)
        for number, copy in copies.items():
            if copy is not None:
                os.dup2(copy, number)
                os.close(copy)
        again: dict[int, Any] = {}
        for name, stream in own.items():
            setattr(sys, name, _reopened(stream, name.strip("_"), again))


def _flush(stream: TextIO | None) -> None:
    if stream is not None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()


def _duplicate(number: int) -> int | None:
    try:
        return os.dup(number)
    except OSError:
        return None


def _reopened(stream: Any, name: str, again: dict[int, Any]) -> Any:
    """Return the stream, or a new one on the same descriptor if it was closed meanwhile."""
    if stream is None or not getattr(stream, "closed", False):
        return stream
    if id(stream) not in again:
        number = {"stdin": 0, "stdout": 1, "stderr": 2}[name]
        mode = "r" if number == 0 else "w"
        try:
            again[id(stream)] = open(number, mode, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
        except OSError:
            again[id(stream)] = None
    return again[id(stream)]
