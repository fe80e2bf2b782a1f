"""Paths that a person wrote: in a recipe, an option or a call."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from gebm_kit.core.errors import GebmKitError, UsageError, shown

LONGEST_NAME = 255
"""Longest name of a file or directory, in bytes; the limit of all common file systems."""

HTML_ENDINGS = (".html", ".htm")
"""Endings of an HTML file."""

LONGEST_PATH = 4000
"""Longest path, in bytes; Linux takes 4,095."""


def user_path(path: str | Path, *, what: str = "the path", error: Callable[[str], GebmKitError] = UsageError) -> Path:
    """Return a path with ``~`` and ``~user`` replaced by the home directory.

    Args:
        what: what the path is, for the message.
        error: makes the error from a message.

    Raises:
        the class ``error``: the path is empty, is not text that a file system takes, or names no home directory.
    """
    text = os.fspath(path)
    if not isinstance(text, str):
        raise error(f"{what} {shown(text)} is made of bytes; write text")
    if not text:
        raise error(f"{what} is empty; write . for the current directory")
    if "\0" in text:
        raise error(f"{what} {shown(text)} holds a null character, which no name can have")
    try:
        names = [name.encode("utf-8") for name in Path(text).parts]
    except UnicodeEncodeError as reason:
        raise error(f"{what} {shown(text)} is not UTF-8; give another name") from reason
    if (longest := max((len(name) for name in names), default=0)) > LONGEST_NAME:
        raise error(f"{what} {shown(text)} has a name of {longest} bytes; at most {LONGEST_NAME} are possible")
    if len(text.encode()) > LONGEST_PATH:
        raise error(f"{what} {shown(text)} has {len(text.encode()):,} bytes; at most {LONGEST_PATH:,} are possible")
    try:
        return Path(text).expanduser()
    except RuntimeError as reason:  # ~nobody
        raise error(f"{what} {shown(text)} begins with a home directory that is not known here") from reason


def check_ending(path: Path, endings: tuple[str, ...], says: str, hint: str) -> None:
    """Check that a file's name has one of some endings, in small letters or capitals.

    Args:
        says: what is wanted, for the message, such as "--out must be a CSV file".

    Raises:
        UsageError: it has another ending.
    """
    if path.suffix.lower() not in endings:
        raise UsageError(f"{says}, got {path}", hint=hint)
