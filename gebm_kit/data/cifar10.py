"""CIFAR-10 from its binary archive."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from gebm_kit.core.archives import tar_members
from gebm_kit.core.components import Injected, Range, check_arguments
from gebm_kit.core.errors import DataError
from gebm_kit.core.expected import Expected
from gebm_kit.core.interfaces import SplitName
from gebm_kit.core.paths import user_path
from gebm_kit.core.reading import read_file
from gebm_kit.core.seeds import stream
from gebm_kit.core.sources import Source
from gebm_kit.data.readings import BYTES, reading
from gebm_kit.data.tensors import TensorDataset

TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILE = "test_batch.bin"
ARCHIVE, FOLDER = "cifar-10-binary.tar.gz", "cifar-10-batches-bin"
SHAPE = (3, 32, 32)
RECORD_BYTES = 1 + 3 * 32 * 32
"""Bytes of a record: the class, then the red, green and blue planes row by row."""

MAX_UNPACKED = 2**28
"""Most bytes that are unpacked; the published files have 184 million."""

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""Names of the classes, as the archive's ``batches.meta.txt`` lists them."""

CLASSES = len(CLASS_NAMES)
PUBLISHED_IMAGES = 50_000
"""Images in the five training files, before the valid part is split off."""

HOW_TO_GET = (
    "Download cifar-10-binary.tar.gz (the binary version) from https://www.cs.toronto.edu/~kriz/cifar.html and give it, or "
    "the folder it unpacks to, as data.path."
)


class Cifar10(TensorDataset):
    """Colour images (3, 32, 32) in [-1, 1] of ten classes, kept as bytes, with labels and their names.

    The files are the binary version: ``cifar-10-binary.tar.gz``, or the folder that it unpacks to, with ``data_batch_1.bin``
    to ``data_batch_5.bin`` and ``test_batch.bin``. The Python version of the same data is refused: it is a pickle, and
    reading a pickle runs code from the file. ``test_batch.bin`` is the test part; valid is split off the rest at random.

    Format: records of 3,073 bytes, a class 0..9 and then the red, green and blue planes, each row by row.

    Args:
        path: the archive, the unpacked folder, or a folder that holds either, relative to the directory where the command
            is started.
        valid_fraction: share of the 50,000 training images that becomes the valid part.
        seed: seed of that split.

    References:
        Learning Multiple Layers of Features from Tiny Images. A. Krizhevsky, 2009.
        https://www.cs.toronto.edu/~kriz/cifar.html

    Raises:
        DataError: a file is missing, cut short or damaged, or is the Python version.
    """

    def __init__(
        self,
        path: str,
        valid_fraction: Annotated[float, Range(0, 1, low_open=True, high_open=True)] = 0.1,
        seed: int = 0,
        *,
        directory: Annotated[Path, Injected] = Path(),
    ) -> None:
        check_arguments(self, valid_fraction=valid_fraction)
        place = directory / user_path(path, error=DataError)
        archive = place if place.is_file() else place / ARCHIVE
        files = _from_archive(archive) if archive.is_file() else _from_folder(place)
        self._place, self._sources = place, [Source(archive)]
        if not archive.is_file():
            self._sources += [Source(_inside(place) / name) for name in (*TRAIN_FILES, TEST_FILE)]
        batches = [_records(files[name], f"{place}: {name}") for name in TRAIN_FILES]
        images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        test_images, test_labels = _records(files[TEST_FILE], f"{place}: {TEST_FILE}")
        num_valid = min(max(1, round(valid_fraction * len(images))), len(images) - 1)
        order = torch.randperm(len(images), generator=stream(seed, "cifar10"))
        valid, train = order[:num_valid].sort().values, order[num_valid:].sort().values
        parts: dict[SplitName, Tensor] = {"train": images[train], "valid": images[valid], "test": test_images}
        split_labels: dict[SplitName, Tensor] = {"train": labels[train], "valid": labels[valid], "test": test_labels}
        self._fill(parts, value_range=(-1.0, 1.0), labels=split_labels, num_classes=CLASSES, class_names=CLASS_NAMES)

    @classmethod
    def expected(cls, parameters: Mapping[str, Any]) -> Expected:
        """Return what the published files hold; see `gebm_kit.core.expected`."""
        train = PUBLISHED_IMAGES - round(PUBLISHED_IMAGES * parameters["valid_fraction"])
        return Expected(SHAPE, train, CLASSES, CLASS_NAMES)

    def sources(self) -> list[Source]:
        return self._sources

    def describe_reading(self) -> str:
        """Return one line about what was read."""
        return reading(self, str(self._place), BYTES)


def _inside(folder: Path) -> Path:
    """Return the folder of the six files: the folder itself, or the one inside that the archive unpacks to."""
    return folder if (folder / TEST_FILE).is_file() else folder / FOLDER


def _from_folder(folder: Path) -> dict[str, bytes]:
    """Read the contents of the six files, by name."""
    if not folder.exists():
        raise DataError(f"{folder} does not exist", hint=HOW_TO_GET)
    place = _inside(folder)
    found = {}
    for name in (*TRAIN_FILES, TEST_FILE):
        if not (place / name).exists():
            if any((folder / python).exists() for python in ("data_batch_1", "cifar-10-batches-py", "batches.meta")):
                raise _pickled(folder)
            raise DataError(f"{folder} holds no {name}", hint=HOW_TO_GET)
        found[name] = read_file(place / name, limit=MAX_UNPACKED)
    return found


def _from_archive(path: Path) -> dict[str, bytes]:
    """Read the same from the archive; members are recognised by the last part of their names."""
    wanted = {*TRAIN_FILES, TEST_FILE}
    hint = f"It is damaged or not an archive. {HOW_TO_GET}"
    archive = tar_members(path, wanted, limit=MAX_UNPACKED, error=lambda text: DataError(text, hint=hint))
    found, pickled = archive.contents, "data_batch_1" in archive.names
    if missing := sorted(wanted - set(found)):
        if pickled:
            raise _pickled(path)
        raise DataError(f"{path} holds no {missing[0]}", hint=HOW_TO_GET)
    return found


def _pickled(path: Path) -> DataError:
    return DataError(
        f"{path} is the Python version of CIFAR-10, a pickle: reading one runs code from the file, so it is not read",
        hint=HOW_TO_GET,
    )


def _records(content: bytes, name: str) -> tuple[Tensor, Tensor]:
    """Return images, (N, 3, 32, 32) uint8, and classes, (N,) int64."""
    if not content or len(content) % RECORD_BYTES:
        raise DataError(
            f"{name} has {len(content)} bytes, which is not a whole number of records of {RECORD_BYTES} bytes",
            hint="The file is cut short or damaged; download it again.",
        )
    rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, RECORD_BYTES)
    labels = torch.from_numpy(rows[:, 0].astype(np.int64))
    if int(labels.max()) >= CLASSES:
        row = int((labels >= CLASSES).nonzero()[0])
        raise DataError(f"{name}: record {row} has class {int(labels[row])}, not one of 0 to 9; the file is damaged")
    return torch.from_numpy(rows[:, 1:].reshape(-1, *SHAPE).copy()), labels
