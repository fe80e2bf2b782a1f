"""Files that are either whole or absent: written beside their place, synced, renamed."""

from __future__ import annotations

import errno
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gebm_kit.core.errors import GebmKitError, RunFailed, UsageError


def write_atomic(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` so that a kill or a full disk leaves either the old file or the new one whole.

    Raises:
        UsageError: the directory is missing or not writable.
        RunFailed: the disk is full.
    """
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~umask())  # mkstemp makes files private
        os.replace(temporary, path)
        sync_directory(path.parent)
    except BaseException as error:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise write_error(path, error) from error
        raise


def sync_directory(path: Path) -> None:
    """Sync a directory's entries to the disk, so that a power cut does not undo a rename."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(folder: Path, names: Iterable[str]) -> None:
    """Remove temporary files that killed processes left in ``folder`` while writing ``names``."""
    for name in names:
        for path in folder.glob(f".{name}-*"):
            path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON by `write_atomic`; numbers that are not finite become null."""
    write_atomic(path, (json.dumps(plain(value), indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read and parse a JSON file.

    Raises:
        OSError, ValueError: the file is missing or malformed.
    """
    return json.loads(path.read_text(encoding="utf-8"))


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


def make_directory(path: Path) -> None:
    """Create ``path`` and its parents.

    Raises:
        UsageError: it can't be created, or is a file.
    """
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
