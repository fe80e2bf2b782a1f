"""The feed's order depends only on seed and position, and every epoch is a permutation."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor

from gebm_kit.core.errors import DataError
from gebm_kit.core.interfaces import HasStoredRows, Split
from gebm_kit.data.tensors import TensorSplit
from gebm_kit.engine.datasets import batches as module
from gebm_kit.engine.datasets.batches import Feed


class Rows(Split):
    def __init__(self, num: int, bad: int | None = None) -> None:
        self.values = torch.arange(float(num)).unsqueeze(1)
        if bad is not None:
            self.values[bad] = torch.nan

    def __len__(self) -> int:
        return len(self.values)

    def batch(self, indices: Tensor) -> Tensor:
        return self.values[indices]


def feed(split: Split, batch_size: int = 4, seed: int = 0) -> Feed:
    return Feed(split, batch_size, seed, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("resident", [True, False])
def test_every_epoch_sees_every_row_once(resident: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not resident:
        monkeypatch.setattr(module, "RESIDENT_BYTES", 0)
    source = feed(Rows(10))
    rows = torch.cat([source.next() for _ in range(5)]).flatten()
    assert sorted(rows[:10].tolist()) == list(range(10))
    assert sorted(rows[10:].tolist()) == list(range(10))
    assert rows[:10].tolist() != rows[10:].tolist()


def test_resident_and_streamed_data_come_in_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    resident = [feed_batch for source in [feed(Rows(10))] for feed_batch in (source.next() for _ in range(7))]
    monkeypatch.setattr(module, "RESIDENT_BYTES", 0)
    source = feed(Rows(10))
    assert all(torch.equal(batch, source.next()) for batch in resident)


@pytest.mark.parametrize("resident", [True, False])
def test_setting_the_position_resumes(resident: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not resident:
        monkeypatch.setattr(module, "RESIDENT_BYTES", 0)
    straight = feed(Rows(10), seed=5)
    batches = [straight.next() for _ in range(9)]
    resumed = feed(Rows(10), seed=5)
    resumed.position = 4 * 4
    assert all(torch.equal(a, resumed.next()) for a in batches[4:])


def test_a_batch_may_be_larger_than_the_data() -> None:
    counts = torch.bincount(feed(Rows(3), batch_size=9).next().flatten().long())
    assert counts.tolist() == [3, 3, 3]


def test_rows_that_are_not_finite_are_named() -> None:
    with pytest.raises(DataError, match="row 6"):
        feed(Rows(10, bad=6))


def images(num: int = 12) -> TensorSplit:
    return TensorSplit(
        torch.randint(0, 256, (num, 1, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    )


@pytest.mark.parametrize("resident", [True, False])
def test_bytes_are_held_as_bytes_and_decoded_batch_by_batch(resident: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    split = images()
    assert isinstance(split, HasStoredRows)
    if not resident:
        monkeypatch.setattr(module, "RESIDENT_BYTES", 12 * 16 - 1)
    source = feed(split, batch_size=12)
    assert source.resident_bytes == (12 * 16 if resident else 0)
    batch = source.next()
    expected = feed(TensorSplit(split.first(12)), batch_size=12).next()  # the same order, of rows decoded beforehand
    assert batch.dtype == torch.float32
    assert torch.equal(batch, expected)
    assert Feed(split, 4, 0, torch.device("cpu"), torch.float64).next().dtype == torch.float64


class Recorded(Rows):
    """Rows that record which threads read them, and fail on demand."""

    def __init__(self, num: int) -> None:
        super().__init__(num)
        self.threads: set[int] = set()
        self.broken = False

    def batch(self, indices: Tensor) -> Tensor:
        self.threads.add(threading.get_ident())
        if self.broken:
            raise DataError("row 3 is gone")
        return super().batch(indices)


def test_reading_ahead_happens_in_one_other_thread_and_its_errors_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESIDENT_BYTES", 0)
    split = Recorded(10)
    source = feed(split)
    split.threads.clear()  # the first row, read to know its size
    for _ in range(4):
        source.next()
    assert len(split.threads) == 1
    assert threading.get_ident() not in split.threads
    assert source.position == 16  # what was handed out, not what was read
    split.broken = True
    with pytest.raises(DataError, match="row 3 is gone"):
        [source.next() for _ in range(4)]


@pytest.mark.parametrize("change", ["position", "batch_size", "seed"])
def test_what_was_read_ahead_is_dropped_when_the_place_changes(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def batches(resident: bool) -> list[Tensor]:
        monkeypatch.setattr(module, "RESIDENT_BYTES", 2**20 if resident else 0)
        source = feed(Rows(50))
        before = [source.next() for _ in range(3)]
        setattr(source, change, 7)
        return [*before, *(source.next() for _ in range(3))]

    assert all(torch.equal(a, b) for a, b in zip(batches(True), batches(False), strict=True))
