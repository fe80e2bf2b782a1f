"""Image files of a dataset: listing them, and parts that decode them and cache the images."""

from __future__ import annotations

import hashlib
import math
import os
import threading
import warnings
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from gebm_kit.core.errors import DataError
from gebm_kit.core.interfaces import Split, SplitName
from gebm_kit.core.pixels import scale_bytes
from gebm_kit.core.progress import warn
from gebm_kit.core.reading import available_memory
from gebm_kit.data.decoding import CorruptImageError, Fit, Opened, refuse, upright_sides
from gebm_kit.data.tensors import SPLITS

__all__ = [
    "CorruptFiles",
    "CorruptImageError",
    "Fit",
    "ImageFiles",
    "Images",
    "Listed",
    "common_sides",
    "image_parts",
    "list_images",
    "shuffled",
]

NAMED_FILES = 5
"""Corrupt files that an error about too many of them names: enough to find the cause, few enough for one line."""

# fmt: off
COMPANIONS = (
    ".txt", ".md", ".rst", ".html", ".pdf", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".ini", ".log",
    ".db", ".py", ".sh", ".url",
)
# fmt: on
"""Suffixes of files that usually lie beside images; leaving them out needs no warning."""

COMPANION_NAMES = ("license", "licence", "readme", "makefile", "thumbs.db")
"""The same by name, in lower case, for files without a suffix."""


