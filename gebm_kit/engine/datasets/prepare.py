"""Decoding a dataset of images once, into a folder that training maps into memory.

`gebm_kit.engine.datasets.prepared_cache` reads that folder.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import io
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from gebm_kit.config.build import build
from gebm_kit.config.schema import ComponentNode, Recipe
from gebm_kit.core.class_names import class_names_of
from gebm_kit.core.components import parameters
from gebm_kit.core.errors import DataError, RunFailed, UsageError
from gebm_kit.core.files import make_directory, remove_tree, sync_directory, write_json, writing
from gebm_kit.core.interfaces import Dataset, HasLabels, HasReading, HasStoredRows, Split, SplitName
from gebm_kit.core.pixels import scale_bytes
from gebm_kit.core.plugins import installed
from gebm_kit.core.progress import OnProgress, Progress, ignore, warn
from gebm_kit.core.sources import HasPieces, HasSources, Piece, fingerprint
from gebm_kit.core.version import __version__
from gebm_kit.engine.datasets.prepared_cache import (
    CACHE_FORMAT,
    INDEX_FILE,
    PARTS,
    ROWS_FOLDER,
    VALUE_RANGE,
    described_node,
    find_prepared,
    place_of,
    source_entry,
    verify,
)
from gebm_kit.engine.process.lock import DirectoryLock

PIECE_ROWS = 64
"""Number of images that a thread decodes at a time."""


PIECES_AHEAD = 4
"""Number of pieces per thread that may wait to be written."""


NEW, OLD = ".new-", ".old-"
"""Prefixes of folders that are being written, and that are being replaced."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A folder of prepared images.

    Attributes:
        path: the folder.
        index: its ``index.json``: ``shape``, ``counts`` by part, ``num_classes``, ``checksum``, ``skipped``, ...
        made: whether this call made the folder; False: it was up to date.
    """

    path: Path
    index: dict[str, Any]
    made: bool


def prepare(
    recipe: Recipe,
    *,
    threads: int | None = None,
    force: bool = False,
    check: bool = False,
    on_progress: OnProgress = ignore,
) -> Prepared:
    """Decode all parts of the recipe's dataset into a folder of the cache, unless that is already up to date.

    The folder is written under another name and renamed, so that a kill at any instant leaves the old one, or none.

    Args:
        threads: number of decoding threads; None: one per CPU.
        force: prepare the images again even if they are up to date.
        check: verify the checksums of a folder that is up to date.
        on_progress: called now and then with a `Progress`.

    Raises:
        DataError: the files are missing or malformed, or too many can't be decoded; a checksum is wrong (``check``).
        UsageError: the dataset does not consist of image files; the cache can't be written, or another process is
            preparing the same data.
        RunFailed: the disk is full.
    """
    root = place_of(recipe)
    dataset = None
    if force or find_prepared(recipe).index is None:
        dataset = _from_files(recipe)  # before anything is written: the likeliest failure is a missing folder
        make_directory(root)
    elif any((*root.glob(f"{NEW}*"), *root.glob(f"{OLD}*"))):
        with contextlib.suppress(UsageError), DirectoryLock(work="preparing", hint="Wait for it.") as lock:
            lock.hold(root)  # otherwise a living process is writing them
            _remove(root, NEW, OLD)
    with DirectoryLock(work="preparing", hint="Wait for it.", active=dataset is not None) as lock:
        lock.hold(root)
        found = find_prepared(recipe)  # again: another process may have made it while holding the lock
        if found.index is not None and not force:
            if check:
                verify(found.folder, found.index)
            return Prepared(found.folder, found.index, made=False)
        if found.problem and not force:
            warn(f"the prepared data in {found.folder} are made again: {found.problem}")
        _remove(root, NEW, OLD)
        new = root / f"{NEW}{os.getpid()}"
        with writing(root):
            try:
                new.mkdir()
                index = _write(new, recipe, dataset, threads or _cpus(), on_progress)
                _replace(new, root / ROWS_FOLDER)
            finally:
                _remove(root, NEW, OLD)
    return Prepared(root / ROWS_FOLDER, index, made=True)


def _from_files(recipe: Recipe) -> Any:
    """Build the dataset that reads the image files, without its cache of decoded images in memory.

    Raises:
        UsageError: the dataset does not consist of image files.
    """
    node, name = recipe.data, recipe.data.name
    target = installed().registry.get("dataset", name).load()
    if "cache_mb" in parameters(target):
        node = ComponentNode(name, {**node.parameters, "cache_mb": 0})
    dataset = build("dataset", node, {"directory": recipe.directory})
    if not (isinstance(dataset, HasSources) and isinstance(dataset, Dataset) and len(dataset.data_shape) == 3):
        raise UsageError(
            f"dataset {name!r} does not consist of image files: there is nothing to prepare, training reads it as it is"
        )
    return dataset


def _write(folder: Path, recipe: Recipe, dataset: Any, threads: int, on_progress: OnProgress) -> dict[str, Any]:
    """Write rows, labels and index of the dataset, and return the index."""
    sources = [source_entry(source, fingerprint(source)) for source in dataset.sources()]
    shape = tuple(dataset.data_shape)
    labelled, names = isinstance(dataset, HasLabels), class_names_of(dataset)
    if isinstance(dataset, HasPieces) and dataset.streaming:
        pieces, total = dataset.pieces(), dataset.num_rows
    else:
        pieces, total = _pieces(dataset, labelled), sum(len(_stored(dataset, part)) for part in PARTS)
    if total is not None:
        _check_space(folder, total * int(np.prod(shape)))
    done, started = 0, time.monotonic()
    with contextlib.ExitStack() as stack:
        parts = {part: stack.enter_context(_Part(folder, part, shape, labelled)) for part in PARTS}
        for made in stack.enter_context(_side_by_side(pieces, threads)):
            for piece in made:
                parts[piece.part].add(piece)
                done += len(piece.rows)
            on_progress(Progress("prepare", done, -1 if total is None else total))
        files = {name: facts for part in PARTS for name, facts in parts[part].close().items()}
    on_progress(Progress("prepare", done, done))
    index: dict[str, Any] = {
        "schema": 1,
        "format": CACHE_FORMAT,
        "data": described_node(recipe),
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": time.monotonic() - started,
        "versions": {"gebm-kit": __version__, "pillow": version("pillow")},
        "shape": list(shape),
        "value_range": list(VALUE_RANGE),
        "counts": {part: parts[part].count for part in PARTS},
        "num_classes": dataset.num_classes if labelled else None,
        **({} if names is None else {"class_names": list(names)}),
        "files": files,
        "checksum": hashlib.sha256("".join(facts["sha256"] for facts in files.values()).encode()).hexdigest(),
        "sources": sources,
        "reading": dataset.describe_reading() if isinstance(dataset, HasReading) else "",
        "skipped": [{"image": name, "reason": reason} for name, reason in dataset.skipped().items()],
    }
    if empty := [part for part, count in index["counts"].items() if count == 0]:
        raise DataError(f"dataset {recipe.data.name!r} has an empty {empty[0]} part")
    write_json(folder / INDEX_FILE, index)
    return index


class _Part:
    """Writer for the files of one part."""

    def __init__(self, folder: Path, part: SplitName, shape: tuple[int, ...], labelled: bool) -> None:
        self._rows = folder / f"{part}.u8"
        self._labels = folder / f"{part}.labels.npy"
        self._shape, self._digest = shape, hashlib.sha256()
        self._classes: list[Tensor] | None = [] if labelled else None
        self.count = 0

    def __enter__(self) -> _Part:
        self._file: BinaryIO = open(self._rows, "wb")
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, piece: Piece) -> None:
        rows = piece.rows
        if tuple(rows.shape[1:]) != self._shape or rows.dtype != torch.uint8:
            raise UsageError(
                f"images come as {tuple(rows.shape[1:])} {rows.dtype}, not {self._shape} in unsigned bytes"
            )
        content = rows.numpy().tobytes()
        self._digest.update(content)
        self._file.write(content)
        self.count += len(rows)
        if self._classes is not None and piece.labels is not None:
            self._classes.append(piece.labels)

    def close(self) -> dict[str, dict[str, Any]]:
        """Sync the files to disk, and return the size and checksum of each by name."""
        self._file.flush()
        os.fsync(self._file.fileno())
        facts = {self._rows.name: {"bytes": self._file.tell(), "sha256": self._digest.hexdigest()}}
        if self._classes is None:
            return facts
        labels = torch.cat(self._classes) if self._classes else torch.empty(0, dtype=torch.int64)
        stream = io.BytesIO()
        np.save(stream, labels.to(torch.int64).numpy())
        content = stream.getvalue()
        with open(self._labels, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        facts[self._labels.name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        return facts


def _stored(dataset: Dataset, part: SplitName) -> Split:
    """Return a split after checking that it stores its rows as bytes.

    Raises:
        UsageError: it does not, or maps bytes to other values than `scale_bytes` does.
        DataError: the split is empty.
    """
    split = dataset.split(part)
    if len(split) == 0:
        raise DataError(f"the dataset has an empty {part} part")
    row = split.stored(torch.arange(1)) if isinstance(split, HasStoredRows) else None
    if row is None or row.dtype != torch.uint8 or not torch.equal(split.batch(torch.arange(1)), scale_bytes(row)):
        raise UsageError("this dataset does not store images as bytes: there is nothing to prepare")
    return split


def _pieces(dataset: Any, labelled: bool) -> Iterator[Callable[[], Sequence[Piece]]]:
    """Cut an indexable dataset into pieces; yield the functions that read them."""
    for part in PARTS:
        split = dataset.split(part)
        labels: Tensor | None = dataset.labels(part) if labelled else None
        for indices in torch.arange(len(split)).split(PIECE_ROWS):
            yield functools.partial(_piece, split, part, indices, labels)


def _piece(split: Any, part: SplitName, indices: Tensor, labels: Tensor | None) -> list[Piece]:
    return [Piece(part, split.stored(indices), None if labels is None else labels[indices])]


@contextlib.contextmanager
def _side_by_side(work: Iterable[Callable[[], Sequence[Piece]]], threads: int) -> Iterator[Iterator[Sequence[Piece]]]:
    """Yield the results of ``work`` in order, computed by threads; jobs that have not begun when the block ends never do."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="gebm-kit-prepare")

    def results() -> Iterator[Sequence[Piece]]:
        waiting: collections.deque[Future[Sequence[Piece]]] = collections.deque()
        for job in work:
            waiting.append(pool.submit(job))
            if len(waiting) > threads * PIECES_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    try:
        yield results()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _check_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size:
        raise RunFailed(
            f"the prepared images take {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free in {folder.parent.parent}",
            hint="Set GEBM_KIT_DATA_CACHE to a folder with more space.",
        )


def _replace(new: Path, place: Path) -> None:
    """Rename ``new`` to ``place``; an old folder there is renamed first, since a non-empty folder can't be replaced."""
    sync_directory(new)
    if place.exists():
        place.rename(place.parent / f"{OLD}{os.getpid()}")
    new.rename(place)
    sync_directory(place.parent)


def _remove(root: Path, *prefixes: str) -> None:
    """Remove folders that killed processes left."""
    for prefix in prefixes:
        for path in root.glob(f"{prefix}*"):
            remove_tree(path)


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
