"""Images that `gebm-kit data prepare` decoded once: a folder of bytes that training maps into memory, and its index.

The rows are the bytes that the dataset itself would return, so training with and without them is the same, bit for bit. They
are used if they were made from the same ``data`` node and the dataset's files have kept their names, sizes and modification
times. Otherwise a warning gives the reason, and the files are read.

Layout, in `data_cache_directory`:

    celeba-1f0c.../             one folder for each data node, with its ``.lock``
      rows/                     renamed to this name when it is complete
        index.json              what the rows are, what they were made from, checksums
        train.u8 valid.u8 test.u8            (N, C, H, W) unsigned bytes, row-major
        train.labels.npy ...                 (N,) int64, if there are labels
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gebm_kit.config.schema import Recipe
from gebm_kit.core.archives import read_npy_file
from gebm_kit.core.cache import data_cache_directory
from gebm_kit.core.errors import DataError, UsageError
from gebm_kit.core.interfaces import Dataset, Split, SplitName
from gebm_kit.core.paths import user_path
from gebm_kit.core.pixels import scale_bytes
from gebm_kit.core.plugins import installed
from gebm_kit.core.reading import open_regular, read_json_file
from gebm_kit.core.sources import Fingerprint, Source, fingerprint

PARTS: tuple[SplitName, ...] = ("train", "valid", "test")
"""Splits that are prepared."""


ROWS_FOLDER, INDEX_FILE = "rows", "index.json"
"""Names of the folder of rows and of the index in it."""


CACHE_FORMAT = 2
"""Version of the folder and of what its rows hold; a folder of another version is not used. 2: transparent pixels are laid
over a background, and more kinds of files are read."""


OF_READING = ("cache_mb",)
"""Parameters of datasets that change how they read, but not what."""


VALUE_RANGE = (-1.0, 1.0)
"""Value range of prepared images, see `scale_bytes`."""


HASHED_BYTES = 2**24
"""Number of bytes of a file that are hashed at a time."""


class PreparedSplit(Split):
    """One part, mapped into memory, which only the rows in use occupy.

    Args:
        path: file of the part.
        num: number of rows, N.
        shape: shape (C, H, W) of each row.

    Raises:
        OSError, ValueError: the file is missing, or too short.
    """

    def __init__(self, path: Path, num: int, shape: tuple[int, ...]) -> None:
        self._rows = np.asarray(np.memmap(path, dtype=np.uint8, mode="r", shape=(num, *shape)))

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, indices: Tensor) -> Tensor:
        return self.decode(self.stored(indices))

    def stored(self, indices: Tensor | None) -> Tensor:
        if indices is None:
            return torch.from_numpy(self._rows.copy())
        # by numpy, because torch's threads would compete with training
        return torch.from_numpy(np.take(self._rows, indices.numpy(), axis=0))

    def decode(self, stored: Tensor) -> Tensor:
        return scale_bytes(stored)


class PreparedDataset(Dataset):
    """Images from a prepared folder, with labels if the dataset has them.

    Args:
        folder: the folder ``rows``.
        index: the index of that folder, from `read_index`.

    Raises:
        OSError, ValueError: a file does not match the index.
    """

    num_classes: int
    class_names: tuple[str, ...]

    def __init__(self, folder: Path, index: Mapping[str, Any]) -> None:
        self.folder, self._reading = folder, str(index.get("reading", ""))
        self.data_shape = tuple(index["shape"])
        self.value_range = VALUE_RANGE
        counts = index["counts"]
        self._splits = {part: PreparedSplit(folder / f"{part}.u8", counts[part], self.data_shape) for part in PARTS}
        if index["num_classes"] is not None:
            self._labels = {part: _labels(folder / f"{part}.labels.npy") for part in PARTS}
            self.num_classes = int(index["num_classes"])
            if index.get("class_names") is not None:
                self.class_names = tuple(index["class_names"])

    def split(self, name: SplitName) -> Split:
        return self._splits[name]

    def describe_reading(self) -> str:
        """Return the line that the dataset said when the images were prepared."""
        return f"{self._reading or 'images'}; prepared in {self.folder}"

    def labels(self, name: SplitName) -> Tensor:
        """Return the class indices of a part, (N,) int64.

        Raises:
            UsageError: the dataset has no labels.
        """
        if not hasattr(self, "num_classes"):
            raise UsageError("this dataset has no labels")
        return self._labels[name]


def _labels(path: Path) -> Tensor:
    """Read the labels of a part, (N,) int64.

    Raises:
        DataError: the file is damaged.
    """
    labels = read_npy_file(path)
    if labels.ndim != 1 or labels.dtype != np.int64:
        raise DataError(f"{path} is damaged: {labels.shape} {labels.dtype} in place of (N,) int64")
    return torch.from_numpy(labels)


@dataclass(frozen=True, slots=True)
class Found:
    """Prepared data for a data node, if there are any.

    Attributes:
        folder: the folder of the rows, whether or not it exists.
        index: the folder's index; None: nothing is prepared, or it can't be used.
        problem: why prepared data can't be used; "" if they can, or if there are none.
        gone: whether the files that they were made from no longer exist.
    """

    folder: Path
    index: dict[str, Any] | None = None
    problem: str = ""
    gone: bool = False


def find_prepared(recipe: Recipe) -> Found:
    """Find the prepared data for the recipe's ``data`` node, and check them against the files they were made from.

    The check compares names, sizes and modification times of those files, and the sizes of the prepared ones. It reads no
    content.
    """
    folder = place_of(recipe) / ROWS_FOLDER
    if not os.path.isdir(folder):
        return Found(folder)
    try:
        index = read_index(folder)
        for name, facts in index["files"].items():
            if (size := _size(folder / name)) != facts["bytes"]:
                return Found(folder, problem=f"{name} has {size} bytes, not {facts['bytes']}")
        then = [(_source(entry), _fingerprint(entry)) for entry in index["sources"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, DataError) as error:
        return Found(folder, problem=f"the folder is damaged ({error})")
    try:
        now = [fingerprint(source) for source, _ in then]
    except OSError as error:
        return Found(folder, problem=f"the files that they were made from can't be checked ({error})")
    if then and not any(seen.files for seen in now):
        return Found(folder, index, gone=True)
    for (source, before), after in zip(then, now, strict=True):
        if (before.files, before.digest) != (after.files, after.digest):
            return Found(folder, problem=_change(source, before, after))
    return Found(folder, index)


def verify(folder: Path, index: Mapping[str, Any]) -> None:
    """Read every prepared file and verify its checksum.

    Raises:
        DataError: a file can't be read, or its checksum is wrong.
    """
    for name, facts in index["files"].items():
        digest = hashlib.sha256()
        with open_regular(folder / name) as file:
            try:
                while block := file.read(HASHED_BYTES):
                    digest.update(block)
            except OSError as error:
                raise DataError(f"{folder / name} can't be read: {error}") from error
        if digest.hexdigest() != facts["sha256"]:
            raise DataError(
                f"{folder / name} is damaged: its checksum is not the one that was written",
                hint="Prepare it again with --force.",
            )


def place_of(recipe: Recipe) -> Path:
    """Return the cache folder for the recipe's ``data`` node, which holds ``rows`` once they are prepared."""
    node = described_node(recipe)
    key = hashlib.sha256(json.dumps([CACHE_FORMAT, node], sort_keys=True).encode()).hexdigest()
    return data_cache_directory() / f"{node['name'].rpartition(':')[2]}-{key[:20]}"


