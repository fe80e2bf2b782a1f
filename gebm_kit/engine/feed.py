"""Batches of training data in an order that depends on the seed and the position alone.

The permutation of each epoch is a function of (seed, epoch), so the state of the feed is one number: how many rows were
handed out. A resumed run sees exactly the rows that it would have seen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gebm_kit.core.errors import DataError
from gebm_kit.core.interfaces import Split

RESIDENT_BYTES = 512 * 2**20
"""Data of at most that size (as floats) is held on the device."""


class Feed:
    """Endless shuffled batches of a split.

    Args:
        split: the data.
        batch_size: rows in a batch; a batch may span two epochs, so that none is short.
        seed: of the order.
        device, dtype: of the batches.

    Attributes:
        position: rows handed out so far; set it to resume.
        epoch_size: rows in the split.

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
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)
        self._resident = self._load() if self._bytes() <= RESIDENT_BYTES else None

    def next(self) -> Tensor:
        """The next batch, (B, *D)."""
        indices = self._next_indices()
        if self._resident is not None:
            return self._resident[indices]
        return self.split.batch(indices).to(self.device, self.dtype, non_blocking=True)

    def _next_indices(self) -> Tensor:
        parts, wanted = [], self.batch_size
        while wanted:
            epoch, offset = divmod(self.position, self.epoch_size)
            if epoch != self._epoch:
                self._shuffle(epoch)
            part = self._order[offset : offset + wanted]
            parts.append(part)
            wanted -= len(part)
            self.position += len(part)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _shuffle(self, epoch: int) -> None:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        order = torch.randperm(self.epoch_size, generator=generator)
        self._order = order if self._resident is None else order.to(self.device)
        self._epoch = epoch

    @property
    def resident_bytes(self) -> int:
        """Bytes that the data takes on the device; 0 when it is read batch by batch."""
        return 0 if self._resident is None else self._resident.numel() * self._resident.element_size()

    def _bytes(self) -> int:
        return self.split.first(1).numel() * torch.empty((), dtype=self.dtype).element_size() * self.epoch_size

    def _load(self) -> Tensor:
        data = self.split.first(self.epoch_size).to(self.device, self.dtype)
        finite = torch.isfinite(data.flatten(1)).all(1)
        if not bool(finite.all()):
            row = int((~finite).nonzero()[0])
            raise DataError(f"training data: row {row} holds a value that is not finite (NaN or infinity)")
        return data
