"""Blocks of chains: all blocks have one size, and each has its own generator.

The layout follows from the number of chains and the block size alone. The draws therefore depend neither on how many
blocks run side by side nor on which process runs them.
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
"""Bytes of activations that an automatic block keeps for its gradient, at most: 32 MiB on a CPU, 1 GiB on a GPU.

Beyond 32 MiB a row takes longer on a CPU, because caches overflow. Measured on mlp and dcgan models, the time for each
row is least between 7 and 30 MiB.
"""


SMALLEST_BLOCK = 32
"""Fewest chains of an automatic block, even beyond `COMFORTABLE`, unless they need more than `MOST`."""


MOST = 2**30
"""Most bytes of activations of an automatic block with at most `SMALLEST_BLOCK` chains."""


THREAD_PIECE = 2**21
"""Fewest bytes of activations that make a piece worth a thread, 2 MiB. Below it the time for each row begins to grow
(measured from 500 rows of an mlp down, and from 8 rows of a dcgan)."""


MOST_PIECES = 16
"""Pieces of a block, at most. A piece runs on one thread, so more would help only CPUs with more cores than this."""


SMALLEST_PIECE = 16
"""Fewest rows of a piece: with fewer, an SNGAN's convolutions are slower. With 64 rows, pieces of 16, 8 and 2 rows made
1.8, 1.5 and 1.0 times the steps per second of a plain loop."""


PROBES = (2, 4)
"""Rows of two evaluations, whose difference in memory shows what one row needs."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Chains in equal blocks.

    Attributes:
        chains: chains whose draws are kept.
        num_blocks: how many blocks there are.
        rows: chains of each block. The last block is filled up with chains that are not kept.
        piece: rows that are evaluated at once; None: the whole block.
    """

    chains: int
    num_blocks: int
    rows: int
    piece: int | None = None

    def first(self, block: int) -> int:
        """Return the number of the block's first chain."""
        return block * self.rows

    def kept(self, block: int) -> int:
        """Return how many of the block's chains are kept."""
        return min(self.rows, self.chains - self.first(block))


def lay_out(chains: int, block_size: int, *, coupled: bool = False) -> Layout:
    """Cut chains into the fewest equal blocks of at most ``block_size``; coupled chains stay one block, in pieces."""
    count = -(-chains // block_size)
    rows = -(-chains // count)
    if coupled:
        return Layout(chains, 1, chains, rows if count > 1 else None)
    return Layout(chains, count, rows)


def chains_of(settings: SampleSettings, sampler: Sampler) -> int:
    """Return how many chains to run: at most one for each draw to keep, but as many as the sampler needs."""
    return max(settings.chains, sampler.min_chains)


def block_generator(seed: int, block: int, device: torch.device) -> torch.Generator:
    """Return the generator of a block, for its starting points and everything after."""
    return torch.Generator(device).manual_seed(stream(seed, "sample", "block", block).initial_seed())


def automatic_block_size(
    potential: LatentPotential, sampler: Sampler, device: torch.device, dtype: torch.dtype, row_bytes: int
) -> int:
    """Choose a power of two that follows from model, sampler and kind of device, not from the memory that happens to be
    free.

    It is the largest size up to `LARGEST_BLOCK` whose activations stay below `COMFORTABLE`. When that is less than
    `SMALLEST_BLOCK`, it is the largest size up to `SMALLEST_BLOCK` whose activations stay below `MOST`. Finding it
    costs one step of a few chains, except for samplers that need one block.

    Args:
        row_bytes: `activation_bytes`.
    """
    return rows_for_bytes(row_bytes * _rows_at_once(potential, sampler, device, dtype), device)


def rows_for_bytes(needed: int, device: torch.device) -> int:
    """Choose the rows of a block, a power of two, for ``needed`` bytes of activations a row; see `automatic_block_size`."""
    kind, needed = "cuda" if device.type == "cuda" else "cpu", max(needed, 1)
    size = _power_of_two(COMFORTABLE[kind] // needed, LARGEST_BLOCK[kind])
    return size if size >= SMALLEST_BLOCK else _power_of_two(MOST // needed, SMALLEST_BLOCK)


def thread_piece(layout: Layout, device: torch.device, row_bytes: int) -> int | None:
    """Choose the rows of the equal pieces in which a CPU's threads share an evaluation of a block; None: no pieces.

    The size follows from model and block, not from the number of threads, so the draws don't depend on that number
    either.

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
    """Measure the bytes that the gradient of base and energy keeps for each row: the part that grows with the rows."""
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
    """Measure the most rows that the sampler evaluates at once for each chain: a ladder has one for each rung.

    Samplers that need one block are evaluated in pieces anyway, so they count as one row a chain.
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
