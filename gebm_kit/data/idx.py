"""MNIST-format ("idx") files, gzipped or not."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from gebm_kit.core.components import Injected, Range, check_arguments
from gebm_kit.core.errors import DataError
from gebm_kit.core.interfaces import SplitName
from gebm_kit.core.paths import user_path
from gebm_kit.core.seeds import stream
from gebm_kit.core.sources import Source
from gebm_kit.data.tensors import TensorDataset

HOW_TO_GET = (
    "For Fashion-MNIST: `apt-get install dataset-fashion-mnist` puts the four files in "
    "/usr/share/datasets/fashion-mnist; or download them from the folder data/fashion of "
    "https://github.com/zalandoresearch/fashion-mnist and give that folder as data.path."
)
UNSIGNED_BYTE = 0x08
"""Code of the element type in an idx header; images and labels have this one."""


class Idx(TensorDataset):
    """Grey images (1, H, W) in [-1, 1] from a folder laid out like MNIST's, with labels if their files are there.

    The folder holds ``train-images-idx3-ubyte`` and ``t10k-images-idx3-ubyte``, and for the labels
    ``train-labels-idx1-ubyte`` and ``t10k-labels-idx1-ubyte``, each plain or with ``.gz``. The t10k files are the test
    part; valid is split off the train files at random.

    Format: two zero bytes, the element type (8: unsigned byte), the number of dimensions, each size as a big-endian
    32-bit integer, then the elements in row-major order.

    Args:
        path: the folder, relative to the directory where the command is started.
        valid_fraction: share of the train files that becomes the valid part.
        seed: seed of that split.

    References:
        The MNIST database of handwritten digits. Y. LeCun, C. Cortes, C. Burges, 1998.
        Fashion-MNIST. H. Xiao, K. Rasul, R. Vollgraf, 2017. https://arxiv.org/abs/1708.07747

    Raises:
        DataError: a file is missing, cut short or not an idx file of unsigned bytes, or images and labels do not match.
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
        folder = directory / user_path(path, error=DataError)
        images = {part: _images(folder, part) for part in ("train", "t10k")}
        self._sources = [
            Source(folder / f"{part}-{kind}-ubyte{ending}")
            for part in ("train", "t10k")
            for kind in ("images-idx3", "labels-idx1")
            for ending in ("", ".gz")
        ]
        if images["train"].shape[1:] != images["t10k"].shape[1:]:
            sizes = " and ".join(f"{part} {tuple(rows.shape[1:])}" for part, rows in images.items())
            raise DataError(f"{folder}: the images of the two parts differ in size: {sizes}")
        labels = {part: _labels(folder, part, len(rows)) for part, rows in images.items()}
        num = len(images["train"])
        if num < 2:
            raise DataError(f"{folder}: the train files hold {num} image; train and valid need one each")
        num_valid = min(max(1, round(valid_fraction * num)), num - 1)
        order = torch.randperm(num, generator=stream(seed, "idx"))
        valid, train = order[:num_valid].sort().values, order[num_valid:].sort().values
        parts: dict[SplitName, Tensor] = {
            "train": images["train"][train],
            "valid": images["train"][valid],
            "test": images["t10k"],
        }
        train_labels, test_labels = labels["train"], labels["t10k"]
        split_labels: dict[SplitName, Tensor] | None = None
        if train_labels is not None and test_labels is not None:
            split_labels = {"train": train_labels[train], "valid": train_labels[valid], "test": test_labels}
        self._fill(parts, value_range=(-1.0, 1.0), labels=split_labels)

    def sources(self) -> list[Source]:
        return self._sources


def _images(folder: Path, part: str) -> Tensor:
    """Return the part's images, (N, 1, H, W) uint8."""
    path = _find(folder, f"{part}-images-idx3-ubyte")
    if path is None:
        problem = "does not exist" if not folder.exists() else f"holds no {part}-images-idx3-ubyte(.gz)"
        raise DataError(f"{folder} {problem}", hint=HOW_TO_GET)
    rows = read_idx(path, dimensions=3)
    if rows.numel() == 0:
        raise DataError(f"{path} holds no image")
    return rows.unsqueeze(1)


def _labels(folder: Path, part: str, num_images: int) -> Tensor | None:
    path = _find(folder, f"{part}-labels-idx1-ubyte")
    if path is None:
        return None
    labels = read_idx(path, dimensions=1)
    if len(labels) != num_images:
        raise DataError(f"{path} holds {len(labels)} labels for {num_images} images")
    return labels


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Read an idx file of unsigned bytes with that many dimensions; a uint8 tensor of the shape that the file states.

    Raises:
        DataError: the file can't be read, is cut short or too long, or is of another type.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":  # by content, not by name: downloads are often unpacked without being renamed
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} can't be read: {error}", hint="Download it again.") from error
    start = 4 + 4 * dimensions
    if len(content) < 4 or content[:4] != bytes([0, 0, UNSIGNED_BYTE, dimensions]):
        raise DataError(
            f"{path} is not an idx file of unsigned bytes with {dimensions} dimensions: it begins with "
            f"{content[:4].hex(' ') or 'nothing'}, not 00 00 08 0{dimensions}"
        )
    if len(content) < start:
        raise DataError(f"{path} ends within its header, after {len(content)} bytes", hint="Download it again.")
    shape = tuple(int(size) for size in np.frombuffer(content[4:start], dtype=">u4"))
    if len(content) != start + math.prod(shape):
        raise DataError(
            f"{path} should hold {'x'.join(map(str, shape))} elements in {start + math.prod(shape)} bytes "
            f"but has {len(content)}",
            hint="The file is cut short or damaged; download it again.",
        )
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape).copy())
