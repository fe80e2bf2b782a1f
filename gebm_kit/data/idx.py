"""MNIST-format ("idx") files, gzipped or not."""

from __future__ import annotations

import io
import lzma
import math
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from gebm_kit.core.archives import CHUNK, open_unpacked
from gebm_kit.core.components import Injected, Range, check_arguments
from gebm_kit.core.errors import DataError
from gebm_kit.core.interfaces import SplitName
from gebm_kit.core.paths import user_path
from gebm_kit.core.progress import warn
from gebm_kit.core.reading import amount, available_memory
from gebm_kit.core.seeds import stream
from gebm_kit.core.sources import Source
from gebm_kit.data.readings import BYTES, reading
from gebm_kit.data.tensors import TensorDataset

HOW_TO_GET = (
    "For MNIST: download the four files from https://ossci-datasets.s3.amazonaws.com/mnist/ and give their folder as "
    "data.path. "
    "For Fashion-MNIST: `apt-get install dataset-fashion-mnist` puts the four files in "
    "/usr/share/datasets/fashion-mnist; or download them from the folder data/fashion of "
    "https://github.com/zalandoresearch/fashion-mnist and give that folder as data.path."
)
UNSIGNED_BYTE = 0x08
"""Code of the element type in an idx header; images and labels have this one."""

MAX_PACKING = 1100
"""Largest number of bytes that one packed byte can stand for; deflate reaches 1,032, and images rarely 10."""

NAME = re.compile(
    r"(?P<prefix>|.*[-_.])(?P<part>train|t10k|test)[-_.](?P<kind>image|label)s?([-_.]?idx(?P<dimensions>\d)?)?"
    r"([-_.]?(?P<type>[a-z]+))?(\.gz)?",
    re.IGNORECASE,
)
"""Names of idx files as several sources write them, such as ``train-images.idx3-ubyte`` and
``emnist-letters-test-labels-idx1-ubyte.gz``."""

PARTS = ("train", "t10k")
"""The parts of the folder, as the original names call them; others call the second one test."""

KINDS = {"image": "images-idx3", "label": "labels-idx1"}
"""What a file holds, and how the original names say it."""


class Idx(TensorDataset):
    """Grey images (1, H, W) in [-1, 1] from a folder laid out like MNIST's, with labels if their files are there.

    The folder holds ``train-images-idx3-ubyte`` and ``t10k-images-idx3-ubyte``, and for the labels
    ``train-labels-idx1-ubyte`` and ``t10k-labels-idx1-ubyte``, each plain or with ``.gz``. The spellings of other sources
    are read too: ``train-images.idx3-ubyte``, ``test`` instead of ``t10k``, in any case, or after a prefix such as
    ``emnist-letters-``. (EMNIST stores its images transposed; they are read as they are stored.) The t10k files are the
    test part; valid is split off the train files at random. The files don't name the classes; ``data.class_names`` can.

    Format: two zero bytes, the element type (8: unsigned byte), the number of dimensions, each size as a big-endian
    32-bit integer, then the elements in row-major order.

    Args:
        path: the folder, relative to the directory where the command is started.
        valid_fraction: share of the train files that becomes the valid part.
        seed: seed of that split.
        prefix: beginning of the names of the files, where the folder holds several sets, such as ``emnist-letters-``.

    References:
        The MNIST database of handwritten digits. Y. LeCun, C. Cortes, C. Burges, 1998.
        Fashion-MNIST. H. Xiao, K. Rasul, R. Vollgraf, 2017. https://arxiv.org/abs/1708.07747

    Raises:
        DataError: a file is missing, cut short or not an idx file of unsigned bytes, or images and labels do not match.
    """

    how_to_label = (
        "Put the files of labels, train-labels-idx1-ubyte and t10k-labels-idx1-ubyte, plain or with .gz, beside those of "
        "the images."
    )

    def __init__(
        self,
        path: str,
        valid_fraction: Annotated[float, Range(0, 1, low_open=True, high_open=True)] = 0.1,
        seed: int = 0,
        prefix: str | None = None,
        *,
        directory: Annotated[Path, Injected] = Path(),
    ) -> None:
        check_arguments(self, valid_fraction=valid_fraction)
        folder = directory / user_path(path, error=DataError)
        self._folder, self._files = folder, _find(folder, prefix)
        images = {part: _images(folder, part, self._files) for part in PARTS}
        original = [
            folder / f"{part}-{kind}-ubyte{end}" for part in PARTS for kind in KINDS.values() for end in ("", ".gz")
        ]
        self._sources = [Source(path) for path in dict.fromkeys([*original, *self._files.values()])]
        if images["train"].shape[1:] != images["t10k"].shape[1:]:
            sizes = " and ".join(f"{part} {tuple(rows.shape[1:])}" for part, rows in images.items())
            raise DataError(f"{folder}: the images of the two parts differ in size: {sizes}")
        labels = {part: _labels(part, len(rows), self._files) for part, rows in images.items()}
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
        if (train_labels is None) != (test_labels is None):
            warn(f"{folder} holds labels of one part only, so they are left out")
        if train_labels is not None and test_labels is not None:
            split_labels = {"train": train_labels[train], "valid": train_labels[valid], "test": test_labels}
        self._fill(parts, value_range=(-1.0, 1.0), labels=split_labels)

    def sources(self) -> list[Source]:
        return self._sources

    def describe_reading(self) -> str:
        """Return one line about what was read."""
        return reading(
            self, str(self._folder), BYTES, notes=[f"files: {', '.join(p.name for p in self._files.values())}"]
        )


