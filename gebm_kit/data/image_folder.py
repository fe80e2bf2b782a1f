"""A folder of image files, in any nesting."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor

from gebm_kit.core.components import Injected, Range, check_arguments
from gebm_kit.core.errors import DataError, UsageError
from gebm_kit.core.interfaces import Dataset, Split, SplitName
from gebm_kit.core.paths import user_path
from gebm_kit.core.progress import warn
from gebm_kit.core.sources import Source
from gebm_kit.data.class_texts import check_texts
from gebm_kit.data.decoding import IMAGE_SUFFIXES, MAX_SIDE, Fit, background_colour
from gebm_kit.data.image_files import CorruptFiles, common_sides, image_parts, list_images, shuffled
from gebm_kit.data.readings import folder_reading
from gebm_kit.data.tensors import check_fractions, part_sizes

HOW_TO_GET = (
    "Put PNG, JPEG or WebP files there, in sub-folders if you like, or set data.path. CelebA has a dataset of its own, "
    "celeba."
)


PART_NAMES = {"train", "training", "valid", "validation", "val", "dev", "test", "testing"}
"""What sub-folders of a dataset that is already split are called."""


class ImageFolder(Dataset):
    """Images (channels, size, size) in [-1, 1], decoded when first read and kept as bytes in memory.

    An image is turned upright (EXIF), cut to its central ``crop`` x ``crop`` square when ``crop`` is given, resized with
    an antialiasing bicubic filter so that its shorter side is ``size``, and cut to the central ``size`` x ``size`` square.

    Files are split by a hash of their relative path and the seed. The parts therefore do not depend on the order in which
    the file system lists files, and each part is in random order.

    Files are PNG, JPEG, WebP, BMP, GIF, TIFF and PPM with 8 bits a channel, recognised by their suffix, in any case. Others
    are left out and counted in a warning, hidden ones without. Transparent pixels are laid over ``background``: the colour
    that they have in the file is not one that anybody sees.

    Labels are the first-level sub-folders, in sorted order, if every image lies in one and there are at least two. These
    folders name the classes.

    An image that can't be decoded is named in a warning and skipped: the next one of its part and class takes its place.

    Args:
        path: the folder, relative to the directory where the command is started.
        size: side of the result; None keeps images as they are; they must then all have the same size.
        crop: side of a central square that is cut out first.
        channels: 3 for colour, 1 for grey.
        valid_fraction, test_fraction: shares of the files; the rest is for training.
        seed: seed of the split.
        cache_mb: megabytes of decoded images to keep in memory; the others are decoded each time they are read.
        max_corrupt: how many images that can't be decoded are skipped; one more is an error.
        background: colour behind transparent pixels: a name or ``#rrggbb``.

    Raises:
        DataError: the folder does not exist, holds fewer than three images, or holds images of different sizes with
            ``size: null``. Later, while reading: an image is smaller than ``crop``, has more than 8 bits a channel or
            89 million pixels, or too many can't be decoded. The message names the files.
        UsageError: an argument is out of its range, or ``background`` is not a colour.
    """

    num_classes: int
    class_names: tuple[str, ...]
    how_to_label = "Put the images of each class into a sub-folder of its own, at least two, and none beside them."

    def __init__(
        self,
        path: str,
        size: Annotated[int | None, Range(1, MAX_SIDE)] = 64,
        crop: Annotated[int | None, Range(1, MAX_SIDE)] = None,
        channels: Literal[1, 3] = 3,
        valid_fraction: Annotated[float, Range(0, 1, low_open=True, high_open=True)] = 0.1,
        test_fraction: Annotated[float, Range(0, 1, low_open=True, high_open=True)] = 0.1,
        seed: int = 0,
        cache_mb: Annotated[int, Range(0, None)] = 4096,
        max_corrupt: Annotated[int, Range(0, None)] = 10,
        background: str = "white",
        *,
        directory: Annotated[Path, Injected] = Path(),
    ) -> None:
        check_arguments(self, valid_fraction=valid_fraction, test_fraction=test_fraction)
        check_arguments(self, cache_mb=cache_mb, max_corrupt=max_corrupt)
        if channels not in (1, 3):
            raise UsageError(f"channels must be 1 or 3, got {channels!r}")
        for name, value in (("size", size), ("crop", crop)):
            if value is not None:
                check_arguments(self, **{name: value})
        check_fractions(valid_fraction, test_fraction)
        folder = directory / user_path(path, error=DataError)
        colour = background_colour(background)
        self._folder, self._background = folder, background
        self._listed = list_images(folder, IMAGE_SUFFIXES, HOW_TO_GET)
        names = self._listed.names
        if len(names) < 3:
            raise DataError(f"image folder {folder} holds {len(names)} image(s); train, valid and test need one each")
        self._corrupt = corrupt = CorruptFiles(max_corrupt)
        self._sources = [Source(folder, IMAGE_SUFFIXES)]
        side = size if size is not None else crop
        height, width = (side, side) if side is not None else common_sides(folder, names, corrupt)
        self.data_shape = (channels, height, width)
        self.value_range = (-1.0, 1.0)

        names = shuffled(names, seed)
        num_valid, num_test = part_sizes(len(names), valid_fraction, test_fraction)
        parts: dict[SplitName, list[str]] = {
            "valid": names[:num_valid],
            "test": names[num_valid : num_valid + num_test],
            "train": names[num_valid + num_test :],
        }
        self._fill_labels(parts)
        groups = self._labels if hasattr(self, "num_classes") else None
        fit = Fit(size, crop, channels, colour)
        self._splits = image_parts(folder, parts, self.data_shape, fit, cache_mb, corrupt, groups)

    def split(self, name: SplitName) -> Split:
        return self._splits[name]

    def sources(self) -> list[Source]:
        return self._sources

    def describe_reading(self) -> str:
        """Return one line about what was read. The headers of some images are read for it."""
        return folder_reading(self, self._folder, self._listed, self._corrupt, self._background)

    def skipped(self) -> dict[str, str]:
        return self._corrupt.by_name()

    def labels(self, name: SplitName) -> Tensor:
        """Return the index of each image's first-level folder, (N,) int64.

        Raises:
            UsageError: the images do not lie in two or more such folders.
        """
        if not hasattr(self, "num_classes"):
            raise UsageError("these images have no labels: they do not lie in two or more sub-folders")
        return self._labels[name]

    def _fill_labels(self, parts: dict[SplitName, list[str]]) -> None:
        inside = {part: [name.split("/") for name in names] for part, names in parts.items()}
        if any(len(steps) < 2 for files in inside.values() for steps in files):
            return
        classes = sorted({steps[0] for files in inside.values() for steps in files})
        if len(classes) < 2:
            return
        number = {name: index for index, name in enumerate(classes)}
        self._labels = {part: torch.tensor([number[s[0]] for s in files]) for part, files in inside.items()}
        check_texts(classes, str(self._folder))
        if {name.casefold() for name in classes} <= PART_NAMES:
            warn(
                f"{self._folder}: the sub-folders {', '.join(classes)} are taken for classes, and have the names of parts"
            )
        self.num_classes, self.class_names = len(classes), tuple(classes)
