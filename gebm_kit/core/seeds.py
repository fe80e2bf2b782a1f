"""Independent random streams from one seed."""

from __future__ import annotations

import hashlib

import torch


def stream(seed: int, *names: object) -> torch.Generator:
    """Return a CPU generator for the purpose that ``names`` state; streams with different names or seeds are unrelated.

    The generator is seeded with the SHA-256 of seed and names. So ``seed`` and ``seed + 1`` share nothing, and the order
    in which streams are used does not matter.
    """
    digest = hashlib.sha256("/".join(str(part) for part in (seed, *names)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
