"""Bounded readers of compressed files and arrays: gzip, zip, .npy, .npz.

What a header claims is checked against the size of the file and the available memory before anything is allocated. Errors
are those of core/reading.py. numpy is imported where arrays are read.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

from gebm_kit.core.errors import DataError
from gebm_kit.core.reading import Error, amount, available_memory, open_regular

if TYPE_CHECKING:
    import numpy as np

CHUNK = 2**20
"""Bytes decompressed at a time."""


# --- compressed files ------------------------------------------------------------------------------------------------
def gunzip(path: Path, *, limit: int | None = None, error: Error = DataError) -> bytes:
    """Return the content of a gzip file.

    Args:
        limit: largest decompressed size in bytes; None: half of the memory that is available.

    Raises:
        the class ``error``: the file can't be opened, is damaged, or holds more than the limit.
    """
    import gzip

    limit = available_memory() // 2 if limit is None else limit
    with open_regular(path, error=error) as file:
        try:
            return _bounded(gzip.GzipFile(fileobj=file), limit, f"{path} unpacks to", error)
        except (OSError, EOFError, zlib.error) as reason:
            raise error(f"{path} can't be unpacked: {reason}") from reason


def zip_member(archive: zipfile.ZipFile, name: str, *, limit: int | None = None, error: Error = DataError) -> bytes:
    """Return one member of a zip archive.

    Args:
        limit: largest unpacked size in bytes; None: half of the memory that is available.

    Raises:
        the class ``error``: the member is missing, damaged, encrypted, or larger than the limit.
    """
    limit = available_memory() // 2 if limit is None else limit
    what = f"{archive.filename or 'the archive'}: {name} unpacks to"
    try:
        size = archive.getinfo(name).file_size
        if size > limit:
            raise error(f"{what} {amount(size)}; at most {amount(limit)} are read")
        with archive.open(name) as file:
            return _bounded(file, limit, what, error)
    except _ZIP_ERRORS as reason:
        raise error(f"{archive.filename or 'the archive'}: {name} can't be read: {reason}") from reason


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


_ZIP_ERRORS = (
    OSError,
    EOFError,
    KeyError,
    ValueError,
    RuntimeError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What zipfile raises for damaged, encrypted or unknown archives."""


def _bounded(file: _Readable, limit: int, what: str, error: Error) -> bytes:
    content = bytearray()
    while chunk := file.read(CHUNK):
        content += chunk
        if len(content) > limit:
            raise error(f"{what} more than {amount(limit)}, the most that is read")
    return bytes(content)


# --- arrays ----------------------------------------------------------------------------------------------------------
def read_npy(stream: IO[bytes], *, size: int, name: str, error: Error = DataError) -> np.ndarray:
    """Return the array of a .npy file or archive member; its header is checked against ``size`` before allocating.

    Args:
        size: bytes that the stream holds.
        name: what is read, for the message.

    Raises:
        the class ``error``: it is not a .npy file, holds Python objects, is cut short, or its header claims more
            than the stream or the memory holds.
    """
    import numpy as np

    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        else:
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    except (zipfile.BadZipFile, zlib.error) as reason:
        raise error(f"{name} is damaged: {reason}") from reason
    except Exception as reason:  # the header is Python source, which fails in many ways
        raise error(
            f"{name} is not a .npy array: {(str(reason).splitlines() or ['its header is damaged'])[0]}"
        ) from reason
    if dtype.hasobject:
        raise error(f"{name} holds Python objects (pickled) and is not read: unpickling runs code from the file")
    needed = dtype.itemsize
    for length in shape:
        needed *= length
    if needed > max(0, size - 64) or any(length < 0 for length in shape):  # a header takes at least 64 bytes
        raise error(f"{name} is damaged: its header claims shape {shape} of {dtype}, more than its {amount(size)}")
    if needed > available_memory():
        raise error(f"{name} needs {amount(needed)} of memory; {amount(available_memory())} are available")
    array = np.empty(shape, dtype, order="F" if fortran else "C")
    try:
        got = _fill(stream, array.reshape(-1, order="A").view(np.uint8).data) if needed else 0
    except _ZIP_ERRORS as reason:
        raise error(f"{name} is damaged: {reason}") from reason
    if got != needed:
        raise error(f"{name} is cut short: {got} of {needed} bytes")
    return array


def _fill(stream: IO[bytes], buffer: memoryview) -> int:
    done = 0
    while done < len(buffer):
        chunk = stream.read(min(CHUNK, len(buffer) - done))
        if not chunk:
            break
        buffer[done : done + len(chunk)] = chunk
        done += len(chunk)
    return done


def read_npy_file(path: Path, *, error: Error = DataError) -> np.ndarray:
    """Return the array of a .npy file; see `read_npy`."""
    with open_regular(path, error=error) as file:
        return read_npy(file, size=os.fstat(file.fileno()).st_size, name=str(path), error=error)


class NpzArchive:
    """A .npz archive whose arrays are read one at a time, each within bounds.

    Args:
        path: the archive.
        error: makes the error from a message.

    Raises:
        the class ``error``: the file can't be opened, or is not a zip archive.
    """

    def __init__(self, path: Path, *, error: Error = DataError) -> None:
        self._path, self._error = path, error
        self._file = open_regular(path, error=error)
        try:
            self._archive = zipfile.ZipFile(self._file)
        except _ZIP_ERRORS as reason:
            self._file.close()
            raise error(f"{path} is not a .npz archive: {reason}") from reason

    @property
    def names(self) -> list[str]:
        """Names of the arrays."""
        return [name.removesuffix(".npy") for name in self._archive.namelist() if name.endswith(".npy")]

    def read(self, name: str) -> np.ndarray:
        """Return one array; see `read_npy`."""
        label = f"array {name!r} of {self._path}"
        try:
            info = self._archive.getinfo(f"{name}.npy")
            with self._archive.open(info) as member:
                return read_npy(member, size=info.file_size, name=label, error=self._error)
        except _ZIP_ERRORS as reason:
            raise self._error(f"{label} is damaged: {reason}") from reason

    def close(self) -> None:
        """Close the file."""
        self._archive.close()
        self._file.close()

    def __enter__(self) -> NpzArchive:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
