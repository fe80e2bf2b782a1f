"""Sources of a dataset: its files, whether they have changed, and the pieces of a stream that can't be indexed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from gebm_kit.core.datasets import SplitName

DIGEST_BYTES = 16
"""Bytes of one file's hash: 128 bits make a chance collision negligible even among millions of files."""


@dataclass(frozen=True, slots=True)
class Source:
    """One file, or the files of a folder and its sub-folders; hidden files and folders are left out.

    Attributes:
        path: file or folder; it need not exist.
        suffixes: in a folder, only files with these suffixes count (lower case, with the dot); (): all files.
    """

    path: Path
    suffixes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Summary of files by name, size and modification time, to detect changes without reading their contents.

    Attributes:
        files, size: number of files, and their total size in bytes.
        digest: hash of all names, sizes and times, whatever their order.
        newest, newest_file: latest modification time, in nanoseconds since 1970, and the file that has it.
    """

    files: int
    size: int
    digest: str
    newest: int
    newest_file: str


@runtime_checkable
class HasSources(Protocol):
    """A dataset of images that is read from files and can be prepared (``gebm-kit data prepare``)."""

    def sources(self) -> Sequence[Source]:
        """Return everything that the rows depend on, including files that do not exist but would be read if they did."""
        ...

    def skipped(self) -> Mapping[str, str]:
        """Return the images skipped so far because they can't be decoded: what is wrong with each, by name."""
        ...


class Piece(NamedTuple):
    """Some rows of one part, (B, C, H, W) uint8, and their class indices, (B,) int64; None without labels."""

    part: SplitName
    rows: Tensor
    labels: Tensor | None


@runtime_checkable
class HasPieces(Protocol):
    """A dataset that can be a stream, read in one order only. A stream has no splits; it is prepared before training.

    Attributes:
        streaming: whether the dataset is a stream.
        num_rows: number of rows to come, for the progress bar; None where it is not known.
    """

    streaming: bool
    num_rows: int | None

    def pieces(self) -> Iterator[Callable[[], Sequence[Piece]]]:
        """Yield functions that make the rows of all parts.

        They may be called one after another or in parallel; their results are kept in this order.
        """
        ...


def fingerprint(source: Source) -> Fingerprint:
    """Return the fingerprint of the files as they are now, even if there are none.

    The digest is the sum of one hash per file, so that millions of files are neither sorted nor held in memory.
    """
    files, size, total, newest, newest_file = 0, 0, 0, 0, ""
    for name, status in _statuses(source):
        entry = f"{name}\0{status.st_size}\0{status.st_mtime_ns}"
        digest = hashlib.blake2b(entry.encode(errors="surrogateescape"), digest_size=DIGEST_BYTES).digest()
        total = (total + int.from_bytes(digest, "little")) % 2 ** (8 * DIGEST_BYTES)
        files, size = files + 1, size + status.st_size
        if status.st_mtime_ns > newest:
            newest, newest_file = status.st_mtime_ns, name
    return Fingerprint(files, size, f"{total:0{2 * DIGEST_BYTES}x}", newest, newest_file)


def _statuses(source: Source) -> Iterator[tuple[str, os.stat_result]]:
    """Yield each file's path inside the folder (or the file's own name) and its status."""
    if not source.path.is_dir():
        if source.path.exists():
            yield source.path.name, source.path.stat()
        return
    folders = [""]
    while folders:
        inside = folders.pop()
        with os.scandir(source.path / inside) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{inside}{entry.name}/")
                elif not source.suffixes or os.path.splitext(entry.name)[1].lower() in source.suffixes:
                    try:
                        yield f"{inside}{entry.name}", entry.stat()
                    except OSError:  # a broken link, or a circle of links
                        continue
