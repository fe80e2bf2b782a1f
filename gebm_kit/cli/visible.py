"""Text from outside made harmless for a terminal, and streams that can show any text.

Names, recipes, status files and the metadata of plugins may come from strangers. Escape sequences in them would be obeyed by
the terminal (clear the screen, set the title, rewrite lines above), so they are shown as ``\\x1b`` instead.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

_BIDI = "\u200e\u200f\u202a-\u202e\u2066-\u2069"
"""Marks that reorder the text around them, so that it reads as something else than it is."""

_UNSEEN = re.compile(f"[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u2028\\u2029{_BIDI}\\ud800-\\udfff]")
_UNSEEN_JSON = re.compile(f"[\\x7f-\\x9f\\u2028\\u2029{_BIDI}\\ud800-\\udfff]")

LONGEST_LINE = 4_000
"""Length at which a line of a message is cut in the middle, in characters."""


def visible(text: str) -> str:
    """Return ``text`` with control characters written as ``\\x1b``; line ends and tabs stay.

    >>> visible("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    return _UNSEEN.sub(_written, text)


def visible_message(text: str) -> str:
    """Return ``text`` as `visible` does, and cut lines of many thousands of letters, which nobody would read."""
    half = LONGEST_LINE // 2
    lines = text.split("\n")
    return visible("\n".join(s if len(s) <= LONGEST_LINE else f"{s[:half]} ... {s[-half:]}" for s in lines))


def visible_cell(text: str) -> str:
    """Return ``text`` for one line of a table: as `visible`, and line ends and tabs are written out as well."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def visible_json(text: str, encoding: str) -> str:
    """Return the same JSON in characters that are safe on a terminal and that ``encoding`` has."""
    text = _UNSEEN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return "".join(c if c.isascii() else _json_escape(c) for c in text)
    return text


@contextlib.contextmanager
def open_streams() -> Iterator[None]:
    """Give the process streams that take any text, for the block.

    A character that a stream's encoding lacks is written as ``\\xfc``. Streams that are closed lead nowhere; their numbers
    are taken, so that no file that is opened later gets them.
    """
    before = (sys.stdin, sys.stdout, sys.stderr)
    if None in before:
        for number in range(3):
            try:
                os.fstat(number)
            except OSError:
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest free number, this one
        sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115
        sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
        sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    changed: list[tuple[Any, str | None]] = []
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            before_errors = stream.errors
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(errors="backslashreplace")
                changed.append((stream, before_errors))
    try:
        yield
    finally:
        for stream, errors in changed:
            with contextlib.suppress(OSError, ValueError):  # its disk is full, its reader left, it is closed
                stream.reconfigure(errors=errors)


def _written(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def _json_escape(character: str) -> str:
    code = character.encode("utf-16-be")
    return "".join(f"\\u{code[i : i + 2].hex()}" for i in range(0, len(code), 2))
