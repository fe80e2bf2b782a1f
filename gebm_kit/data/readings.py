"""The one line in which a dataset of images says what it read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gebm_kit.core.class_names import class_names_of
from gebm_kit.core.interfaces import Dataset, HasLabels
from gebm_kit.data.decoding import CorruptImageError, Opened, is_deep, is_transparent, refuse
from gebm_kit.data.image_files import CorruptFiles, Listed
from gebm_kit.data.tensors import SPLITS, in_words

MAX_HEADERS = 4096
"""Most files whose headers are looked at before training, which takes less than a second."""

BYTES = "unsigned bytes 0..255"
"""What most images are stored as."""


def reading(dataset: Dataset, source: str, before: str, *, after: str | None = None, notes: Sequence[str] = ()) -> str:
    """Write the line: rows, shape, type and range before and after, labels, and notes.

    Args:
        dataset: the dataset; its splits, shape, range and labels are stated.
        source: name of the file or folder.
        before: type and range in the files.
        after: type and range of the rows; None: single precision in the dataset's value range.
        notes: what else a reader should know, each a few words.
    """
    counts = [len(dataset.split(part)) for part in SPLITS]
    parts = ", ".join(f"{part} {count:,}" for part, count in zip(SPLITS, counts, strict=True))
    interval = dataset.value_range
    after = after or f"float32 in {f'[{interval[0]:g}, {interval[1]:g}]' if interval else 'no fixed range'}"
    labels = f"{dataset.num_classes} classes" if isinstance(dataset, HasLabels) else "none"
    if (names := class_names_of(dataset)) is not None:
        labels += f" ({in_words(names)})"
    shape = "x".join(map(str, dataset.data_shape))
    first = f"read {sum(counts):,} rows ({parts}) of shape {shape}: {source}, {before} -> {after}; labels: {labels}"
    return "; ".join([first, *(note for note in notes if note)])


@dataclass(slots=True)
class Survey:
    """Headers of some of a folder's images.

    Attributes:
        seen, total: number of headers that were read, and of images.
        modes: number of files by Pillow's mode.
        transparent, deep: number of files with transparency, and of files with 16 bits a channel.
    """

    total: int
    seen: int = 0
    modes: Counter[str] = field(default_factory=Counter)
    transparent: int = 0
    deep: int = 0

    def before(self) -> str:
        """Say what the files hold."""
        modes = ", ".join(f"{mode} {count}" for mode, count in self.modes.most_common())
        where = "" if self.seen == self.total else f" in {self.seen} of {self.total:,} headers"
        deep = f", {self.deep} of them with 16 bits reduced to 8" if self.deep else ""
        return f"{BYTES} (modes {modes or 'unknown'}{where}{deep})"

    def transparency(self, background: str) -> str:
        """Say how transparency is treated."""
        found = f"{self.transparent} file(s)" if self.transparent else "none seen"
        return f"transparency: {found}, laid over {background}"


def survey(folder: Path, names: Sequence[str], corrupt: CorruptFiles) -> Survey:
    """Read the headers of up to `MAX_HEADERS` images, spread evenly over ``names``. Damaged ones are counted.

    Raises:
        DataError: an image can't be read as it should be (`refuse`), or too many are damaged.
    """
    found = Survey(len(names))
    step = max(1, -(-len(names) // MAX_HEADERS))
    for name in names[::step]:
        file = folder / name
        if file in corrupt.reasons:
            continue
        try:
            with Opened(file) as image:
                refuse(image, file)
                found.seen += 1
                found.modes[image.mode] += 1
                found.transparent += is_transparent(image)
                found.deep += is_deep(image)
        except CorruptImageError as error:
            corrupt.note(file, error)
    return found


def folder_reading(dataset: Dataset, folder: Path, listed: Listed, corrupt: CorruptFiles, background: str) -> str:
    """Write the line about a folder of images; see `reading`.

    Args:
        background: colour behind transparent pixels.
    """
    headers = survey(folder, listed.names, corrupt)
    suffixes = Counter(name.rpartition(".")[2].lower() for name in listed.names)
    kinds = ", ".join(f"{count:,} .{suffix}" for suffix, count in suffixes.most_common())
    damaged = len(corrupt.reasons)
    notes = [
        headers.transparency(background),
        f"files: {kinds}; left out: {listed.left_out()}",
        f"damaged so far: {damaged}" if damaged else "",
    ]
    return reading(dataset, str(folder), headers.before(), notes=notes)
