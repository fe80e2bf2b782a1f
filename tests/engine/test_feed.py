"""The feed's order depends on seed and position alone, and every epoch is a permutation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gebm_kit.core.errors import DataError
from gebm_kit.core.interfaces import Split
from gebm_kit.engine import feed as module
from gebm_kit.engine.feed import Feed


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


def test_setting_the_position_resumes() -> None:
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
