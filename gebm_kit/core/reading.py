"""Bounded readers of files from outside: text, JSON, YAML. (Compressed files and arrays: core/archives.py.)

Every reader checks what it is about to read before it allocates: the file is regular (a named pipe would block, a device
may never end), its size is below a limit, and a header does not claim more than the file can hold. Whatever is wrong
becomes one error with the file's name, of the class that the caller passes.

Nothing here imports torch or numpy.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from gebm_kit.core.errors import DataError, GebmKitError

Error = Callable[[str], GebmKitError]
"""What turns a message into the error to raise: a class such as `DataError`, or a function that adds a hint."""

MAX_TEXT = 64 * 2**20
"""Largest text file that is read whole, in bytes. Records of a run take kilobytes; a long trace some megabytes."""

MAX_DEPTH = 64
"""Deepest nesting of JSON and YAML. The kit writes at most ten levels; parsers overflow their stack at some hundreds."""

_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


# --- files -----------------------------------------------------------------------------------------------------------
def open_regular(path: Path, *, error: Error = DataError, follow: bool = True) -> BinaryIO:
    """Open a regular file for reading bytes; nothing else is opened, and nothing blocks.

    Args:
        path: the file.
        error: makes the error from a message.
        follow: False: refuse a symbolic link.

    Raises:
        the class ``error``: the file is missing, not readable, or not a regular file.
    """
    try:
        _refuse_irregular(path, path.stat() if follow else path.lstat(), error)
        flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        handle = os.open(path, flags if follow else flags | getattr(os, "O_NOFOLLOW", 0))
        try:
            _refuse_irregular(path, os.fstat(handle), error)  # it may have been replaced since
            return os.fdopen(handle, "rb")
        except BaseException:
            os.close(handle)
            raise
    except FileNotFoundError as reason:
        raise error(f"{path} does not exist") from reason
    except (OSError, ValueError) as reason:  # ValueError: a null character in the name
        raise error(f"{path} can't be read: {_why(reason)}") from reason


def read_file(path: Path, *, limit: int | None = None, error: Error = DataError, follow: bool = True) -> bytes:
    """Return the content of a regular file.

    Args:
        limit: largest size in bytes; None: the memory that is available.

    Raises:
        the class ``error``: the file can't be opened (`open_regular`), or is larger than the limit.
    """
    with open_regular(path, error=error, follow=follow) as file:
        limit = available_memory() if limit is None else limit
        size = os.fstat(file.fileno()).st_size
        try:
            content = b"" if size > limit else file.read(size + 1)  # read allocates all that it is asked for
        except OSError as reason:
            raise error(f"{path} can't be read: {_why(reason)}") from reason
        if max(size, len(content)) > limit:
            raise error(f"{path} has {amount(max(size, len(content)))}; at most {amount(limit)} are read")
        return content


def read_text(path: Path, *, limit: int | None = MAX_TEXT, error: Error = DataError, follow: bool = True) -> str:
    """Return the content of a regular file of UTF-8 text.

    Raises:
        the class ``error``: as in `read_file`, or the content is not UTF-8.
    """
    try:
        return read_file(path, limit=limit, error=error, follow=follow).decode("utf-8")
    except UnicodeDecodeError as reason:
        raise error(f"{path} is not UTF-8 text: byte {reason.start} is 0x{reason.object[reason.start]:02x}") from reason


def _refuse_irregular(path: Path, found: os.stat_result, error: Error) -> None:
    if stat.S_ISREG(found.st_mode):
        return
    kind = next((name for test, name in _KINDS if test(found.st_mode)), "a symbolic link")
    raise error(f"{path} is {kind}; a regular file is needed")


def _why(reason: Exception) -> str:
    return (reason.strerror if isinstance(reason, OSError) else None) or str(reason)


# --- JSON and YAML ---------------------------------------------------------------------------------------------------
def parse_json(text: str | bytes, *, name: str, error: Error = DataError) -> Any:
    """Parse JSON that is nested at most `MAX_DEPTH` deep. NaN and infinities are accepted, as Python writes them.

    Args:
        name: what the text is, for the message.

    Raises:
        the class ``error``: the text is not JSON, or is nested too deep.
    """
    try:
        value = json.loads(text)
    except RecursionError as reason:
        raise error(f"{name} is nested more than {MAX_DEPTH} deep") from reason
    except ValueError as reason:  # also bytes that are not UTF-8, and integers of thousands of digits
        raise error(f"{name} is not valid JSON: {str(reason).splitlines()[0]}") from reason
    brackets = text.count(b"[") + text.count(b"{") if isinstance(text, bytes) else text.count("[") + text.count("{")
    if brackets > MAX_DEPTH and _deeper(value):
        raise error(f"{name} is nested more than {MAX_DEPTH} deep")
    return value


def read_json_file(path: Path, *, limit: int | None = MAX_TEXT, error: Error = DataError, follow: bool = True) -> Any:
    """Read and parse a JSON file.

    Raises:
        the class ``error``: as in `read_text` and `parse_json`.
    """
    return parse_json(read_text(path, limit=limit, error=error, follow=follow), name=str(path), error=error)


def parse_yaml(text: str, *, name: str, error: Error = DataError) -> Any:
    """Parse YAML without aliases that is nested at most `MAX_DEPTH` deep, with the safe loader.

    The depth is counted before anything is composed: PyYAML's C composer is recursive and overflows the stack.

    Raises:
        the class ``error``: the text is not YAML, is nested too deep, has aliases, or a value contradicts its tag.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        for _ in bounded_events(yaml.parse(text, Loader=loader)):
            pass
        return yaml.load(text, Loader=loader)
    except TooDeep as reason:
        raise error(f"{name}: {reason}") from reason
    except (
        Exception
    ) as reason:  # constructors raise KeyError, ValueError, TypeError, AttributeError, OverflowError, ...
        detail = getattr(reason, "problem", None) or (str(reason).splitlines() or [type(reason).__name__])[0]
        raise error(f"{name} is not valid YAML: {detail}") from reason


