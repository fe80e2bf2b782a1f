"""Pieces of an evaluation on several threads: the same numbers, single-threaded operators, errors that are passed on."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from gebm_kit.core.errors import PluginError
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.threads import PieceThreads
from gebm_kit.energies.mlp import MlpEnergy
from gebm_kit.testing.targets import IdentityBase


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def _potential(block_size: int | None) -> LatentPotential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LatentPotential(
            GEBM(IdentityBase(5), MlpEnergy(hidden=[32, 32], data_shape=(5,))), block_size=block_size
        )


def test_threads_change_nothing(three_threads: None) -> None:
    z = torch.randn(50, 5, generator=torch.Generator().manual_seed(1))
    with _potential(8) as potential:
        together = potential.value_and_grad(z)
        values = potential.value(z)
        assert (potential.grad_evals, potential.forward_evals) == (50, 50)
        torch.set_num_threads(1)
        alone = potential.value_and_grad(z)
        assert torch.equal(values, potential.value(z))
    assert torch.equal(together.value, alone.value)
    assert torch.equal(together.grad, alone.grad)
    assert not values.requires_grad
    assert not together.value.requires_grad


def test_pieces_run_side_by_side_with_operators_of_one_thread(three_threads: None) -> None:
    meet = threading.Barrier(3, timeout=60)  # breaks unless three pieces run at once

    def look(piece: torch.Tensor) -> tuple[str, int, int]:
        meet.wait()
        return threading.current_thread().name, torch.get_num_threads(), int(piece[0])

    threads = PieceThreads()
    seen = threads.map(look, torch.arange(6).split(1))
    threads.close()
    assert {count for _, count, _ in seen} == {1}
    assert len({name for name, _, _ in seen}) == 3
    assert [piece for _, _, piece in seen] == list(range(6))
    assert torch.get_num_threads() == 3
    fresh: list[int] = []
    late = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
    late.start()
    late.join()
    assert fresh == [3]  # other threads are left as they were


def test_a_single_piece_stays_where_it_is(three_threads: None) -> None:
    threads = PieceThreads()
    assert threads.map(lambda _: threading.current_thread(), [torch.zeros(2)]) == [threading.current_thread()]


def test_an_error_in_a_piece_comes_through(three_threads: None) -> None:
    class Pairs(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :2]

    with LatentPotential(GEBM(IdentityBase(5), Pairs()), block_size=2) as potential:  # type: ignore[arg-type]
        with pytest.raises(PluginError, match="the energy 'Pairs' .*one number per row"):
            potential.value_and_grad(torch.zeros(6, 5))
        with pytest.raises(PluginError, match="the energy 'Pairs' .*one number per row"):
            potential.value(torch.zeros(6, 5))
