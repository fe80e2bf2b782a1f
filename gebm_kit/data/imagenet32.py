"""The downsampled ImageNet, from its npz batches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from gebm_kit.core.archives import NpzArchive
from gebm_kit.core.components import Injected, Range, check_arguments
from gebm_kit.core.errors import DataError
from gebm_kit.core.expected import Expected
from gebm_kit.core.interfaces import SplitName
from gebm_kit.core.paths import user_path
from gebm_kit.core.reading import amount, available_memory
from gebm_kit.core.seeds import stream
from gebm_kit.core.sources import Source
from gebm_kit.data.readings import BYTES, reading
from gebm_kit.data.tensors import TensorDataset

TRAIN, TEST = "train_data_batch_*.npz", "val_data.npz"
CLASSES = 1000
MAX_PACKING = 1100
"""Largest number of bytes that one packed byte can stand for; deflate reaches 1,032."""

PUBLISHED_IMAGES = 1_281_167
"""Images in the ten training batches, before the valid part is split off."""

HOW_TO_GET = (
    "Download the training and validation data of the downsampled ImageNet (32x32, npz format) from "
    "https://image-net.org/download-images.php, unpack both, and give the folder that holds "
    f"{TRAIN} and {TEST} as data.path."
)


class Imagenet32(TensorDataset):
    """Colour images (3, 32, 32) in [-1, 1] of a thousand classes, kept as bytes, with labels.

    The folder holds ``train_data_batch_1.npz`` to ``train_data_batch_10.npz`` (1,281,167 images) and ``val_data.npz``
    (50,000), which is the test part; valid is split off the training batches at random. Each file has ``data``, (N, 3072)
    unsigned bytes, the red, green and blue planes row by row, and ``labels``, (N,) from 1 to 1000. The versions with 8, 16
    and 64 pixels have the same format and are read too. The Python version of the batches, without ``.npz``, is refused: it
    is a pickle, and reading a pickle runs code from the file.

    All images stay in memory: 4.1 GB at 32 pixels.

    Args:
        path: the folder, relative to the directory where the command is started.
        valid_fraction: share of the training images that becomes the valid part.
        seed: seed of that split.

    References:
        A Downsampled Variant of ImageNet as an Alternative to the CIFAR datasets. P. Chrabaszcz, I. Loshchilov, F. Hutter,
        2017. https://arxiv.org/abs/1707.08819
        ImageNet: A Large-Scale Hierarchical Image Database. J. Deng et al., CVPR 2009.

    Raises:
        DataError: a file is missing, damaged or in another format.
    """

    def __init__(
        self,
        path: str,
        valid_fraction: Annotated[float, Range(0, 1, low_open=True, high_open=True)] = 0.01,
        seed: int = 0,
        *,
        directory: Annotated[Path, Injected] = Path(),
    ) -> None:
        check_arguments(self, valid_fraction=valid_fraction)
        folder = directory / user_path(path, error=DataError)
        batches = _batches(folder)
        self._folder, self._sources = folder, [Source(folder, (".npz",))]
        shapes = [_stated_shape(batch) for batch in batches]
        total, columns = sum(shape[0] for shape in shapes), shapes[0][1]
        side = math.isqrt(columns // 3)
        if total * columns > available_memory():
            raise DataError(
                f"{folder}: the images need {amount(total * columns)} of memory; {amount(available_memory())} are available"
            )
        if total < 2:
            raise DataError(f"{folder}: the training batches hold {total} image; train and valid need one each")
        is_valid = torch.zeros(total, dtype=torch.bool)
        num_valid = min(max(1, round(valid_fraction * total)), total - 1)
        is_valid[torch.randperm(total, generator=stream(seed, "imagenet32"))[:num_valid]] = True
        # The parts are filled batch by batch: a copy of the whole data beside them would take twice the memory.
        parts: dict[SplitName, Tensor] = {
            "train": torch.empty(total - num_valid, columns, dtype=torch.uint8),
            "valid": torch.empty(num_valid, columns, dtype=torch.uint8),
        }
        labels: dict[SplitName, Tensor] = {
            part: torch.empty(len(rows), dtype=torch.int64) for part, rows in parts.items()
        }
        filled: dict[SplitName, int] = dict.fromkeys(parts, 0)
        start = 0
        for batch in batches:
            rows, classes = _load(batch, columns)
            chosen = is_valid[start : start + len(rows)]
            sides: tuple[tuple[SplitName, Tensor], ...] = (("train", ~chosen), ("valid", chosen))
            for part, where in sides:
                place = slice(filled[part], filled[part] + int(where.sum()))
                parts[part][place], labels[part][place] = rows[where], classes[where]
                filled[part] = place.stop
            start += len(rows)
        parts["test"], labels["test"] = _load(folder / TEST, columns)
        shaped = {part: rows.unflatten(1, (3, side, side)) for part, rows in parts.items()}
        self._fill(shaped, value_range=(-1.0, 1.0), labels=labels, num_classes=CLASSES)

    @classmethod
    def expected(cls, parameters: Mapping[str, Any]) -> Expected:
        """Return what the published files hold; see `gebm_kit.core.expected`."""
        return Expected((3, 32, 32), PUBLISHED_IMAGES - round(PUBLISHED_IMAGES * parameters["valid_fraction"]), CLASSES)

    def sources(self) -> list[Source]:
        return self._sources

    def describe_reading(self) -> str:
        """Return one line about what was read."""
        return reading(self, str(self._folder), BYTES)


def _batches(folder: Path) -> list[Path]:
    """Return the training batches, sorted by number."""
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(f"ImageNet's folder {folder} {problem}", hint=HOW_TO_GET)
    found = sorted(folder.glob(TRAIN), key=lambda path: (len(path.name), path.name))
    if not found or not (folder / TEST).is_file():
        missing = TEST if found else TRAIN
        if (folder / missing.replace("*", "1").removesuffix(".npz")).is_file():
            raise DataError(
                f"{folder} holds the Python version of the batches, pickles: reading one runs code from the file, so they "
                "are not read",
                hint=HOW_TO_GET,
            )
        raise DataError(f"{folder} holds no {missing}", hint=HOW_TO_GET)
    return found


def _stated_shape(path: Path) -> tuple[int, int]:
    """Return the numbers of rows and columns of ``data``, from its header."""
    with NpzArchive(path, error=lambda text: _damaged(path, text)) as archive:
        shape, dtype = archive.header("data")
    if len(shape) != 2 or shape[1] % 3 or math.isqrt(shape[1] // 3) ** 2 != shape[1] // 3:
        raise DataError(f"{path}: data has shape {tuple(shape)}, not (N, 3 * side * side)")
    if shape[0] * shape[1] > MAX_PACKING * path.stat().st_size:
        raise _damaged(path, f"data of shape {shape} of {dtype} are more than the file can hold")
    return shape[0], shape[1]


def _load(path: Path, columns: int) -> tuple[Tensor, Tensor]:
    """Read rows, (N, columns) uint8, and classes counted from 0, (N,) int64."""
    with NpzArchive(path, error=lambda text: _damaged(path, text)) as archive:
        rows, labels = archive.read("data"), archive.read("labels")
    if labels.dtype.kind not in "iu":
        raise DataError(f"{path}: labels are of type {labels.dtype}, not whole numbers")
    if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != columns:
        raise DataError(f"{path}: data has shape {rows.shape} of {rows.dtype}, not (N, {columns}) of unsigned bytes")
    classes = torch.from_numpy(labels.astype(np.int64)) - 1
    if classes.shape != (len(rows),) or len(rows) == 0:
        raise DataError(f"{path} holds {tuple(classes.shape)} labels for {len(rows)} images")
    if int(classes.min()) < 0 or int(classes.max()) >= CLASSES:
        raise DataError(
            f"{path}: labels go from {int(classes.min()) + 1} to {int(classes.max()) + 1}, not 1 to {CLASSES}"
        )
    return torch.from_numpy(rows), classes


def _damaged(path: Path, text: str) -> DataError:
    return DataError(
        f"{path} can't be read: {text.removeprefix(f'{path} ')}",
        hint="It is cut short, damaged or in another format; download it again.",
    )
