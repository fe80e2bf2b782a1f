"""Image datasets of the Hugging Face library."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from gebm_kit.core.components import Injected, Range, check_arguments
from gebm_kit.core.errors import DataError, GebmKitError, UsageError, nearest
from gebm_kit.core.interfaces import Dataset, Split, SplitName
from gebm_kit.core.sources import Piece, Source
from gebm_kit.data.decoding import MAX_SIDE, CorruptImageError, Fit, background_colour
from gebm_kit.data.image_files import CorruptFiles, Images
from gebm_kit.data.readings import BYTES, reading
from gebm_kit.data.tensors import SPLITS, check_fractions
from gebm_kit_hf.loading import (
    Where,
    check_rows,
    check_same_classes,
    chosen_column,
    declared_classes,
    decoded,
    label_column,
    open_splits,
    undecoded,
)
from gebm_kit_hf.places import Places, places_of

STREAM_ROWS = 64
"""Rows of a stream that one task decodes: more hold more images in memory, fewer make more tasks."""


class HuggingFace(Dataset):
    """Images (channels, size, size) in [-1, 1] of any dataset with an image column.

    An image is turned upright (EXIF), cut to its central ``crop`` x ``crop`` square when ``crop`` is given, resized with an
    antialiasing bicubic filter so that its shorter side is ``size``, and cut to the central ``size`` x ``size`` square. An
    image that can't be decoded is named in a warning and skipped: the next one of its part and class takes its place. In a
    stream it is left out.

    Transparent pixels are laid over ``background``. Files on this machine and addresses that the rows or the README of a
    dataset name are opened only if they are part of it, or with ``--trust-paths``.

    If no split of the library is named for a part, that part is split off the training split: a hash of k and the seed
    decides whether row k goes to valid, test or train. A stream is therefore split exactly like the whole dataset.

    With ``streaming`` nothing is downloaded beforehand and no copy of the files is kept. `gebm-kit data prepare` reads the
    stream once, decodes it and keeps the rows at their final size. It must run before training, which then shuffles and
    resumes as with any other data. (Shuffling a stream in a buffer would be coarser, and could not be resumed exactly
    without reading the stream again from its start.)

    Args:
        path: a folder (images in class folders, parquet files, or what ``save_to_disk`` wrote), or a parquet, arrow or zip
            file, relative to the directory where the command is started.
        hub: name of a repository on the hub, such as ``uoft-cs/cifar10``, instead of ``path``.
        config: configuration, for a repository with several.
        revision: branch, tag or commit of the repository; only a commit always gives the same data.
        image: the column of images; null: the only one.
        label: column of class labels, of type ClassLabel, which also names the classes; ``auto``: the only one; null: no
            labels.
        train, valid, test: name of the library's split for each part; null: split the part off ``train``.
        valid_fraction, test_fraction: shares of the rows that are split off.
        seed: seed of that split.
        size: side of the result.
        crop: side of a central square that is cut out first.
        channels: 3 for colour, 1 for grey.
        streaming: whether to read the data as a stream; see above.
        cache_mb: megabytes of decoded images to keep in memory; the others are decoded each time they are read.
        max_corrupt: how many images that can't be decoded are skipped; one more is an error.
        background: colour behind transparent pixels: a name or ``#rrggbb``.

    References:
        Datasets: A Community Library for Natural Language Processing. Q. Lhoest et al., EMNLP 2021 (system demonstrations).
        https://arxiv.org/abs/2109.02846

    Raises:
        DataError: the data do not exist, name files that are not part of them, the hub can't be reached, or a split or
            column is missing. Later: too many images can't be decoded.
        UsageError: the parameters contradict each other.
    """

    num_classes: int
    class_names: tuple[str, ...]
    how_to_label = "Name a column of type ClassLabel, data.label=COLUMN, or data.label=auto where there is only one."

    def __init__(
        self,
        path: str | None = None,
        hub: str | None = None,
        config: str | None = None,
        revision: str | None = None,
        image: str | None = None,
        label: str | None = None,
        train: str = "train",
        valid: str | None = None,
        test: str | None = None,
        valid_fraction: Annotated[float, Range(0, 1, low_open=True, high_open=True)] = 0.1,
        test_fraction: Annotated[float, Range(0, 1, low_open=True, high_open=True)] = 0.1,
        seed: int = 0,
        size: Annotated[int, Range(1, MAX_SIDE)] = 64,
        crop: Annotated[int | None, Range(1, MAX_SIDE)] = None,
        channels: Literal[1, 3] = 3,
        streaming: bool = False,
        cache_mb: Annotated[int, Range(0, None)] = 4096,
        max_corrupt: Annotated[int, Range(0, None)] = 10,
        background: str = "white",
        *,
        directory: Annotated[Path, Injected] = Path(),
    ) -> None:
        check_arguments(self, valid_fraction=valid_fraction, test_fraction=test_fraction, size=size)
        check_arguments(self, cache_mb=cache_mb, max_corrupt=max_corrupt)
        check_fractions(valid_fraction, test_fraction)
        if crop is not None:
            check_arguments(self, crop=crop)
        if channels not in (1, 3):
            raise UsageError(f"channels must be 1 or 3, got {channels!r}")
        if (path is None) == (hub is None):
            raise UsageError(
                "dataset hf reads data.path, on this machine, or data.hub, on the hub; give one of the two"
            )
        if path is not None and (config is not None or revision is not None):
            raise UsageError("data.config and data.revision belong to data.hub; they can't be used with data.path")
        place = None if path is None else directory / Path(path).expanduser()
        self._where, self._seed = Where(place, hub, config, revision), seed
        self._fit = Fit(size, crop, channels, background_colour(background))
        self._background, self._corrupt = background, CorruptFiles(max_corrupt)
        self.data_shape = (channels, size, size)
        self.value_range = (-1.0, 1.0)

        self._places = places_of(place, hub)
        found = open_splits(self._where, self._places, streaming)
        named: dict[SplitName, str | None] = {"train": train, "valid": valid, "test": test}
        self._names: dict[SplitName, str] = {part: name for part, name in named.items() if name is not None}
        self._fractions: dict[SplitName, float] = {"valid": valid_fraction, "test": test_fraction}
        for part, name in self._names.items():
            if name not in found:
                raise DataError(f"{self._where} has no split {name!r} (data.{part}); {nearest(name, found)}")
        if len(set(self._names.values())) < len(self._names):
            raise UsageError(f"data.train, data.valid and data.test must be different splits, got {named}")
        self._rows = self._columns(found, train, image, label)
        self.num_rows: int | None = None
        self.streaming = streaming
        if streaming:
            self.num_rows = self._announced(found)
        else:
            for name, rows in self._rows.items():
                check_rows(rows, self._image, self._places, name)
            self._fill(cache_mb)

    def _columns(self, found: dict[str, Any], train: str, image: str | None, label: str | None) -> dict[str, Any]:
        """Choose the columns of images and labels, and return the rows of each split with these alone, undecoded."""
        features, what = found[train].features, f"{self._where}, split {train!r},"
        self._image = chosen_column(features, image, "Image", what)
        self._label = label = label_column(features, label, what)
        if label is not None:
            self.class_names = declared_classes(features, label, what)
            self.num_classes = len(self.class_names)
            for name in self._names.values():
                check_same_classes(found[name].features, label, self.class_names, f"{self._where}, split {name!r},")
        wanted = [self._image, *([label] if label is not None else [])]
        return {
            name: undecoded(found[name], self._image, str(self._where)).select_columns(wanted)
            for name in self._names.values()
        }

    def split(self, name: SplitName) -> Split:
        """Return one of the three parts.

        Raises:
            DataError: the dataset is a stream.
        """
        if self.streaming:
            raise DataError(
                f"{self._where} is streamed, and a stream must be prepared before training",
                hint="Run `gebm-kit data prepare` with this recipe first.",
            )
        return self._splits[name]

    def labels(self, name: SplitName) -> Tensor:
        """Return class indices, (N,) int64.

        Raises:
            UsageError: no column of labels was chosen.
        """
        if not hasattr(self, "num_classes"):
            raise UsageError("this dataset has no labels unless data.label names a column of class labels")
        return self._labels[name]

    def sources(self) -> list[Source]:
        """Return the local files; data on the hub are not checked for changes."""
        return [] if self._where.path is None else [Source(self._where.path)]

    def describe_reading(self) -> str:
        """Return one line about what was read."""
        notes = [f"column {self._image!r}", f"transparent pixels are laid over {self._background}"]
        if self.streaming:
            return f"{self._where}: a stream, {'; '.join(notes)}"
        return reading(self, str(self._where), f"images, {BYTES}", notes=notes)

    def skipped(self) -> dict[str, str]:
        return self._corrupt.by_name()

    def _fill(self, cache_mb: int) -> None:
        """Fill the splits that are read row by row; they share ``cache_mb``, and training takes its share first."""
        budget = cache_mb * 2**20 // (self.data_shape[0] * self.data_shape[1] * self.data_shape[2])
        self._splits: dict[SplitName, Split] = {}
        self._labels: dict[SplitName, Tensor] = {}
        split_off = self._split_off(len(self._rows[self._names["train"]]))
        for part in SPLITS:
            name = self._names.get(part, self._names["train"])
            index = split_off[part] if name == self._names["train"] else torch.arange(len(self._rows[name]))
            if len(index) == 0:
                raise DataError(f"{self._where}: the {part} part has no rows")
            if self._label is not None:
                every = self._rows[name].select_columns([self._label])[:][self._label]
                self._labels[part] = self._checked(every, name)[index]
            kept = min(budget, len(index))
            self._splits[part] = _Rows(
                (self._rows[name], self._image, name, self._places),
                index,
                self._fit,
                kept,
                self._corrupt,
                self._labels.get(part),
            )
            budget -= kept

    def _checked(self, labels: Sequence[int | None], name: str) -> Tensor:
        """Return class indices, (N,) int64."""
        classes = range(self.num_classes)
        for label in labels:
            if label not in classes:
                raise DataError(f"{self._where}, split {name!r}: a label is {label}, not one of 0 to {classes[-1]}")
        return torch.tensor(labels, dtype=torch.int64)

    def _split_off(self, num: int) -> dict[SplitName, Tensor]:
        """Return the rows of the training split in each part."""
        parts: dict[SplitName, list[int]] = {"train": [], "valid": [], "test": []}
        for row in range(num):
            parts[self._part(row)].append(row)
        return {part: torch.tensor(rows, dtype=torch.int64) for part, rows in parts.items()}

    def _part(self, row: int) -> SplitName:
        """Return the part of a row of the training split: compare a uniform number, from a hash, with the shares."""
        digest = hashlib.blake2b(f"{self._seed}/{row}".encode(), digest_size=8).digest()
        uniform = int.from_bytes(digest, "little") / 2**64
        parts: tuple[SplitName, ...] = ("valid", "test")
        for part in parts:
            if part in self._names:
                continue
            uniform -= self._fractions[part]
            if uniform < 0:
                return part
        return "train"

    def _announced(self, found: dict[str, Any]) -> int | None:
        """Return how many rows the stream will have; None if the library does not know."""
        total = 0
        for name in self._names.values():
            known = getattr(found[name].info, "splits", None) or {}
            count = getattr(known.get(name), "num_examples", None)
            if not count:
                return None
            total += int(count)
        return total

    def pieces(self) -> Iterator[Callable[[], Sequence[Piece]]]:
        """Yield functions that each decode a block of the stream.

        Raises:
            DataError: the stream breaks off.
        """
        for name in self._names.values():
            stream, start = self._rows[name], 0
            blocks = iter(stream.iter(batch_size=STREAM_ROWS))
            while True:
                try:
                    block = next(blocks, None)
                except GebmKitError:
                    raise
                except Exception as error:  # from the network, or from a damaged file
                    raise DataError(
                        f"{self._where}: the stream breaks off after row {start} of split {name!r}: "
                        f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
                        hint="Repeat the command; it starts from the beginning.",
                    ) from error
                if block is None:
                    break
                labels = block[self._label] if self._label is not None else None
                yield functools.partial(self._piece, name, start, block[self._image], labels)
                start += len(block[self._image])

    def _piece(self, name: str, start: int, images: list[Any], labels: list[int] | None) -> list[Piece]:
        """Decode the block and return its rows by part."""
        rows: dict[SplitName, list[Tensor]] = {part: [] for part in SPLITS}
        classes: dict[SplitName, list[int]] = {part: [] for part in SPLITS}
        (named,) = (part for part, split in self._names.items() if split == name)
        for place, value in enumerate(images):
            part = self._part(start + place) if named == "train" else named
            called = row_name(name, start + place)
            try:
                rows[part].append(decoded(value, self._fit, called, self._places))
            except CorruptImageError as error:
                self._corrupt.note(called, error)
                continue
            if labels is not None:
                classes[part].append(labels[place])
        return [
            Piece(
                part,
                torch.stack(rows[part]),
                self._checked(classes[part], name) if labels is not None else None,
            )
            for part in SPLITS
            if rows[part]
        ]


class _Rows(Images):
    """Some rows of a split that the library maps into memory.

    Args:
        source: rows of the split, the column of images, the split's name, and what the rows may name.
        index: the rows of this part.
    """

    def __init__(
        self,
        source: tuple[Any, str, str, Places],
        index: Tensor,
        fit: Fit,
        num_cached: int,
        corrupt: CorruptFiles,
        groups: Tensor | None,
    ) -> None:
        shape = (fit.channels, fit.size or 0, fit.size or 0)
        super().__init__(len(index), shape, num_cached, corrupt, groups)
        rows, self._column, self._split, self._places = source
        self._rows, self._index, self._fit = rows.select_columns([self._column]), index, fit

    def name(self, place: int) -> str:
        return row_name(self._split, int(self._index[place]))

    def decoded(self, place: int) -> Tensor:
        value = self._rows[int(self._index[place])][self._column]
        return decoded(value, self._fit, self.name(place), self._places)


def row_name(split: str, row: int) -> str:
    """Return what messages call the image of a row."""
    return f"in row {row} of split {split!r}"
