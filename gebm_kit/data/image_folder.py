"""A folder of PNG and JPEG images, nested as it may be."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from gebm_kit.core.components import Injected, Range, check_arguments
from gebm_kit.core.errors import DataError, UsageError
from gebm_kit.core.interfaces import Dataset, Split, SplitName
from gebm_kit.data.tensors import SPLITS, check_fractions, part_sizes, scale_bytes

SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
DEEP_MODES = ("I", "F")
"""First letter of Pillow's modes with more than 8 bits a channel, which its conversions cut off instead of scaling."""

HOW_TO_GET = (
    "Put PNG or JPEG files there, in sub-folders if you like, or set data.path. CelebA: download img_align_celeba.zip "
    "from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html, unpack it, and use crop 140 and size 64."
)


class ImageFolder(Dataset):
    """Images (channels, size, size) in [-1, 1], decoded when first asked for and kept as bytes in memory.

    An image is turned upright (EXIF), cut to its central ``crop`` x ``crop`` square when ``crop`` is given, resized with
    an antialiasing bicubic filter so that its shorter side is ``size``, and cut to the central ``size`` x ``size`` square.

    The parts are filled in the order of a hash of each file's relative path and the seed: they do not depend on the order
    in which the file system lists files, and each is in random order.

    Labels are the names of the first-level sub-folders, in sorted order, when every image lies in one and there are at
    least two.

    Args:
        path: the folder, relative to the directory that the command is started in.
        size: side of the result; None keeps images as they are, which needs them all of one size.
        crop: side of a central square that is cut out first.
        channels: 3 for colour, 1 for grey.
        valid_fraction, test_fraction: shares of the files; the rest is for training.
        seed: seed of the split.
        cache_mb: megabytes of decoded images to keep; what goes beyond is decoded each time.

    Raises:
        DataError: no folder, fewer than three images, images of mixed sizes with ``size: null``; later, while reading,
            an image that can't be decoded or is smaller than ``crop``. The message names the file.
    """

    num_classes: int

    def __init__(
        self,
        path: str,
        size: Annotated[int | None, Range(1, None)] = 64,
        crop: Annotated[int | None, Range(1, None)] = None,
        channels: Literal[1, 3] = 3,
        valid_fraction: Annotated[float, Range(0, 1, low_open=True, high_open=True)] = 0.1,
        test_fraction: Annotated[float, Range(0, 1, low_open=True, high_open=True)] = 0.1,
        seed: int = 0,
        cache_mb: Annotated[int, Range(0, None)] = 4096,
        *,
        directory: Annotated[Path, Injected] = Path(),
    ) -> None:
        check_arguments(self, valid_fraction=valid_fraction, test_fraction=test_fraction, cache_mb=cache_mb)
        if channels not in (1, 3):
            raise UsageError(f"channels must be 1 or 3, got {channels!r}")
        for name, value in (("size", size), ("crop", crop)):
            if value is not None:
                check_arguments(self, **{name: value})
        check_fractions(valid_fraction, test_fraction)
        folder = directory / Path(path).expanduser()
        files = _image_files(folder)
        height, width = (size, size) if size is not None else (crop, crop) if crop is not None else _common_size(files)
        self.data_shape = (channels, height, width)
        self.value_range = (-1.0, 1.0)

        files.sort(key=lambda file: hashlib.sha256(f"{seed}/{file.relative_to(folder).as_posix()}".encode()).digest())
        num_valid, num_test = part_sizes(len(files), valid_fraction, test_fraction)
        parts: dict[SplitName, list[Path]] = {
            "valid": files[:num_valid],
            "test": files[num_valid : num_valid + num_test],
            "train": files[num_valid + num_test :],
        }
        budget = cache_mb * 2**20 // (channels * height * width)
        self._splits: dict[SplitName, _ImageSplit] = {}
        for part in SPLITS:
            self._splits[part] = _ImageSplit(parts[part], self.data_shape, size, crop, min(budget, len(parts[part])))
            budget -= min(budget, len(parts[part]))
        self._fill_labels(folder, parts)

    def split(self, name: SplitName) -> Split:
        return self._splits[name]

    def labels(self, name: SplitName) -> Tensor:
        """Index of each image's first-level folder, (N,) int64.

        Raises:
            UsageError: the images do not lie in two such folders or more.
        """
        if not hasattr(self, "num_classes"):
            raise UsageError("these images have no labels: they do not lie in two sub-folders or more")
        return self._labels[name]

    def _fill_labels(self, folder: Path, parts: dict[SplitName, list[Path]]) -> None:
        inside = {part: [file.relative_to(folder).parts for file in files] for part, files in parts.items()}
        if any(len(names) < 2 for files in inside.values() for names in files):
            return
        classes = sorted({names[0] for files in inside.values() for names in files})
        if len(classes) < 2:
            return
        number = {name: index for index, name in enumerate(classes)}
        self._labels = {part: torch.tensor([number[n[0]] for n in files]) for part, files in inside.items()}
        self.num_classes = len(classes)