class TooDeep(ValueError):
    """YAML that is nested too deep, or that has aliases.

    Attributes:
        line: the line, counted from 1.
        problem: what is wrong there.
    """

    def __init__(self, event: Any, problem: str) -> None:
        self.line = event.start_mark.line + 1
        self.problem = problem
        super().__init__(f"line {self.line}: {problem}")


class Aliased(TooDeep):
    """YAML with an alias ``*name``."""


def bounded_events(events: Iterator[Any]) -> Iterator[Any]:
    """Yield YAML events, and raise at an alias or at nesting deeper than `MAX_DEPTH`.

    A few nested aliases can stand for a tree of any size.

    Raises:
        TooDeep: see above.
    """
    import yaml

    depth = 0
    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise TooDeep(event, f"nested more than {MAX_DEPTH} deep")
        if isinstance(event, yaml.AliasEvent):
            raise Aliased(event, "aliases are not allowed; write the value out")
        yield event


def _deeper(value: Any) -> bool:
    """Return whether ``value`` is nested more than `MAX_DEPTH` deep, level by level, without recursion."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for part in level
            if isinstance(part, dict | list)
            for child in (part.values() if isinstance(part, dict) else part)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


# --- memory ----------------------------------------------------------------------------------------------------------
def available_memory() -> int:
    """Return the bytes of memory that this process can still use: the least of the machine's free memory, the control
    group's limit, and the process's own (``ulimit -v``); 2**62 where none is known."""
    found = [2**62]
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        numbers = [next(iter(_lines(f"/sys/fs/cgroup/{name}")), "") for name in (limit, used)]
        if all(number.isdigit() for number in numbers):
            found.append(max(0, int(numbers[0]) - int(numbers[1])))
    try:
        import resource

        most = resource.getrlimit(resource.RLIMIT_AS)[0]
        pages = next(iter(_lines("/proc/self/statm")), "0").split()[0]
        if most != resource.RLIM_INFINITY:
            found.append(max(0, most - int(pages) * resource.getpagesize()))
    except (ImportError, ValueError):  # Windows
        pass
    return min(found)


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().splitlines()
    except OSError:
        return []


def amount(size: int) -> str:
    """Write a number of bytes for a person: ``3.2 MB``."""
    value = float(size)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{size} bytes" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def texts_in(tree: Any) -> Iterator[str]:
    """Yield all text in plain data, a tree of lists, tuples and mappings; keys aside."""
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, Mapping):
        for part in tree.values():
            yield from texts_in(part)
    elif isinstance(tree, list | tuple):
        for part in tree:
            yield from texts_in(part)
