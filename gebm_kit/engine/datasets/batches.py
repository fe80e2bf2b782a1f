"""Batches of training data, in an order that depends only on the seed and the position.

The permutation of each epoch is a function of (seed, epoch), so the state of the feed is one number: how many rows were
handed out. A resumed run sees exactly the rows that it would have seen without the stop. Each of several ranks takes its
part of every batch, and the batches are those of one process: no row is seen twice in an epoch, and a run can be resumed
with any number of ranks.

Data that fit are held on the device as the dataset stores them (images stay bytes) and are converted to their value range
there. Larger data are read ahead by a thread, into pinned memory for a CUDA device.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from gebm_kit.core import reduce
from gebm_kit.core.errors import DataError, RecipeError
from gebm_kit.core.interfaces import HasStoredRows, Split

RESIDENT_BYTES = 512 * 2**20
"""Largest size of data, as stored, that are held on the device."""


READ_AHEAD = 2
"""Number of batches that are read ahead while one is in use."""


class Feed:
    """Endless shuffled batches of a split.

    Args:
        split: the data.
        batch_size: rows in a batch, over all ranks; a batch may span two epochs, so that none is short.
        seed: seed of the order.
        device, dtype: device and type of the batches.

    Attributes:
        position: rows handed out so far, over all ranks; set it to resume.
        seed, batch_size: may be changed; batches read ahead with the old values are dropped.
        epoch_size: rows in the split.
        labels: classes of the split's rows, (N,) int64 on the device; None where nobody asks for them.
        shares: share of each class in an epoch, (K,) float64 on the CPU, which needs labels; None: every row is in it once.

    Raises:
        DataError: a resident row is not finite.
    """

    def __init__(self, split: Split, batch_size: int, seed: int, device: torch.device, dtype: torch.dtype) -> None:
        self.split = split
        self.batch_size = batch_size
        self.seed = seed
        self.device = device
        self.dtype = dtype
        self.position = 0
        self.epoch_size = len(split)
        self.labels: Tensor | None = None
        self.shares: Tensor | None = None
        self._members: list[Tensor] = []
        self._label_order: tuple[tuple[int, int], Tensor] | None = None
        self._epoch = (seed, -1)
        self._order = torch.empty(0, dtype=torch.int64)
        self._resident = self._load() if self._bytes() <= RESIDENT_BYTES else None
        self._ahead = _ReadAhead(self._read) if self._resident is None else None

    def next(self) -> Tensor:
        """Return the next batch, or this rank's part of it, (B, *D)."""
        place = _Place(self.seed, self.position, self.batch_size)
        if self._ahead is not None:
            stored = self._ahead.take(place).to(self.device, non_blocking=True)
        else:
            assert self._resident is not None
            stored = self._resident.index_select(0, self._indices(place))
        self.position += self.batch_size
        return self._decoded(stored)

    def last_labels(self) -> Tensor:
        """Return the labels of the rows that `next` returned last, or of this rank's part of them, (B,)."""
        assert self.labels is not None
        place = _Place(self.seed, self.position - self.batch_size, self.batch_size)
        # the read-ahead thread has its own permutations
        return self.labels.index_select(0, self._indices(place, self._order_of_labels).to(self.labels.device))

    def _order_of_labels(self, seed: int, epoch: int) -> Tensor:
        if self._resident is not None:
            return self._permutation(seed, epoch)
        if self._label_order is None or self._label_order[0] != (seed, epoch):
            self._label_order = (seed, epoch), self._order_of(seed, epoch)
        return self._label_order[1]

    @property
    def resident_bytes(self) -> int:
        """Bytes that the data take on the device; 0 if they are read batch by batch."""
        return 0 if self._resident is None else self._resident.numel() * self._resident.element_size()

    def _indices(self, place: _Place, order: Callable[[int, int], Tensor] | None = None) -> Tensor:
        """Return the row indices of the batch at ``place``, or of this rank's part of it, (B,).

        ``order`` gives the permutation of a seed and an epoch; None: `_permutation`.
        """
        order = order or self._permutation
        parts, wanted, position = [], place.size, place.position
        while wanted:
            epoch, offset = divmod(position, self.epoch_size)
            part = order(place.seed, epoch)[offset : offset + wanted]
            parts.append(part)
            wanted -= len(part)
            position += len(part)
        return reduce.share(parts[0] if len(parts) == 1 else torch.cat(parts))

    def _permutation(self, seed: int, epoch: int) -> Tensor:
        if self._epoch != (seed, epoch):
            order = self._order_of(seed, epoch)
            self._order = order if self._resident is None else order.to(self.device)
            self._epoch = (seed, epoch)
        return self._order

    def _order_of(self, seed: int, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
        if self.shares is not None:
            return self._order_in_shares(generator)
        return torch.randperm(self.epoch_size, generator=generator)

    def weigh(self, shares: Tensor) -> None:
        """Give each class its share of every epoch from here on, (K,).

        An epoch keeps its length. Rows of a class are repeated, or left out, as evenly as its share allows, and which rows
        are repeated once more is drawn anew for every epoch. The expected share of a class is exact.
        """
        assert self.labels is not None
        labels = self.labels.cpu()
        sizes = torch.bincount(labels, minlength=len(shares)).tolist()
        self._members = list(labels.argsort(stable=True).split(sizes))
        self.shares = shares.double().cpu()

    def _order_in_shares(self, generator: torch.Generator) -> Tensor:
        assert self.shares is not None
        shift = torch.rand((), generator=generator, dtype=torch.float64)
        ends = self.shares.cumsum(0)
        # the last end is exactly 1, so that a class of weight 0 after it gets no row
        ends = (ends / ends[-1] * self.epoch_size + shift).floor().clamp(max=self.epoch_size)
        counts = ends.diff(prepend=torch.zeros(1, dtype=torch.float64)).long().tolist()
        chosen = []
        for own, count in zip(self._members, counts, strict=True):
            whole, rest = divmod(count, max(len(own), 1))
            chosen += [own.repeat(whole), own[torch.randperm(len(own), generator=generator)[:rest]]]
        order = torch.cat(chosen)
        return order[torch.randperm(len(order), generator=generator)]

    def _read(self, place: _Place) -> Tensor:
        """Read a batch as stored, on the CPU. The read-ahead thread calls this, and alone computes permutations then."""
        indices = self._indices(place)
        rows = self.split.stored(indices) if isinstance(self.split, HasStoredRows) else self.split.batch(indices)
        return rows.pin_memory() if self.device.type == "cuda" and rows.device.type == "cpu" else rows

    def _decoded(self, stored: Tensor) -> Tensor:
        """Convert stored rows to the dataset's value range."""
        rows = self.split.decode(stored) if isinstance(self.split, HasStoredRows) else stored
        return rows.to(self.dtype)

    def _bytes(self) -> int:
        row = self.split.stored(torch.arange(1)) if isinstance(self.split, HasStoredRows) else self.split.first(1)
        return (
            row.numel() * (self._floating_size() if row.is_floating_point() else row.element_size()) * self.epoch_size
        )

    def _floating_size(self) -> int:
        return torch.empty((), dtype=self.dtype).element_size()

    def _load(self) -> Tensor:
        split = self.split
        rows = split.stored(None) if isinstance(split, HasStoredRows) else split.first(self.epoch_size)
        if not rows.is_floating_point():
            return rows.to(self.device)
        rows = rows.to(self.device, self.dtype)
        finite = torch.isfinite(rows.flatten(1)).all(1)
        if not bool(finite.all()):
            row = int((~finite).nonzero()[0])
            raise DataError(f"training data: row {row} holds a value that is not finite (NaN or infinity)")
        return rows


class _Place(NamedTuple):
    """Start of a batch in the endless sequence of a seed, and its size."""

    seed: int
    position: int
    size: int


class _ReadAhead:
    """Batches from a background thread, in order; asking for any place but the next one starts over."""

    def __init__(self, read: Callable[[_Place], Tensor]) -> None:
        self._read = read
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gebm-kit-feed")
        self._queue: collections.deque[tuple[_Place, Future[Tensor]]] = collections.deque()

    def take(self, place: _Place) -> Tensor:
        if not self._queue or self._queue[0][0] != place:
            for _, future in self._queue:
                future.cancel()
            self._queue.clear()
        while len(self._queue) <= READ_AHEAD:
            ahead = place._replace(position=place.position + len(self._queue) * place.size)
            self._queue.append((ahead, self._thread.submit(self._read, ahead)))
        return self._queue.popleft()[1].result()


def check_flips(data_shape: tuple[int, ...]) -> None:
    """Raise RecipeError unless data points are images."""
    if len(data_shape) != 3:
        raise RecipeError(
            f"train.flip mirrors images, of shape (channels, height, width), but the data has shape {tuple(data_shape)}"
        )


def flipped(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with probability 1/2; (B, C, H, W) -> (B, C, H, W)."""
    return torch.where(reduce.rand_rows(images, generator) < 0.5, images.flip(-1), images)
