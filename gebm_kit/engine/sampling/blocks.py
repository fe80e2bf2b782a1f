"""Chains are cut into blocks of one size, each with a generator of its own.

How they are cut follows from the number of chains and the block size alone, so the draws depend neither on how many blocks
run side by side nor on which process runs them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gebm_kit.core.interfaces import Sampler
from gebm_kit.core.model import LatentPotential
from gebm_kit.core.seeds import stream
from gebm_kit.engine.sampling.settings import SampleSettings

LARGEST_BLOCK = {"cpu": 1024, "cuda": 4096}
"""Chains of an automatic block, at most."""


COMFORTABLE = {"cpu": 2**25, "cuda": 2**30}
"""Bytes of activations that an automatic block keeps for its gradient, at most: 32 MiB on a CPU, beyond which a row takes
longer as caches overflow (measured on mlp and dcgan models: the least time a row between 7 and 30 MiB); 1 GiB on a GPU."""


SMALLEST_BLOCK = 32
"""Chains that an automatic block has all the same, unless they need more than `MOST`."""


MOST = 2**30
"""Bytes of activations of an automatic block of no more than `SMALLEST_BLOCK` chains."""


THREAD_PIECE = 2**21
"""Bytes of activations of a piece that is worth a thread's while, 2 MiB: with fewer, the time a row takes begins to grow
(measured from 500 rows of an mlp down, and from 8 of a dcgan)."""


MOST_PIECES = 16
"""Pieces of a block, at most. A piece runs on one thread, so more would help only CPUs with more cores than this."""


SMALLEST_PIECE = 16
"""Rows of a piece, at least: with fewer, an SNGAN's convolutions are slower (1.8, 1.5 and 1.0 times a plain loop's steps per
second with pieces of 16, 8 and 2 of 64 rows)."""


PROBES = (2, 4)
"""Rows of the two evaluations whose difference tells what a row needs."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Chains in equal blocks.

    Attributes:
        chains: whose draws are kept.
        num_blocks: how many blocks there are.
        rows: chains of each block. The last block's chains from number ``chains`` on fill it up and are not kept.
        piece: rows that are evaluated at once, where that is not the whole block; None: it is.
    """

    chains: int
    num_blocks: int
    rows: int
    piece: int | None = None

    def first(self, block: int) -> int:
        """Number of the block's first chain."""
        return block * self.rows

    def kept(self, block: int) -> int:
        """How many of the block's chains are kept."""
        return min(self.rows, self.chains - self.first(block))


def lay_out(chains: int, block_size: int, *, coupled: bool = False) -> Layout:
    """The fewest equal blocks of at most ``block_size`` chains; coupled chains are one block, evaluated in pieces."""
    count = -(-chains // block_size)
    rows = -(-chains // count)
    if coupled:
        return Layout(chains, 1, chains, rows if count > 1 else None)
    return Layout(chains, count, rows)


def chains_of(settings: SampleSettings, sampler: Sampler) -> int:
    """Chains that are run: no more than there are draws to keep, but as many as the sampler needs."""
    return max(settings.chains, sampler.min_chains)


def block_generator(seed: int, block: int, device: torch.device) -> torch.Generator:
    """The random numbers of a block, starting points included."""
    return torch.Generator(device).manual_seed(stream(seed, "sample", "block", block).initial_seed())


def automatic_block_size(
    potential: LatentPotential, sampler: Sampler, device: torch.device, dtype: torch.dtype, row_bytes: int
) -> int:
    """A power of two that follows from model, sampler and kind of device, not from what memory happens to be free.

    The largest whose activations stay below `COMFORTABLE`, at most `LARGEST_BLOCK`; or, where that is less than
    `SMALLEST_BLOCK`, the largest up to it whose activations stay below `MOST`. Costs one step of a few chains, where they
    need no others.

    Args:
        row_bytes: `activation_bytes`.
    """
    kind = "cuda" if device.type == "cuda" else "cpu"
    needed = max(row_bytes * _rows_at_once(potential, sampler, device, dtype), 1)
    size = _power_of_two(COMFORTABLE[kind] // needed, LARGEST_BLOCK[kind])
    return size if size >= SMALLEST_BLOCK else _power_of_two(MOST // needed, SMALLEST_BLOCK)


def thread_piece(layout: Layout, device: torch.device, row_bytes: int) -> int | None:
    """Rows of the equal pieces in which a CPU's threads share an evaluation of a block; None: the block as it is.

    It follows from model and block, not from the number of threads, so that draws do not either.

    Args:
        row_bytes: `activation_bytes`.
    """
    if device.type != "cpu" or layout.piece is not None:
        return layout.piece
    pieces = min(layout.rows * row_bytes // THREAD_PIECE, MOST_PIECES, layout.rows // SMALLEST_PIECE)
    return -(-layout.rows // pieces) if pieces > 1 else None


def _power_of_two(most: int, cap: int) -> int:
    return min(2 ** max(most.bit_length() - 1, 0), cap)


def activation_bytes(potential: LatentPotential, device: torch.device, dtype: torch.dtype) -> int:
    """Bytes that the gradient of base and energy keeps for each row: what grows when there are more rows."""
    found = []
    for rows in PROBES:
        storages: dict[int, torch.Tensor] = {}

        def keep(tensor: torch.Tensor, storages: dict[int, torch.Tensor] = storages) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        z = torch.ones(rows, potential.model.latent_dim, device=device, dtype=dtype)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            potential.value_and_grad(z)
        found.append(sum(tensor.untyped_storage().nbytes() for tensor in storages.values()))
    return (found[1] - found[0]) // (PROBES[1] - PROBES[0])


def _rows_at_once(potential: LatentPotential, sampler: Sampler, device: torch.device, dtype: torch.dtype) -> int:
    """Most rows that the sampler evaluates at once for each chain: a ladder has one for each of its rungs.

    What is coupled is evaluated in pieces, whatever it asks for.
    """
    if sampler.needs_one_block():
        return 1
    seen = [0]
    hook = potential.model.base.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    generator = torch.Generator(device).manual_seed(0)
    try:
        z = torch.randn(PROBES[0], potential.model.latent_dim, generator=generator, device=device, dtype=dtype)
        sampler.step(sampler.init(z, potential, generator), potential, generator)
    finally:
        hook.remove()
    return max(-(-max(seen) // PROBES[0]), 1)
