"""Where chains start: at draws of the prior with a finite potential, or at the encodings of data rows.

A chain that starts at the code of a data row is near the mass of the refined model at once, and stays near that row for
its first steps. An exact sampler forgets its start nevertheless.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from gebm_kit.core.errors import DataError, UsageError
from gebm_kit.core.interfaces import HasEncoder, Sampler
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.progress import warn
from gebm_kit.engine.sampling.energy_checks import check_finite_start, warn_of_bottomless

START_ATTEMPTS = 10
"""Prior draws tried for each chain. Where the energy is finite at half of all points, one chain in 1,024 needs more."""


def start(
    potential: LatentPotential, sampler: Sampler, num_chains: int, generator: torch.Generator, dtype: torch.dtype
) -> Any:
    """Return the sampler's state at prior draws whose potential is finite, (C, Z).

    Points without a finite potential are drawn again, up to `START_ATTEMPTS` times. Chains that are left then start
    from a copy of another chain's point.

    Raises:
        UsageError: the potential is finite nowhere.
    """
    state, redrawn = start_counted(potential, sampler, num_chains, generator, dtype)
    warn_of_redrawn(redrawn, num_chains)
    return state


def start_counted(
    potential: LatentPotential,
    sampler: Sampler,
    num_chains: int,
    generator: torch.Generator,
    dtype: torch.dtype,
    codes: Tensor | None = None,
) -> tuple[Any, int]:
    """Do as `start`, and return how many points had to be drawn again; ``codes``, (C, Z),
    replace the first prior draws."""
    shape, redrawn = (num_chains, potential.model.latent_dim), 0
    z = torch.randn(shape, generator=generator, device=generator.device, dtype=dtype) if codes is None else codes
    for attempt in range(START_ATTEMPTS):
        state = sampler.init(z, potential, generator)
        usable = _finite(state)
        bad = int((~usable).sum())
        if bad == 0:
            return state, redrawn
        if attempt == 0:
            redrawn = bad
            warn_of_bottomless(state.value)
        fresh = torch.randn(shape, generator=generator, device=generator.device, dtype=dtype)
        z = torch.where(usable.unsqueeze(1), z, fresh)
    check_finite_start(state.value, getattr(state, "grad", None))
    finite = z[usable]
    picks = torch.randint(len(finite), (num_chains,), generator=generator, device=generator.device)
    return sampler.init(torch.where(usable.unsqueeze(1), z, finite[picks]), potential, generator), redrawn


def warn_of_redrawn(redrawn: int, num_chains: int) -> None:
    """Warn about starting points without a finite energy, if there are any."""
    if redrawn:
        warn(f"the energy is not finite at {redrawn} of {num_chains} starting points, which were drawn again.")


def _finite(state: Any) -> Tensor:
    """Return which chains have a finite value and, if the kernel caches one, a finite gradient; (C,) bool."""
    usable: Tensor = torch.isfinite(state.value)
    grad = getattr(state, "grad", None)
    return usable if grad is None else usable & torch.isfinite(grad).all(1)


ENCODED_ROWS = 512
"""Rows of data that the base encodes at once; a bound on memory."""


def check_starts(model: GEBM, sampler: Sampler, rows: Tensor) -> None:
    """Raise for rows that no chain can start from.

    Raises:
        UsageError: the base has no encoder, or a prior other than the standard normal; the sampler has no chains.
        DataError: there are no rows, their shape is not the model's, or a value is not finite.
    """
    base = model.base
    if not isinstance(base, HasEncoder):
        raise UsageError(
            f"chains can start at encodings of data only if the base has an encoder, and {type(base).__name__} has none",
            hint="Normalizing flows and the vae have one; other bases start from the prior.",
        )
    if base.prior.name != "normal":
        raise UsageError(
            f"chains can start at encodings only under a standard normal prior, but the base's is {base.prior.name!r}"
        )
    if sampler.family != "kernel":
        raise UsageError("a population draws its members from the prior; only chains can start at encodings of data")
    check_rows(model, rows)


def check_rows(model: GEBM, rows: Tensor) -> None:
    """Raise for rows that are not finite data of the model's shape.

    Raises:
        DataError: there are no rows, their shape is another, or a value is not finite.
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
    """Encode data rows with a model in eval mode, on the device; (N, *D) -> (N, Z)."""
    assert isinstance(model.base, HasEncoder)
    return torch.cat([model.base.encode(part.to(device, dtype)) for part in rows.split(ENCODED_ROWS)])


def starts_of(codes: Tensor, first: int, num: int) -> Tensor:
    """Return where chains ``first``, ..., ``first + num - 1`` start: the codes in turn, over and over."""
    places = torch.arange(first, first + num, device=codes.device) % len(codes)
    return codes[places]


def digest_of(rows: Tensor) -> str:
    """Compute a sha256 that identifies the rows."""
    plain = rows.detach().cpu().contiguous()
    return hashlib.sha256(f"{plain.dtype} {tuple(plain.shape)}".encode() + plain.numpy().tobytes()).hexdigest()
