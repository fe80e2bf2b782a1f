"""Files that are either whole or absent: written beside their place, synced, renamed.

Nothing here writes through a symbolic link inside a run directory: a run that came from somebody else could lead anywhere.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from gebm_kit.core.errors import GebmKitError, RunFailed, UsageError

try:
    import fcntl
except ImportError:  # Windows, where a temporary file of a living process can't be told from one of a killed process
    fcntl = None  # type: ignore[assignment, unused-ignore]

RUN_MARKS = ("resolved.yaml", "status.json")
"""Files that every run directory holds."""

_TEMPORARY = re.compile(r"\..+-[a-z0-9_]{8}")
"""Names of temporary files: a dot, the name of the file to write, and the eight characters of `tempfile`."""


# --- whole files -----------------------------------------------------------------------------------------------------
def write_atomic(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` so that a kill or a full disk leaves either the old file or the new one whole.

    Raises:
        UsageError: the directory is missing, not writable, or reached through a link inside a run directory.
        RunFailed: the disk is full.
    """
    with atomic_file(path) as stream:
        stream.write(content)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write to; it takes the place of ``path`` when the block ends without an error.

    A link at ``path`` is replaced, not followed. The temporary file is locked while it is written, so that
    `remove_temporary_files` can tell it from the leftover of a killed process.

    Raises:
        UsageError: the directory is missing, not writable, or reached through a link inside a run directory.
        RunFailed: the disk is full.
    """
    refuse_links(path.parent)
    temporary = None
    try:
        _remove_temporaries_of(path)
        handle, temporary = _locked_temporary(path)
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            os.chmod(temporary, 0o666 & ~umask())  # mkstemp makes files private
            if os.name == "nt":
                stream.close()  # Windows can't rename an open file
            os.replace(temporary, path)
        sync_directory(path.parent)
    except BaseException as error:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise write_error(path, error) from error
        raise


def _locked_temporary(path: Path) -> tuple[int, str]:
    """Create and lock a temporary file beside ``path``."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        if _lock(handle) is not False and os.fstat(handle).st_nlink > 0:
            return handle, name
        os.close(handle)  # another process took it for a leftover in the instant before it was locked


def _lock(handle: int) -> bool | None:
    """Lock an open file: True; False: another process holds it; None: the file system has no locks."""
    if os.name == "nt":
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def open_own(path: Path, flags: int) -> int:
    """Open a file that the kit itself writes, without blocking; return its handle.

    Raises:
        UsageError: ``path`` is a symbolic link or not a regular file.
        OSError: it can't be opened.
    """
    flags |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        handle = os.open(path, flags, 0o666)
    except OSError as error:
        if path.is_symlink():
            raise UsageError(f"{path} is a symbolic link; nothing is written through it", hint="Remove it.") from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UsageError(f"{path} is not a regular file", hint="Remove it.")
    return handle


def sync_directory(path: Path) -> None:
    """Sync a directory's entries to the disk, so that a power cut does not undo a rename."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- leftovers of killed processes -----------------------------------------------------------------------------------
def remove_temporary_files(folder: Path) -> None:
    """Remove temporary files that killed processes left in ``folder``; files that a living process writes stay.

    Only call it for folders that hold nothing but the kit's own files.
    """
    for name in _names(folder):
        if _TEMPORARY.fullmatch(name):
            _remove_leftover(folder / name)


def _remove_temporaries_of(path: Path) -> None:
    prefix = f".{path.name}-"
    for name in _names(path.parent):
        if name.startswith(prefix) and len(name) == len(prefix) + 8 and _TEMPORARY.fullmatch(name):
            _remove_leftover(path.parent / name)


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _remove_leftover(path: Path) -> None:
    """Remove a temporary file or folder, unless a living process holds its lock."""
    with contextlib.suppress(OSError):
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            path.unlink()
            return
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)) or os.name == "nt":
            return
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if _lock(handle):
                remove_tree(path)
        finally:
            os.close(handle)


def remove_tree(path: Path) -> None:
    """Remove a file, a link (not what it leads to) or a folder with all it holds, as far as that is possible."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


# --- links -----------------------------------------------------------------------------------------------------------
def refuse_links(folder: Path) -> None:
    """Refuse to write into ``folder`` if it lies in a run directory and is reached through a symbolic link below that.

    Raises:
        UsageError: see above; the message names the link.
    """
    place = Path(os.path.abspath(folder))
    for link in (part for part in (place, *place.parents) if part.is_symlink()):
        for above in link.parents:
            if all(os.path.lexists(above / mark) for mark in RUN_MARKS):
                raise UsageError(
                    f"{link} is a symbolic link inside the run directory {above}; nothing is written through it",
                    hint="Remove the link, or move what it leads to into its place.",
                )


# --- JSON ------------------------------------------------------------------------------------------------------------
def write_json(path: Path, value: Any) -> None:
    """Write JSON by `write_atomic`; numbers that are not finite become null."""
    write_atomic(path, (json.dumps(plain(value), indent=2, allow_nan=False) + "\n").encode())


def finite_or_none(value: float | None) -> float | None:
    """Return ``value``, or None when it is NaN or infinite, which JSON can't hold."""
    return value if value is not None and math.isfinite(value) else None


def plain(value: Any) -> Any:
    """Return ``value`` for JSON: every non-finite float becomes None."""
    if isinstance(value, float):
        return finite_or_none(value)
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


# --- folders and errors ----------------------------------------------------------------------------------------------
def make_directory(path: Path) -> None:
    """Create ``path`` and its parents.

    Raises:
        UsageError: it can't be created, is a file, or is reached through a link inside a run directory.
    """
    refuse_links(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise write_error(path, error) from error


def write_error(path: Path, error: OSError) -> GebmKitError:
    """Return the error to raise when writing ``path`` failed with ``error``."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return RunFailed(
            f"{path} can't be written: {reason}",
            hint="Free some space and repeat the command, with --resume where it has one; what is written is whole.",
        )
    return UsageError(f"{path} can't be written: {reason}", hint="Choose another place.")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError inside the block into the error of `write_error`."""
    try:
        yield
    except OSError as error:
        raise write_error(path, error) from error


def umask() -> int:
    """Return the permission bits that this process withholds from new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
