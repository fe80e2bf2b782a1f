"""Images that `gebm-kit data prepare` decoded once: a folder of bytes that training maps into memory, and its index.

The rows are the bytes that the dataset itself would hand out, so that training with and without them is the same, bit for
bit. They are used where they were made from the same ``data`` node and the dataset's files have kept their names, sizes and
times of change; otherwise a warning says why not, and the files themselves are read.

Layout, in `data_cache_directory`:

    celeba-1f0c.../             one folder for each data node; in it ``.lock``
      rows/                     renamed to this name when it is whole
        index.json              what the rows are, what they were made from, checksums
        train.u8 valid.u8 test.u8            (N, C, H, W) unsigned bytes, row-major
        train.labels.npy ...                 (N,) int64, where there are labels
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gebm_kit.config.schema import Recipe
from gebm_kit.core.cache import data_cache_directory
from gebm_kit.core.errors import DataError, UsageError
from gebm_kit.core.files import read_json
from gebm_kit.core.interfaces import Dataset, Split, SplitName
from gebm_kit.core.pixels import scale_bytes
from gebm_kit.core.plugins import installed
from gebm_kit.core.sources import Fingerprint, Source, fingerprint

PARTS: tuple[SplitName, ...] = ("train", "valid", "test")
"""Splits that are prepared."""


ROWS_FOLDER, INDEX_FILE = "rows", "index.json"
"""Names in the folder of a data node."""


CACHE_FORMAT = 1
"""Version of the folder's layout; a folder of another version is made anew."""


OF_READING = ("cache_mb",)
"""Parameters of datasets that say how they read, and nothing about what."""


VALUE_RANGE = (-1.0, 1.0)
"""Of images in bytes, see `scale_bytes`."""


HASHED_BYTES = 2**24
"""Bytes of a file that are hashed at a time."""


class PreparedSplit(Split):
    """One part, mapped into memory: what is not being read takes none of it.

    Args:
        path: its file.
        num: rows in it, N.
        shape: (C, H, W) of each.

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
        # by numpy and not by torch, whose threads would compete with those that train
        return torch.from_numpy(np.take(self._rows, indices.numpy(), axis=0))

    def decode(self, stored: Tensor) -> Tensor:
        return scale_bytes(stored)


class PreparedDataset(Dataset):
    """Images from a prepared folder, with labels where the dataset has them.

    Args:
        folder: the folder ``rows``.
        index: what `read_index` read there.

    Raises:
        OSError, ValueError: a file is not what the index says.
    """

    num_classes: int

    def __init__(self, folder: Path, index: Mapping[str, Any]) -> None:
        self.folder = folder
        self.data_shape = tuple(index["shape"])
        self.value_range = VALUE_RANGE
        counts = index["counts"]
        self._splits = {part: PreparedSplit(folder / f"{part}.u8", counts[part], self.data_shape) for part in PARTS}
        if index["num_classes"] is not None:
            self._labels = {part: torch.from_numpy(np.load(folder / f"{part}.labels.npy")) for part in PARTS}
            self.num_classes = int(index["num_classes"])

    def split(self, name: SplitName) -> Split:
        return self._splits[name]

    def labels(self, name: SplitName) -> Tensor:
        """Class indices, (N,) int64.

        Raises:
            UsageError: the data came without labels.
        """
        if not hasattr(self, "num_classes"):
            raise UsageError("this dataset has no labels")
        return self._labels[name]


@dataclass(frozen=True, slots=True)
class Found:
    """What there is for a data node.

    Attributes:
        folder: where the rows are, or would be.
        index: read from there; None: nothing is prepared, or what there is can't be used.
        problem: why what there is can't be used; "" when there is nothing, or it can.
        gone: the files that it was made from are no longer there.
    """

    folder: Path
    index: dict[str, Any] | None = None
    problem: str = ""
    gone: bool = False


def find_prepared(recipe: Recipe) -> Found:
    """What is prepared for the recipe's ``data`` node, checked against the files that it was made from.

    Names, sizes and times of those files are looked at, and the sizes of the prepared ones; no content is read.
    """
    folder = place_of(recipe) / ROWS_FOLDER
    if not folder.is_dir():
        return Found(folder)
    try:
        index = read_index(folder)
        for name, facts in index["files"].items():
            if (size := (folder / name).stat().st_size) != facts["bytes"]:
                return Found(folder, problem=f"{name} has {size} bytes, not {facts['bytes']}")
        then = [(_source(entry), _fingerprint(entry)) for entry in index["sources"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Found(folder, problem=f"the folder is damaged ({error})")
    try:
        now = [fingerprint(source) for source, _ in then]
    except OSError as error:
        return Found(folder, problem=f"the files that they were made from can't be looked at ({error})")
    if then and not any(seen.files for seen in now):
        return Found(folder, index, gone=True)
    for (source, before), after in zip(then, now, strict=True):
        if (before.files, before.digest) != (after.files, after.digest):
            return Found(folder, problem=_change(source, before, after))
    return Found(folder, index)


def verify(folder: Path, index: Mapping[str, Any]) -> None:
    """Read every prepared file and hold it against its checksum.

    Raises:
        DataError: one is not what was written.
    """
    for name, facts in index["files"].items():
        digest = hashlib.sha256()
        try:
            with open(folder / name, "rb") as file:
                while block := file.read(HASHED_BYTES):
                    digest.update(block)
        except OSError as error:
            raise DataError(f"{folder / name} can't be read: {error}") from error
        if digest.hexdigest() != facts["sha256"]:
            raise DataError(
                f"{folder / name} is damaged: its checksum is not the one that was written",
                hint="Prepare it anew with --force.",
            )


def place_of(recipe: Recipe) -> Path:
    """The folder for the recipe's ``data`` node, which holds ``rows`` once they are prepared."""
    node = described_node(recipe)
    key = hashlib.sha256(json.dumps([CACHE_FORMAT, node], sort_keys=True).encode()).hexdigest()
    return data_cache_directory() / f"{node['name'].rpartition(':')[2]}-{key[:20]}"