def described_node(recipe: Recipe) -> dict[str, Any]:
    """Return the ``data`` node with full component address and absolute path, without parameters that change no pixel."""
    node = {key: value for key, value in recipe.data.as_dict().items() if key not in OF_READING}
    node["name"] = installed().registry.get("dataset", recipe.data.name).address
    if isinstance(node.get("path"), str):
        node["path"] = str((recipe.directory / user_path(node["path"], error=DataError)).resolve())
    return node


def read_index(folder: Path) -> dict[str, Any]:
    """Read ``index.json``, and check that it describes the files beside it.

    Raises:
        DataError, ValueError, KeyError, TypeError: it is missing or malformed.
    """
    index = read_json_file(folder / INDEX_FILE)
    if not isinstance(index, dict) or index.get("format") != CACHE_FORMAT:
        raise ValueError(f"{INDEX_FILE} is not of format {CACHE_FORMAT}")
    shape, counts, classes = index["shape"], index["counts"], index["num_classes"]
    if not (isinstance(shape, list) and len(shape) == 3 and all(_is_positive(size) for size in shape)):
        raise ValueError(f"{INDEX_FILE}: shape can't be {str(shape)[:80]}")
    if not (classes is None or _is_positive(classes)):
        raise ValueError(f"{INDEX_FILE}: num_classes can't be {str(classes)[:80]}")
    names = index.get("class_names")
    if names is not None and not (
        isinstance(names, list) and len(names) == classes and all(isinstance(n, str) and n for n in names)
    ):
        raise ValueError(f"{INDEX_FILE}: class_names are not {str(classes)[:80]} names")
    for name, facts in index["files"].items():
        if not _FILE.fullmatch(name) or not isinstance(facts["bytes"], int) or not isinstance(facts["sha256"], str):
            raise ValueError(f"{INDEX_FILE}: {name[:80]!r} is not a prepared file")
    for part in PARTS:
        if not _is_positive(counts[part]) or index["files"][f"{part}.u8"]["bytes"] != counts[part] * math.prod(shape):
            raise ValueError(f"{INDEX_FILE}: {part}.u8 does not hold {str(counts[part])[:80]} rows")
    if not all(isinstance(entry["image"], str) for entry in index["skipped"]):
        raise ValueError(f"{INDEX_FILE}: the images left out have no names")
    return index


_FILE = re.compile(r"(train|valid|test)\.(u8|labels\.npy)")
"""Names of prepared files."""


def _is_positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**48


def _size(path: Path) -> int:
    """Return the size of a regular file.

    Raises:
        OSError: it can't be read, or is not a regular file.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"{path.name} is not a regular file")
    return found.st_size


def source_entry(source: Source, seen: Fingerprint) -> dict[str, Any]:
    """Return a source and its fingerprint in the form that the index stores."""
    return {"path": str(source.path), "suffixes": list(source.suffixes), **dataclasses.asdict(seen)}


def _source(entry: Mapping[str, Any]) -> Source:
    if not all(isinstance(suffix, str) for suffix in entry["suffixes"]) or "\0" in entry["path"]:
        raise ValueError(f"{INDEX_FILE}: a source is damaged")
    return Source(Path(entry["path"]), tuple(entry["suffixes"]))


def _fingerprint(entry: Mapping[str, Any]) -> Fingerprint:
    if not all(isinstance(entry[name], int) for name in ("files", "size", "newest")):
        raise ValueError(f"{INDEX_FILE}: a fingerprint is damaged")
    return Fingerprint(**{field.name: entry[field.name] for field in dataclasses.fields(Fingerprint)})


def _change(source: Source, before: Fingerprint, after: Fingerprint) -> str:
    """Say how the files changed."""
    if before.files != after.files:
        return f"{source.path} had {before.files:,} file(s) when they were made and has {after.files:,} now"
    if after.newest > before.newest:
        name = source.path / after.newest_file if source.path.is_dir() else source.path
        return f"{name} was changed since they were made"
    return f"{source.path} has changed since they were made (names, sizes or times of files differ)"
