"""Images as bytes, and the range in which models see them."""

from __future__ import annotations

import torch
from torch import Tensor


def scale_bytes(rows: Tensor) -> Tensor:
    """Scale grey levels 0..255 to [-1, 1]: ``x / 127.5 - 1``; uint8 -> float32."""
    return rows.to(torch.float32).div_(127.5).sub_(1.0)