class _ImageSplit(Split):
    """Images of one part; the first ``num_cached`` stay in memory once decoded."""

    def __init__(
        self, files: list[Path], shape: tuple[int, ...], size: int | None, crop: int | None, num_cached: int
    ) -> None:
        self._files, self._shape, self._size, self._crop = files, shape, size, crop
        self._cache = torch.empty(num_cached, *shape, dtype=torch.uint8)  # pages are taken as they are first written
        self._decoded = torch.zeros(num_cached, dtype=torch.bool)

    def __len__(self) -> int:
        return len(self._files)

    def batch(self, indices: Tensor) -> Tensor:
        return self.decode(self.stored(indices))

    def decode(self, stored: Tensor) -> Tensor:
        return scale_bytes(stored)

    def stored(self, indices: Tensor | None) -> Tensor:
        if indices is None:
            everything = torch.arange(len(self))
            if len(self._cache) < len(self):
                return self.stored(everything)
            for part in everything.split(256):
                self.stored(part)  # fills the cache, which then is what is asked for
            return self._cache
        rows = torch.empty(len(indices), *self._shape, dtype=torch.uint8)
        for row, index in enumerate(torch.arange(len(self))[indices].tolist()):  # negative and out of range as in torch
            if index < len(self._cache):
                if not self._decoded[index]:
                    self._cache[index] = self._decode(index)
                    self._decoded[index] = True
                rows[row] = self._cache[index]
            else:
                rows[row] = self._decode(index)
        return rows

    def _decode(self, index: int) -> Tensor:
        """(C, H, W) uint8."""
        file = self._files[index]
        try:
            with Image.open(file) as opened:
                if opened.mode.startswith(DEEP_MODES):
                    raise DataError(
                        f"image {file} has more than 8 bits a channel (mode {opened.mode}); convert it first"
                    )
                image = ImageOps.exif_transpose(opened).convert("L" if self._shape[0] == 1 else "RGB")
        except DataError:
            raise
        except Exception as error:  # Pillow raises many types on damaged files, some of them undocumented
            raise DataError(f"image {file} can't be decoded: {error}", hint="Remove or replace the file.") from error
        pixels = np.asarray(_fitted(image, self._size, self._crop, file))
        image_tensor = torch.from_numpy(pixels.copy()).reshape(*pixels.shape[:2], self._shape[0]).permute(2, 0, 1)
        if tuple(image_tensor.shape) != self._shape:
            raise DataError(f"image {file} is now {pixels.shape[1]}x{pixels.shape[0]}: it changed since the run began")
        return image_tensor


def _fitted(image: Image.Image, size: int | None, crop: int | None, file: Path) -> Image.Image:
    if crop is not None:
        if min(image.size) < crop:
            raise DataError(f"image {file} is {image.width}x{image.height}, smaller than crop {crop}")
        image = _central_square(image, crop)
    if size is None:
        return image
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return _central_square(image, size)


def _central_square(image: Image.Image, side: int) -> Image.Image:
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _image_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(f"image folder {folder} {problem}", hint=HOW_TO_GET)
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in SUFFIXES
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    if not files:
        raise DataError(f"image folder {folder} holds no .png, .jpg or .jpeg file", hint=HOW_TO_GET)
    if len(files) < 3:
        raise DataError(f"image folder {folder} holds {len(files)} image(s); train, valid and test need one each")
    return files


def _common_size(files: list[Path]) -> tuple[int, int]:
    """(height, width) of every image, from the headers alone."""
    first: tuple[Path, tuple[int, int]] | None = None
    for file in files:
        try:
            with Image.open(file) as image:
                # Orientations 5 to 8 of EXIF exchange the sides.
                sides = image.size[::-1] if image.getexif().get(0x0112, 1) < 5 else image.size
        except Exception as error:  # as in _decode
            raise DataError(f"image {file} can't be opened: {error}", hint="Remove or replace the file.") from error
        first = first or (file, sides)
        if sides != first[1]:
            raise DataError(
                f"images differ in size: {first[0]} is {first[1][1]}x{first[1][0]}, {file} is {sides[1]}x{sides[0]}",
                hint="Set data.size to resize them all.",
            )
    assert first is not None
    return first[1]
