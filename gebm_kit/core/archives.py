"""Bounded readers of compressed files and arrays: gzip, zip, tar, .npy, .npz.

What a header claims is checked against the size of the file and the available memory before anything is allocated. Errors
are those of core/reading.py. numpy is imported where arrays are read.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Container
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from gebm_kit.core.errors import DataError, GebmKitError
from gebm_kit.core.reading import Error, amount, available_memory, open_regular

if TYPE_CHECKING:
    import numpy as np

CHUNK = 2**20
"""Bytes decompressed at a time."""

MAX_HEADER = 2**16
"""Longest header of a .npy array, in bytes. numpy parses 10,000 by default, but reads more before it looks."""

MAX_REASON = 200
"""Most characters of numpy's words about a header, which it quotes whole."""

MAX_MEMBERS = 10_000
"""Most members of a tar archive that are looked through; each takes memory, whatever its size."""


# --- compressed files ------------------------------------------------------------------------------------------------
def open_unpacked(path: Path, *, error: Error = DataError) -> IO[bytes]:
    """Open a file for reading; gzip, bz2 and xz are recognised by their first bytes, and unpacked while reading.

    Whoever reads decides how much: nothing is unpacked before it is asked for.

    Raises:
        the class ``error``: the file can't be opened.
    """
    file = open_regular(path, error=error)
    try:
        start = file.read(6)
        file.seek(0)
    except OSError as reason:
        file.close()
        raise error(f"{path} can't be read: {reason}") from reason
    if start.startswith(b"\x1f\x8b"):
        return cast("IO[bytes]", gzip.GzipFile(fileobj=file))
    if start.startswith(b"BZh"):
        return cast("IO[bytes]", bz2.BZ2File(file))
    if start == b"\xfd7zXZ\0":
        return cast("IO[bytes]", lzma.LZMAFile(file))
    return file


def tar_members(path: Path, wanted: Container[str], *, limit: int, error: Error = DataError) -> TarFound:
    """Read the members of a tar archive, packed or not, whose names end in one of ``wanted``.

    Args:
        wanted: last parts of the names, without folders.
        limit: most bytes to unpack, in all.

    Raises:
        the class ``error``: the archive can't be opened, is damaged, unpacks to more than the limit, or has a header
            that is larger than a member's name and attributes can be.
    """
    found, names = {}, []
    with open_unpacked(path, error=error) as file:
        stream = _Forward(file, limit, f"{path} unpacks to", error)
        try:
            with tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r:") as archive:
                for member in archive:
                    name = member.name.rsplit("/", 1)[-1]
                    names.append(name)
                    if len(names) > MAX_MEMBERS:
                        raise error(f"{path} has more than {MAX_MEMBERS:,} members")
                    content = archive.extractfile(member) if name in wanted and member.isreg() else None
                    if content is not None:
                        if name in found:
                            raise error(f"{path} holds more than one {name}")
                        found[name] = _bounded(content, limit, f"{path}: {name} unpacks to", error)
        except (tarfile.TarError, RecursionError, OverflowError, lzma.LZMAError, *_ZIP_ERRORS) as reason:
            raise error(f"{path} can't be read: {reason}") from reason
    return TarFound(found, tuple(names))


class TarFound(NamedTuple):
    """Members of a tar archive: the contents of those that were wanted, and the last parts of all names."""

    contents: dict[str, bytes]
    names: tuple[str, ...]


class _Forward:
    """A stream for tarfile that counts what it unpacks, and refuses to read more at once than a header can need.

    tarfile reads a header of the size that the archive claims; members are read in pieces of `CHUNK`.
    """

    def __init__(self, file: IO[bytes], limit: int, what: str, error: Error) -> None:
        self._file, self._left, self._what, self._limit, self._error = file, limit, what, limit, error
        self._at = 0

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= 2 * CHUNK:
            raise OSError(f"a header claims {amount(size)}")
        content = self._file.read(size)
        self._at += len(content)
        self._left -= len(content)
        if self._left < 0:
            raise self._error(f"{self._what} more than {amount(self._limit)}, the most that is read")
        return content

    def tell(self) -> int:
        return self._at

    def seek(self, place: int) -> int:
        if place < self._at:  # tarfile goes back by a header at most
            self._file.seek(place)
            self._at = place
        while self._at < place and self.read(min(CHUNK, place - self._at)):
            pass
        return self._at


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

    shape, fortran, dtype = npy_header(stream, name=name, error=error)
    needed = dtype.itemsize
    for length in shape:
        needed *= length
    if needed > max(0, size - 64) or any(length < 0 for length in shape):  # a header takes at least 64 bytes
        raise error(f"{name} is damaged: its header claims shape {shape} of {dtype}, more than its {amount(size)}")
    if needed > available_memory():
        raise error(f"{name} needs {amount(needed)} of memory; {amount(available_memory())} are available")
    try:
        array = np.empty(shape, dtype, order="F" if fortran else "C")
    except (ValueError, OverflowError, MemoryError) as reason:  # too many dimensions; lengths beyond 2**63 beside a 0
        raise error(f"{name} is damaged: its header claims shape {shape} of {dtype}") from reason
    try:
        got = _fill(stream, array.reshape(-1, order="A").view(np.uint8).data) if needed else 0
        more = stream.read(1)  # at the end of an archive member, its checksum is compared too
    except _ZIP_ERRORS as reason:
        raise error(f"{name} is damaged: {reason}") from reason
    if got != needed:
        raise error(f"{name} is cut short: {got} of {needed} bytes")
    if more:
        raise error(f"{name} is damaged: more bytes follow than its header, shape {shape} of {dtype}, accounts for")
    return array


def npy_header(
    stream: IO[bytes], *, name: str, error: Error = DataError
) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of a .npy array: its shape, whether it is in Fortran's order, and its type.

    Raises:
        the class ``error``: it is not a .npy file, or holds Python objects.
    """
    import numpy as np

    try:
        magic = stream.read(np.lib.format.MAGIC_LEN)
        version = np.lib.format.read_magic(io.BytesIO(magic))
        field = stream.read(2 if version == (1, 0) else 4)
        length = int.from_bytes(field, "little")
        if length > MAX_HEADER:
            raise error(f"{name} is damaged: its header claims {amount(length)}")
        header = io.BytesIO(field + stream.read(length))
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(header)
    except (zipfile.BadZipFile, zlib.error) as reason:
        raise error(f"{name} is damaged: {reason}") from reason
    except GebmKitError:
        raise
    except Exception as reason:  # the header is Python source, which fails in many ways
        raise error(
            f"{name} is not a .npy array: {(str(reason).splitlines() or ['its header is damaged'])[0][:MAX_REASON]}"
        ) from reason
    if dtype.hasobject:
        raise error(f"{name} holds Python objects (pickled) and is not read: unpickling runs code from the file")
    if any(type(length) is not int for length in shape):  # numpy takes True for a length here, and not later
        raise error(f"{name} is damaged: its header claims shape {shape}")
    return shape, fortran, dtype


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

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Return the shape and the type that one array's header claims; see `npy_header`."""
        label = f"array {name!r} of {self._path}"
        try:
            with self._archive.open(f"{name}.npy") as member:
                shape, _, dtype = npy_header(member, name=label, error=self._error)
                return shape, dtype
        except KeyError as reason:
            raise self._error(f"{self._path} holds no array {name!r}") from reason
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
