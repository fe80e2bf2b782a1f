"""How chains are cut into blocks: by their number and the block size alone, equally, in pieces that fit the model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gebm_kit as gk
from gebm_kit.bases.mlp import MlpBase
from gebm_kit.core.interfaces import Energy
from gebm_kit.core.model import LatentPotential
from gebm_kit.energies.mlp import MlpEnergy
from gebm_kit.engine.sampling import blocks
from gebm_kit.engine.sampling.blocks import (
    activation_bytes,
    automatic_block_size,
    block_generator,
    lay_out,
    thread_piece,
)
from gebm_kit.samplers.hmc import Hmc
from gebm_kit.samplers.mala import Mala
from gebm_kit.samplers.pt import Pt
from gebm_kit.testing.targets import IdentityBase

CPU = torch.device("cpu")


@pytest.mark.parametrize("chains", [1, 2, 7, 37, 43, 64, 100, 181, 1000])
@pytest.mark.parametrize("block_size", [1, 3, 6, 10, 64, 5000])
def test_blocks_are_equal_and_each_has_chains_to_keep(chains: int, block_size: int) -> None:
    layout = lay_out(chains, block_size)
    assert layout.rows <= block_size
    assert layout.num_blocks == -(-chains // block_size)
    kept = [layout.kept(block) for block in range(layout.num_blocks)]
    assert sum(kept) == chains
    assert min(kept) > 0
    assert set(kept[:-1]) <= {layout.rows}
    assert layout.num_blocks * layout.rows - chains < layout.num_blocks  # few run in vain
    assert [layout.first(block) for block in range(layout.num_blocks)] == [
        block * layout.rows for block in range(layout.num_blocks)
    ]


def test_coupled_chains_are_one_block_in_pieces() -> None:
    layout = lay_out(1000, 300, coupled=True)
    assert (layout.num_blocks, layout.rows, layout.piece, layout.kept(0)) == (1, 1000, 250, 1000)
    assert lay_out(300, 300, coupled=True).piece is None


def test_each_block_has_random_numbers_of_its_own() -> None:
    first, second, other = (
        torch.randn(4, generator=block_generator(*which, CPU)) for which in ((0, 0), (0, 1), (1, 0))
    )
    assert torch.equal(first, torch.randn(4, generator=block_generator(0, 0, CPU)))
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)


def _size(width: int, sampler=None, depth: int = 3) -> int:
    model = gk.GEBM(MlpBase(8, [width], data_shape=(16,)), MlpEnergy([width] * depth, data_shape=(16,)))
    with LatentPotential(model) as potential:
        return automatic_block_size(
            potential, sampler or Mala(), CPU, torch.float32, activation_bytes(potential, CPU, torch.float32)
        )


def test_the_automatic_size_follows_from_model_and_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(blocks.COMFORTABLE, "cpu", 2**21)
    sizes = [_size(width) for width in (4, 512, 1024)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == blocks.LARGEST_BLOCK["cpu"]
    assert sizes[1] < sizes[0]
    assert all(size & (size - 1) == 0 for size in sizes)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert _size(512) == sizes[1]  # neither weights nor chance decide
    assert (
        _size(512, Pt(num_rungs=4, num_leapfrog=1)) == sizes[1] // 4
    )  # three replicas of a chain and a prior draw at once
    assert _size(512, Hmc()) == sizes[1]


def test_the_automatic_size_keeps_to_the_bytes_that_gradients_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """An energy sum f(x)² of f(x) = tanh(x): tanh keeps its result, the square its argument, which is the same tensor."""

    class Squares(Energy):
        def forward(self, x):
            return torch.tanh(x).square().sum(1)

    monkeypatch.setattr(blocks, "SMALLEST_BLOCK", 1)
    monkeypatch.setitem(blocks.LARGEST_BLOCK, "cpu", 2**20)
    with LatentPotential(gk.GEBM(IdentityBase(256), Squares())) as potential:
        for dtype, bytes_a_row in ((torch.float32, 1024), (torch.float64, 2048)):
            monkeypatch.setitem(blocks.COMFORTABLE, "cpu", 100 * bytes_a_row)
            assert automatic_block_size(potential, Mala(), CPU, dtype, activation_bytes(potential, CPU, dtype)) == 64


def test_a_large_model_gets_blocks_as_long_as_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(blocks.COMFORTABLE, "cpu", 1)
    assert _size(16) == blocks.SMALLEST_BLOCK
    monkeypatch.setattr(blocks, "MOST", 1)
    assert _size(16) == 1


def test_a_model_without_activations_gets_the_largest_blocks() -> None:
    class Constant(Energy):
        def __init__(self) -> None:
            super().__init__()
            self.value = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            return self.value.expand(len(x))

    with LatentPotential(gk.GEBM(IdentityBase(2), Constant())) as potential:
        assert (
            automatic_block_size(potential, Mala(), CPU, torch.float32, activation_bytes(potential, CPU, torch.float32))
            == blocks.LARGEST_BLOCK["cpu"]
        )


def test_threads_share_a_block_in_equal_pieces_whatever_their_number() -> None:
    model = gk.GEBM(MlpBase(8, [256], data_shape=(16,)), MlpEnergy([256] * 3, data_shape=(16,)))
    with LatentPotential(model) as potential:
        row_bytes = activation_bytes(potential, CPU, torch.float32)
        found = {rows: thread_piece(lay_out(rows, 1024), CPU, row_bytes) for rows in (20, 1000, 1024)}
        assert found[20] is None  # too small to share
        pieces = found[1024]
        assert pieces is not None
        assert 1024 % pieces == 0
        assert 1 < 1024 // pieces <= blocks.MOST_PIECES
        before = torch.get_num_threads()
        torch.set_num_threads(3)
        assert thread_piece(lay_out(1024, 1024), CPU, activation_bytes(potential, CPU, torch.float32)) == pieces
        torch.set_num_threads(before)
        coupled = lay_out(1000, 300, coupled=True)
        assert thread_piece(coupled, CPU, row_bytes) == coupled.piece