class CorruptFiles:
    """Files of a dataset that can't be decoded: each is counted and named in a warning; too many are an error.

    Attributes:
        limit: how many files are skipped; one more is an error.
        reasons: what is wrong with each file, by its path or another name.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.reasons: dict[Path | str, str] = {}
        self._lock = threading.Lock()  # training reads ahead in a thread of its own

    def note(self, file: Path | str, reason: object) -> None:
        """Count ``file`` as one that can't be decoded, however often it is met.

        Raises:
            DataError: the count is now above ``limit``.
        """
        with self._lock:
            if file in self.reasons:
                return
            self.reasons[file] = str(reason)
        hint = f"The last one: {reason}. Remove or replace them, or allow more with data.max_corrupt."
        if self.limit == 0:
            raise DataError(
                f"image {file} can't be decoded: {reason}",
                hint="Remove or replace it, or allow more of them with data.max_corrupt.",
            )
        count = len(self.reasons)
        if count > self.limit:
            names = ", ".join(map(str, list(self.reasons)[-NAMED_FILES:]))
            more = f" and {count - NAMED_FILES} more" if count > NAMED_FILES else ""
            raise DataError(f"{count} images can't be decoded, {self.limit} are allowed: {names}{more}", hint=hint)
        warnings.warn(
            f"image {file} can't be decoded ({reason}) and is skipped, {count} of at most {self.limit}", stacklevel=2
        )

    def by_name(self) -> dict[str, str]:
        """Return the reasons by name, sorted by name."""
        with self._lock:
            return {str(file): reason for file, reason in sorted(self.reasons.items(), key=lambda item: str(item[0]))}


class Images(Split):
    """Images of one part; the first ``num_cached`` stay in memory as bytes once decoded.

    An image that can't be decoded is skipped: the next intact image of the part (of its group, if there are groups) takes
    its place. Rows therefore do not depend on the order in which they are read.

    Args:
        num: number of images.
        shape: (C, H, W) of each image.
        num_cached: how many images stay in memory.
        corrupt: where images that can't be decoded are counted.
        groups: a number for each image, such as its class, (N,).
    """

    def __init__(
        self, num: int, shape: tuple[int, ...], num_cached: int, corrupt: CorruptFiles, groups: Tensor | None = None
    ) -> None:
        self._num, self._shape, self._corrupt, self._groups = num, shape, corrupt, groups
        self._cache = torch.empty(num_cached, *shape, dtype=torch.uint8)  # memory is taken only as rows are written
        self._decoded = torch.zeros(num_cached, dtype=torch.bool)

    @abstractmethod
    def name(self, place: int) -> Path | str:
        """Return what messages call the image."""

    @abstractmethod
    def decoded(self, place: int) -> Tensor:
        """Return the decoded image, (C, H, W) uint8.

        Raises:
            CorruptImageError: the image can't be decoded.
        """

    def __len__(self) -> int:
        return self._num

    def batch(self, indices: Tensor) -> Tensor:
        return self.decode(self.stored(indices))

    def decode(self, stored: Tensor) -> Tensor:
        return scale_bytes(stored)

    def stored(self, indices: Tensor | None) -> Tensor:
        if indices is None:
            everything = torch.arange(len(self))
            if len(self._cache) < len(self):
                return self.stored(everything)
            for part in everything.split(256):  # in pieces, since each call also copies its rows
                self.stored(part)  # fills the cache, which then holds every row
            return self._cache
        rows = torch.empty(len(indices), *self._shape, dtype=torch.uint8)
        for row, index in enumerate(indices.tolist()):
            if not -self._num <= index < self._num:
                raise IndexError(f"index {index} is out of range for {self._num} images")
            rows[row] = self._row(index % self._num)
        return rows

    def _row(self, index: int) -> Tensor:
        if index >= len(self._cache):
            return self._read(index)
        if not self._decoded[index]:
            self._cache[index] = self._read(index)
            self._decoded[index] = True
        return self._cache[index]

    def _read(self, index: int) -> Tensor:
        """Return the image at ``index``, or the next intact one, (C, H, W) uint8."""
        for step in range(len(self)):
            place = (index + step) % len(self)
            name = self.name(place)
            if name in self._corrupt.reasons or (
                self._groups is not None and self._groups[place] != self._groups[index]
            ):
                continue
            try:
                image = self.decoded(place)
            except CorruptImageError as error:
                self._corrupt.note(name, error)
                continue
            if tuple(image.shape) != self._shape:
                sides = f"{image.shape[2]}x{image.shape[1]}"
                raise DataError(f"image {name} is now {sides}: it changed since the run began")
            return image
        raise DataError(f"none of the images that could stand in for {self.name(index)} can be decoded")


class ImageFiles(Images):
    """`Images` of a folder.

    Args:
        folder: folder of the files.
        names: paths of the files inside the folder.
        fit: steps that bring each image to ``shape``.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        shape: tuple[int, ...],
        fit: Fit,
        num_cached: int,
        corrupt: CorruptFiles,
        groups: Tensor | None = None,
    ) -> None:
        super().__init__(len(names), shape, num_cached, corrupt, groups)
        self._folder, self._names, self._fit = folder, names, fit

    def name(self, place: int) -> Path:
        return self._folder / self._names[place]

    def decoded(self, place: int) -> Tensor:
        return self._fit.decode(self.name(place))


def image_parts(
    folder: Path,
    parts: Mapping[SplitName, Sequence[str]],
    shape: tuple[int, ...],
    fit: Fit,
    cache_mb: int,
    corrupt: CorruptFiles,
    groups: Mapping[SplitName, Tensor] | None = None,
) -> dict[SplitName, Split]:
    """Return the three parts; they share ``cache_mb`` megabytes for decoded images, and training takes its share first."""
    budget = min(cache_mb * 2**20, available_memory()) // math.prod(shape)
    made: dict[SplitName, Split] = {}
    for part in SPLITS:
        kept = min(budget, len(parts[part]))
        of_part = groups[part] if groups is not None else None
        made[part] = ImageFiles(folder, parts[part], shape, fit, kept, corrupt, of_part)
        budget -= kept
    return made


