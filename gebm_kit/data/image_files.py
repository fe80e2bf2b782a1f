"""Image files of a dataset: listing them, decoding them to one shape, and parts that cache decoded images."""

from __future__ import annotations

import hashlib
import os
import threading
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from gebm_kit.core.errors import DataError
from gebm_kit.core.interfaces import Split, SplitName
from gebm_kit.core.pixels import scale_bytes
from gebm_kit.data.tensors import SPLITS

DEEP_MODES = ("I", "F")
"""First letters of Pillow's modes with more than 8 bits a channel, which Pillow's conversions clip instead of scaling."""

NAMED_FILES = 5
"""Corrupt files that an error about too many of them names: enough to find the cause, few enough for one line."""


class CorruptImageError(Exception):
    """A file that is not an image, or only part of one."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Steps that bring an image to its shape.

    The image is turned upright (EXIF), cut to its central ``crop`` x ``crop`` square when ``crop`` is given, resized with an
    antialiasing bicubic filter so that its shorter side is ``size``, and cut to the central ``size`` x ``size`` square.

    Attributes:
        size: side of the result; None keeps the size.
        crop: side of a central square that is cut out first.
        channels: 3 for colour, 1 for grey.
    """

    size: int | None
    crop: int | None = None
    channels: int = 3

    def decode(self, file: Path | BinaryIO, name: object = None) -> Tensor:
        """Decode the image, (C, H, W) uint8; messages call it ``name``, by default its path.

        Raises:
            CorruptImageError: the image can't be decoded.
            DataError: the image has more than 8 bits a channel, or is smaller than ``crop``.
        """
        name = file if name is None else name
        try:
            with Image.open(file) as opened:
                if opened.mode.startswith(DEEP_MODES):
                    raise DataError(
                        f"image {name} has more than 8 bits a channel (mode {opened.mode}); convert it first"
                    )
                image = ImageOps.exif_transpose(opened).convert("L" if self.channels == 1 else "RGB")
        except DataError:
            raise
        except UnidentifiedImageError as error:
            raise CorruptImageError("it is not an image in a known format") from error
        except Exception as error:  # Pillow raises many types on damaged files, some of them undocumented
            raise CorruptImageError(str(error)) from error
        pixels = np.asarray(self._fitted(image, name))
        return torch.from_numpy(pixels.copy()).reshape(*pixels.shape[:2], self.channels).permute(2, 0, 1)

    def _fitted(self, image: Image.Image, name: object) -> Image.Image:
        if self.crop is not None:
            if min(image.size) < self.crop:
                raise DataError(f"image {name} is {image.width}x{image.height}, smaller than crop {self.crop}")
            image = _central_square(image, self.crop)
        if self.size is None:
            return image
        scale = self.size / min(image.size)
        width, height = (max(self.size, round(side * scale)) for side in image.size)
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        return _central_square(image, self.size)


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
        hint = "Remove or replace it, or allow more of them with data.max_corrupt."
        if self.limit == 0:
            raise DataError(f"image {file} can't be decoded: {reason}", hint=hint)
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
    budget = cache_mb * 2**20 // int(np.prod(shape))
    made: dict[SplitName, Split] = {}
    for part in SPLITS:
        kept = min(budget, len(parts[part]))
        of_part = groups[part] if groups is not None else None
        made[part] = ImageFiles(folder, parts[part], shape, fit, kept, corrupt, of_part)
        budget -= kept
    return made


def list_images(folder: Path, suffixes: Sequence[str], hint: str) -> list[str]:
    """Return the sorted paths of the images below ``folder``, relative to it, with forward slashes, without hidden files.

    Raises:
        DataError: the folder does not exist, or holds no image.
    """
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(f"image folder {folder} {problem}", hint=hint)
    names: list[str] = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(place).relative_to(folder).as_posix()
        prefix = "" if inside == "." else f"{inside}/"
        names += [
            prefix + name
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes
        ]
    if not names:
        *others, last = suffixes
        raise DataError(f"image folder {folder} holds no {', '.join(others)} or {last} file", hint=hint)
    return sorted(names)


def shuffled(names: Sequence[str], seed: int) -> list[str]:
    """Return ``names`` sorted by a hash of the name and the seed; the order of two names does not depend on the others."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())


def common_sides(folder: Path, names: Sequence[str], corrupt: CorruptFiles) -> tuple[int, int]:
    """Return the (height, width) that all images have, from their headers alone.

    Raises:
        DataError: the images differ in size, or too many can't be opened.
    """
    first: tuple[Path, tuple[int, int]] | None = None
    for name in names:
        file = folder / name
        try:
            with Image.open(file) as image:
                # EXIF tag 0x0112 is the orientation; 5 to 8 exchange the sides.
                sides = image.size[::-1] if image.getexif().get(0x0112, 1) < 5 else image.size
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


def _central_square(image: Image.Image, side: int) -> Image.Image:
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
