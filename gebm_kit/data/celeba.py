"""CelebA: aligned faces with the official partition."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from gebm_kit.core.components import Injected, Range, check_arguments
from gebm_kit.core.errors import DataError, UsageError
from gebm_kit.core.expected import Expected
from gebm_kit.core.interfaces import Dataset, Split, SplitName
from gebm_kit.core.paths import user_path
from gebm_kit.core.reading import read_text
from gebm_kit.core.sources import Source
from gebm_kit.data.decoding import MAX_SIDE, Fit
from gebm_kit.data.image_files import CorruptFiles, Listed, image_parts
from gebm_kit.data.readings import folder_reading

PARTITION = "list_eval_partition.txt"
ATTRIBUTES = "list_attr_celeba.txt"
IMAGES = "img_align_celeba"
NUMBERED: tuple[SplitName, ...] = ("train", "valid", "test")
"""The parts in the order of their numbers in the partition file: 0, 1, 2."""

PUBLISHED_IMAGES = 162_770
"""Images in the training part, by the official partition."""

IMAGE_WIDTH = 178
"""Width of an aligned image; its height is 218."""

HOW_TO_GET = (
    "Download img_align_celeba.zip from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html and unpack it. Put the file "
    f"{PARTITION} (there in the folder Eval; {ATTRIBUTES} is in Anno) beside the folder {IMAGES}, and give the folder that "
    "holds both as data.path."
)


class Celeba(Dataset):
    """Colour images (3, size, size) in [-1, 1] of 202,599 aligned faces, in the official parts.

    The folder holds the images in ``img_align_celeba`` (or ``Img/img_align_celeba``), and ``list_eval_partition.txt`` (or
    the same in ``Eval``). Each line of that file is the name of an image and its part: 0 train (162,770 images), 1 valid
    (19,867), 2 test (19,962). No person is in two parts.

    Images have 178 x 218 pixels. The central ``crop`` x ``crop`` square is cut out and resized with an antialiasing bicubic
    filter.

    An image that can't be decoded is named in a warning and skipped: the next one of its part (with ``attribute``: of
    its class too) takes its place.

    Args:
        path: the folder, relative to the directory where the command is started.
        size: side of the result.
        crop: side of the central square; 140 keeps the face, 178 is the largest.
        attribute: binary attribute to use as the label, such as ``Smiling``: one of the 40 in ``list_attr_celeba.txt`` (or
            the same in ``Anno``). Classes are called ``not Smiling`` and ``Smiling``. null: no labels.
        cache_mb: megabytes of decoded images to keep in memory; the others are decoded each time they are read.
        max_corrupt: how many images that can't be decoded are skipped; one more is an error.

    References:
        Deep Learning Face Attributes in the Wild. Z. Liu, P. Luo, X. Wang, X. Tang, ICCV 2015.
        https://arxiv.org/abs/1411.7766

    Raises:
        DataError: a file is missing or malformed; later, while reading, too many images can't be decoded.
        UsageError: an argument is out of its range, or there is no such attribute.
    """

    num_classes: int
    class_names: tuple[str, ...]
    how_to_label = "Name one of CelebA's attributes: data.attribute=Smiling."

    def __init__(
        self,
        path: str,
        size: Annotated[int, Range(1, MAX_SIDE)] = 64,
        crop: Annotated[int, Range(1, IMAGE_WIDTH)] = 140,
        attribute: str | None = None,
        cache_mb: Annotated[int, Range(0, None)] = 4096,
        max_corrupt: Annotated[int, Range(0, None)] = 10,
        *,
        directory: Annotated[Path, Injected] = Path(),
    ) -> None:
        check_arguments(self, size=size, crop=crop, cache_mb=cache_mb, max_corrupt=max_corrupt)
        root = directory / user_path(path, error=DataError)
        if not root.is_dir():
            problem = "is not a folder" if root.exists() else "does not exist"
            raise DataError(f"CelebA's folder {root} {problem}", hint=HOW_TO_GET)
        folder = _find(root, IMAGES, (IMAGES, f"Img/{IMAGES}"))
        partition = _find(root, PARTITION, (PARTITION, f"Eval/{PARTITION}"))
        parts = _parts(partition)
        self._folder, self._listed = folder, _check_present(folder, parts, partition)
        self.data_shape = (3, size, size)
        self.value_range = (-1.0, 1.0)
        self._sources = [Source(folder), Source(partition)]
        groups = None
        if attribute is not None:
            table = _find(root, ATTRIBUTES, (ATTRIBUTES, f"Anno/{ATTRIBUTES}"))
            of_image = _attribute(table, attribute)
            groups = self._labels = {part: _labels(names, of_image, table) for part, names in parts.items()}
            self.num_classes, self.class_names = 2, _names(attribute)
            self._sources.append(Source(table))
        self._corrupt = CorruptFiles(max_corrupt)
        self._splits = image_parts(folder, parts, self.data_shape, Fit(size, crop), cache_mb, self._corrupt, groups)

    @classmethod
    def expected(cls, parameters: Mapping[str, Any]) -> Expected:
        """Return what the published files hold; see `gebm_kit.core.expected`."""
        shape, attribute = (3, parameters["size"], parameters["size"]), parameters["attribute"]
        names = _names(attribute) if attribute else None
        return Expected(shape, PUBLISHED_IMAGES, 2 if attribute else None, names)

    def split(self, name: SplitName) -> Split:
        return self._splits[name]

    def sources(self) -> list[Source]:
        return self._sources

    def describe_reading(self) -> str:
        """Return one line about what was read. The headers of some images are read for it."""
        return folder_reading(self, self._folder, self._listed, self._corrupt, "white")

    def skipped(self) -> dict[str, str]:
        return self._corrupt.by_name()

    def labels(self, name: SplitName) -> Tensor:
        """Return whether each image has the attribute, 1 or 0, (N,) int64.

        Raises:
            UsageError: no attribute was chosen.
        """
        if not hasattr(self, "num_classes"):
            raise UsageError("CelebA has no labels unless data.attribute names one of its attributes, such as Smiling")
        return self._labels[name]


def _names(attribute: str) -> tuple[str, str]:
    """Return what the classes of an attribute are called."""
    return f"not {attribute}", attribute


def _find(root: Path, what: str, candidates: tuple[str, ...]) -> Path:
    for candidate in candidates:
        if (root / candidate).exists():
            return root / candidate
    raise DataError(f"{root} holds no {what}", hint=HOW_TO_GET)


def _lines(path: Path) -> list[str]:
    return read_text(path, error=lambda text: DataError(text, hint=HOW_TO_GET)).splitlines()


def _parts(path: Path) -> dict[SplitName, list[str]]:
    """Return the names of the images in each part, in the file's order."""
    parts: dict[SplitName, list[str]] = {part: [] for part in NUMBERED}
    seen: set[str] = set()
    for number, line in enumerate(_lines(path), 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or words[1] not in ("0", "1", "2") or Path(words[0]).name != words[0]:
            raise DataError(
                f"{path}:{number}: {line.strip()[:60]!r} is not the name of an image and its part, 0, 1 or 2"
            )
        if words[0] in seen:
            raise DataError(f"{path}:{number}: {words[0]} is listed twice")
        seen.add(words[0])
        parts[NUMBERED[int(words[1])]].append(words[0])
    for part, names in parts.items():
        if not names:
            raise DataError(f"{path} lists no image of the {part} part ({NUMBERED.index(part)})")
    return parts


def _check_present(folder: Path, parts: dict[SplitName, list[str]], partition: Path) -> Listed:
    """Return the images that the parts list, and count the files that they do not list."""
    try:
        present = {entry.name for entry in os.scandir(folder)}
    except OSError as error:
        raise DataError(f"{folder} can't be read: {error}", hint=HOW_TO_GET) from error
    listed = sorted(name for names in parts.values() for name in names)
    missing = [name for name in listed if name not in present]
    if missing:
        raise DataError(
            f"{folder} lacks {len(missing):,} of the {len(listed):,} images that {partition.name} lists; "
            f"the first is {min(missing)}",
            hint="Unpack img_align_celeba.zip again.",
        )
    unlisted = len(present) - len(listed)
    return Listed(listed, Counter({f"not in {partition.name}": unlisted} if unlisted else {}))


def _attribute(path: Path, attribute: str) -> dict[str, int]:
    """Read 1 or 0 for each image: the attribute's column of 1 and -1, below a line with the count and a line of names."""
    lines = _lines(path)
    names = lines[1].split() if len(lines) > 1 else []
    if attribute not in names:
        allowed = f"allowed: {', '.join(names)}" if names else f"{path} has no line of names"
        raise UsageError(f"CelebA has no attribute {attribute!r}; {allowed}")
    column = 1 + names.index(attribute)
    found = {}
    for number, line in enumerate(lines[2:], 3):
        words = line.split()
        if not words:
            continue
        if len(words) != 1 + len(names) or words[column] not in ("1", "-1"):
            raise DataError(f"{path}:{number} does not hold the name of an image and {len(names)} values of 1 or -1")
        found[words[0]] = int(words[column] == "1")
    return found


def _labels(names: list[str], of_image: dict[str, int], path: Path) -> Tensor:
    missing = [name for name in names if name not in of_image]
    if missing:
        raise DataError(f"{path} does not list {missing[0]}", hint=HOW_TO_GET)
    return torch.tensor([of_image[name] for name in names])