@dataclass(slots=True)
class Listed:
    """Images of a folder and its sub-folders, and what was left out.

    Attributes:
        names: sorted paths of the images, relative to the folder, with forward slashes.
        others: number of files with other suffixes, by suffix in lower case.
        hidden: number of hidden files and folders.
        links: number of links to folders, which are not followed.
    """

    names: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    hidden: int = 0
    links: int = 0

    def left_out(self) -> str:
        """Say in a few words what was left out, or "nothing"."""
        said = [_by_suffix(self.others)] if self.others else []
        said += [f"{self.hidden:,} hidden"] * bool(self.hidden)
        said += [f"{self.links:,} link(s) to folders"] * bool(self.links)
        return ", ".join(said) or "nothing"


def list_images(folder: Path, suffixes: Sequence[str], hint: str) -> Listed:
    """List the images below ``folder``. Files that may be images but have other suffixes are counted in a warning.

    Raises:
        DataError: the folder does not exist, can't be read, or holds no image.
    """
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(f"image folder {folder} {problem}", hint=hint)
    listed, unknown = Listed(), Counter[str]()
    for inside, entry in _entries(folder):
        suffix = os.path.splitext(entry.name)[1].lower()
        if entry.name.startswith("."):
            listed.hidden += 1
        elif _leads_to_folder(entry):
            listed.links += 1
        elif suffix in suffixes:
            listed.names.append(inside + entry.name)
        else:
            listed.others[suffix] += 1
            unknown[suffix] += suffix not in COMPANIONS and entry.name.lower() not in COMPANION_NAMES
    known = ", ".join(suffixes)
    left_out = ", ".join(
        f"{count:,} {suffix or 'without a suffix'}" for suffix, count in unknown.most_common() if count
    )
    if not listed.names:
        also = f" (there are: {left_out})" if left_out else ""
        raise DataError(f"image folder {folder} holds no {' or '.join(known.rsplit(', ', 1))} file{also}", hint=hint)
    if left_out:
        warn(f"image folder {folder}: files are left out because of their suffix: {left_out}; read are {known}")
    if listed.links:
        warn(
            f"image folder {folder}: {listed.links:,} link(s) to folders are not followed, so what they hold is left out"
        )
    listed.names.sort()
    return listed


def _by_suffix(counts: Counter[str]) -> str:
    """Write numbers of files, the largest first: ``2 .avif, 1 without a suffix``."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {suffix or 'without a suffix'}" for suffix, count in ordered)


def _entries(folder: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield the entries below a folder except folders that are not hidden, each with the path that it lies in.

    Raises:
        DataError: a folder can't be read.
    """
    places = [""]
    while places:
        inside = places.pop()
        try:
            with os.scandir(folder / inside) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                        places.append(f"{inside}{entry.name}/")
                    else:
                        yield inside, entry
        except OSError as error:
            raise DataError(f"{folder / inside} can't be read: {error.strerror}") from error


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a link to a folder. (Folders themselves are walked by `_entries`.)"""
    try:
        return entry.is_dir()
    except OSError:  # a circle of links
        return False


def shuffled(names: Sequence[str], seed: int) -> list[str]:
    """Return ``names`` sorted by a hash of the name and the seed; the order of two names does not depend on the others."""
    return sorted(names, key=lambda name: hashlib.sha256(os.fsencode(f"{seed}/{name}")).digest())


def common_sides(folder: Path, names: Sequence[str], corrupt: CorruptFiles) -> tuple[int, int]:
    """Return the (height, width) that all images have, from their headers alone.

    Raises:
        DataError: the images differ in size, or too many can't be opened.
    """
    first: tuple[Path, tuple[int, int]] | None = None
    for name in names:
        file = folder / name
        try:
            with Opened(file) as image:
                refuse(image, file)
                sides = upright_sides(image)
        except DataError:
            raise
        except Exception as error:  # as in Fit.decode
            corrupt.note(file, error)
            continue
        first = first or (file, sides)
        if sides != first[1]:
            raise DataError(
                f"images differ in size: {first[0]} is {first[1][1]}x{first[1][0]}, {file} is {sides[1]}x{sides[0]}",
                hint="Set data.size to resize them all.",
            )
    if first is None:
        raise DataError(f"none of the images in {folder} can be opened")
    return first[1]