def described_node(recipe: Recipe) -> dict[str, Any]:
    """The ``data`` node with its component's full address and an absolute path, without what changes no pixel."""
    node = {key: value for key, value in recipe.data.as_dict().items() if key not in OF_READING}
    node["name"] = installed().registry.get("dataset", recipe.data.name).address
    if isinstance(node.get("path"), str):
        node["path"] = str((recipe.directory / Path(node["path"]).expanduser()).resolve())
    return node


def read_index(folder: Path) -> dict[str, Any]:
    """What ``index.json`` says.

    Raises:
        OSError, ValueError: it is missing or malformed.
    """
    index = read_json(folder / INDEX_FILE)
    if not isinstance(index, dict) or index.get("format") != CACHE_FORMAT:
        raise ValueError(f"{INDEX_FILE} is not of format {CACHE_FORMAT}")
    return index


def source_entry(source: Source, seen: Fingerprint) -> dict[str, Any]:
    """A source and its fingerprint as the index keeps them."""
    return {"path": str(source.path), "suffixes": list(source.suffixes), **dataclasses.asdict(seen)}


def _source(entry: Mapping[str, Any]) -> Source:
    return Source(Path(entry["path"]), tuple(entry["suffixes"]))


def _fingerprint(entry: Mapping[str, Any]) -> Fingerprint:
    return Fingerprint(**{field.name: entry[field.name] for field in dataclasses.fields(Fingerprint)})


def _change(source: Source, before: Fingerprint, after: Fingerprint) -> str:
    """In words, what became of files."""
    if before.files != after.files:
        return f"{source.path} had {before.files:,} file(s) when they were made and has {after.files:,} now"
    if after.newest > before.newest:
        name = source.path / after.newest_file if source.path.is_dir() else source.path
        return f"{name} was changed since they were made"
    return f"{source.path} is no longer what it was when they were made (names, sizes or times of files differ)"
