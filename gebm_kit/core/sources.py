"""What a dataset is read from: its files, whether they are still the same, and pieces of a stream that can't be indexed."""

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


@dataclass(frozen=True, slots=True)
class Source:
    """One file, or the files of a folder and of its sub-folders, hidden ones left out.

    Attributes:
        path: file or folder; it need not exist.
        suffixes: in a folder only these files count, in lower case with the dot; (): all.
    """

    path: Path
    suffixes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What tells that files changed, from their names, sizes and times of change; their contents are not read.

    Attributes:
        files, size: how many there are, and their bytes together.
        digest: of all names, sizes and times, whatever their order.
        newest: time of the last change of any, in nanoseconds since 1970; its ``newest_file``.
    """

    files: int
    size: int
    digest: str
    newest: int
    newest_file: str


@runtime_checkable
class HasSources(Protocol):
    """A dataset of images that is read from files, and can be prepared (`gebm_kit.engine.datasets.prepare`)."""

    def sources(self) -> Sequence[Source]:
        """All that its rows depend on, including files that are not there but would be read if they were."""
        ...

    def skipped(self) -> Mapping[str, str]:
        """Images that were found to be no such so far, and were passed over: what is wrong with each, by its name."""
        ...


class Piece(NamedTuple):
    """Some rows of one part, (B, C, H, W) uint8, and their class indices, (B,) int64, where there are labels."""

    part: SplitName
    rows: Tensor
    labels: Tensor | None


@runtime_checkable
class HasPieces(Protocol):
    """A dataset that can come as a stream, in one order alone: it is prepared then, and has no splits.

    Attributes:
        streaming: whether it does.
        num_rows: how many rows there will be, where that is known, for a bar of progress.
    """

    streaming: bool
    num_rows: int | None

    def pieces(self) -> Iterator[Callable[[], Sequence[Piece]]]:
        """Work that makes the rows of all parts; called in turn or side by side, its results are kept in this order."""
        ...


def fingerprint(source: Source) -> Fingerprint:
    """Of the files as they are now; no file at all has a fingerprint too.

    The digest adds up one hash a file, so that millions of files need neither be sorted nor be held in memory.
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
    """Path inside the folder (or the file's own name) and status of each file."""
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
                    except FileNotFoundError:  # a link to nowhere
                        continue
