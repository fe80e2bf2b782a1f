"""Chains that start at the encodings of data, for bases with an encoder.

A chain that starts where the base says a data point came from is near the mass of the refined model at once, and stays near
that point while it has made few steps. An exact sampler forgets where it started all the same.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from gebm_kit.core.errors import DataError, UsageError
from gebm_kit.core.interfaces import HasEncoder, Sampler
from gebm_kit.core.model import GEBM

ROWS_AT_ONCE = 512


def check_starts(model: GEBM, sampler: Sampler, rows: Tensor) -> None:
    """Refuse rows that no chain can start from.

    Raises:
        UsageError: the base has no encoder or another prior than the standard normal; the sampler has no chains.
        DataError: the rows have another shape than the model's, there are none, or a value is not finite.
    """
    base = model.base
    if not isinstance(base, HasEncoder):
        raise UsageError(
            f"chains start at encodings of data where the base has an encoder, which {type(base).__name__} has not",
            hint="Normalizing flows and the vae have one; other bases start from the prior.",
        )
    if base.prior.name != "normal":
        raise UsageError(f"chains start at encodings under a standard normal prior, the base's is {base.prior.name!r}")
    if sampler.family != "kernel":
        raise UsageError("a population draws its members from the prior; only chains can start at encodings of data")
    check_rows(model, rows)


def check_rows(model: GEBM, rows: Tensor) -> None:
    """Refuse rows that are no finite data of the model's shape.

    Raises:
        DataError: says which.
    """
    if tuple(rows.shape[1:]) != tuple(model.data_shape) or not len(rows):
        raise DataError(
            f"rows of data of shape (N, {', '.join(map(str, model.data_shape))}) are needed, these are {tuple(rows.shape)}"
        )
    bad = (~torch.isfinite(rows)).nonzero()
    if len(bad):
        raise DataError(f"row {int(bad[0, 0]) + 1} of the data holds a value that is not finite ({len(bad)} in all)")


@torch.no_grad()
def encodings(model: GEBM, rows: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Latent codes of data rows under a model in eval mode, on the device; (N, *D) -> (N, Z)."""
    assert isinstance(model.base, HasEncoder)
    return torch.cat([model.base.encode(part.to(device, dtype)) for part in rows.split(ROWS_AT_ONCE)])


def starts_of(codes: Tensor, first: int, num: int) -> Tensor:
    """Where chains ``first``, ..., ``first + num - 1`` start: the codes in turn, again from the first when they end."""
    places = torch.arange(first, first + num, device=codes.device) % len(codes)
    return codes[places]


def digest_of(rows: Tensor) -> str:
    """Identifies the rows."""
    plain = rows.detach().cpu().contiguous()
    return hashlib.sha256(f"{plain.dtype} {tuple(plain.shape)}".encode() + plain.numpy().tobytes()).hexdigest()