def _images(folder: Path, part: str, files: Mapping[tuple[str, str], Path]) -> Tensor:
    """Return the part's images, (N, 1, H, W) uint8."""
    path = files.get((part, "image"))
    if path is None:
        problem = "does not exist" if not folder.exists() else f"holds no {part}-images-idx3-ubyte(.gz)"
        raise DataError(f"{folder} {problem}", hint=HOW_TO_GET)
    rows = read_idx(path, dimensions=3)
    if rows.numel() == 0:
        raise DataError(f"{path} holds no image")
    return rows.unsqueeze(1)


def _labels(part: str, num_images: int, files: Mapping[tuple[str, str], Path]) -> Tensor | None:
    path = files.get((part, "label"))
    if path is None:
        return None
    labels = read_idx(path, dimensions=1)
    if len(labels) != num_images:
        raise DataError(f"{path} holds {len(labels)} labels for {num_images} images")
    return labels


def _find(folder: Path, prefix: str | None) -> dict[tuple[str, str], Path]:
    """Return the files of the folder by part and kind.

    Raises:
        DataError: the folder can't be read, or holds several files of a part and kind.
    """
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        names = []  # the error about missing files says more
    spelled: dict[tuple[str, str], dict[str, str]] = {}
    for name in names:
        match = NAME.fullmatch(name)
        if match is None or (folder / name).is_dir():
            continue
        if prefix is not None and match["prefix"].lower() != prefix.lower():
            continue
        if match["dimensions"] not in (None, "1", "3") or (match["type"] or "ubyte").lower() not in ("ubyte", "gz"):
            warn(f"{folder / name} is left out: its name says that it does not hold unsigned bytes in the usual shape")
            continue
        part = "train" if match["part"].lower() == "train" else "t10k"
        plain = re.sub(r"\.gz$", "", name, flags=re.IGNORECASE)
        spelled.setdefault((part, match["kind"].lower()), {}).setdefault(plain, name)  # sorted: plain before .gz
    return {of: folder / _only(folder, of, found) for of, found in spelled.items()}


def _only(folder: Path, of: tuple[str, str], found: Mapping[str, str]) -> str:
    """Return the file with the original name, or the only one."""
    original = f"{of[0]}-{KINDS[of[1]]}-ubyte"
    if original in found:
        return found[original]
    if len(found) > 1:
        raise DataError(
            f"{folder} holds several files of {of[1]}s of the {'test' if of[0] == 't10k' else of[0]} part: "
            f"{', '.join(found.values())}",
            hint="Set data.prefix to the beginning of the names that are meant, such as emnist-letters-.",
        )
    return next(iter(found.values()))


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Read an idx file of unsigned bytes with that many dimensions; a uint8 tensor of the shape that the file states.

    The header is looked at before anything else is read, and no more is unpacked than it states.

    Raises:
        DataError: the file can't be read, is cut short or too long, or is of another type.
    """
    start = 4 + 4 * dimensions
    try:
        with open_unpacked(path) as file:
            header = file.read(start)
            if len(header) < 4 or header[:4] != bytes([0, 0, UNSIGNED_BYTE, dimensions]):
                raise DataError(
                    f"{path} is not an idx file of unsigned bytes with {dimensions} dimensions: it begins with "
                    f"{header[:4].hex(' ') or 'nothing'}, not 00 00 08 0{dimensions}"
                )
            if len(header) < start:
                raise DataError(f"{path} ends within its header, after {len(header)} bytes", hint="Download it again.")
            shape = tuple(int(length) for length in np.frombuffer(header[4:], dtype=">u4"))
            size = math.prod(shape)
            _check_size(path, shape, start, packed=not isinstance(file, io.BufferedReader))
            elements = np.empty(size, dtype=np.uint8)  # memory is taken only as it is filled
            got = 0
            while got < size and (chunk := file.read(min(CHUNK, size - got))):
                elements[got : got + len(chunk)] = np.frombuffer(chunk, dtype=np.uint8)
                got += len(chunk)
            got += len(file.read(CHUNK)) if got == size else 0  # at its end, the checksum of a gzip file is compared
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path} can't be read: {error}", hint="Download it again.") from error
    if got != size:
        raise _other_size(path, shape, start, f"has {start + got}{'' if got < size else ' or more'}")
    return torch.from_numpy(elements.reshape(shape))


def _check_size(path: Path, shape: tuple[int, ...], start: int, *, packed: bool) -> None:
    """Raise if the file or the memory can't hold what the header states."""
    size, holds = math.prod(shape), path.stat().st_size
    if size + start > (holds * MAX_PACKING if packed else holds):
        raise _other_size(path, shape, start, f"has {'packed ' * packed}{holds}")
    if size > available_memory() // 2:
        raise DataError(
            f"{path} holds {amount(size)}, and twice as much memory is needed; {amount(available_memory())} are available"
        )


def _other_size(path: Path, shape: tuple[int, ...], start: int, found: str) -> DataError:
    return DataError(
        f"{path} should hold {'x'.join(map(str, shape))} elements in {start + math.prod(shape)} bytes but {found}",
        hint="The file is cut short or damaged; download it again.",
    )
