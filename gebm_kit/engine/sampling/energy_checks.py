"""What samplers assume of an energy, checked on a few draws of the prior before and after warm-up.

An energy without a gradient is finite and varies, yet its gradient is 0 everywhere: its forward detaches x, rounds it,
or picks an argmax. A sampler that follows the gradient then draws from the base, or walks blindly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Sampler
from gebm_kit.core.model import LatentPotential
from gebm_kit.core.networks import OnCodes
from gebm_kit.core.plugins import component_name
from gebm_kit.core.progress import warn

PROBED = 16
"""Draws of the prior at which the gradient is looked at: enough to tell an energy that varies from a constant one."""


LARGEST_SPACING = 1.0
"""Widest gap between neighbouring floating-point numbers that energies may have; a gap of 1 hides a factor of e."""


GRADIENT_FREE = "pcn, elliptical, rwm or imh"


def check_gradient(potential: LatentPotential, sampler: Sampler, dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether the energy has a gradient with respect to z; a constant energy counts as having one.

    The evaluations are not counted, and no random number of the run is used.

    Raises:
        UsageError: it has none, and the sampler follows the gradient without a test of acceptance.

    Warns:
        GebmKitWarning: it has none, and the sampler uses the gradient to propose moves.
    """
    spent = potential.grad_evals, potential.forward_evals
    try:
        generator = torch.Generator(device).manual_seed(0)
        shape = (max(PROBED, sampler.min_chains), potential.model.latent_dim)
        z = torch.randn(shape, generator=generator, device=device, dtype=dtype)
        values, grads = potential.tilt_and_grad(z)
        finite = torch.isfinite(values)
        known = values[finite].double()
        if not len(known) or bool((known == known[0]).all()) or bool((grads[finite] != 0).any()):
            return True
        name = component_name("sampler", sampler)
        if not _uses_gradient(potential, sampler, z, generator):
            return False
        blind = sampler.exact or sampler.family == "population"
        said = (
            f"{_without_gradient(potential, z)}: it is 0 at all of {len(known)} points drawn from the base, where the "
            f"energy itself varies"
        )
        if blind:
            warn(
                f"{said}. Sampler {name!r} tests its moves, so its draws stay right, but no gradient guides them: "
                f"a sampler without gradients ({GRADIENT_FREE}) is cheaper."
            )
            return False
        raise UsageError(
            f"{said}. Sampler {name!r} follows the gradient and tests nothing, so its draws would be those of the base",
            hint=f"Use a sampler without gradients ({GRADIENT_FREE}); or mend the forward: detach(), argmax, rounding and "
            "no_grad() stop gradients.",
        )
    finally:
        potential.grad_evals, potential.forward_evals = spent


def _uses_gradient(potential: LatentPotential, sampler: Sampler, z: Tensor, generator: torch.Generator) -> bool:
    """Return whether the sampler evaluates gradients, by one step of it."""
    before = potential.grad_evals
    sampler.step(sampler.init(z, potential, generator), potential, generator)
    return potential.grad_evals > before


def _without_gradient(potential: LatentPotential, z: Tensor) -> str:
    """Name what stops the gradient: the energy, or the base in front of it."""
    model = potential.model
    if not isinstance(model.energy, OnCodes):
        x = potential.data(z).detach()
        if x.is_floating_point():
            with torch.enable_grad():
                value = model.energy(x.requires_grad_())
                if value.requires_grad:
                    (grad,) = torch.autograd.grad(value.sum(), x, materialize_grads=True)
                    if bool((grad.nan_to_num() != 0).any()):
                        return (
                            f"the energy has no gradient with respect to z, because the base {type(model.base).__name__} "
                            "passes none on"
                        )
    return f"the energy {type(model.energy).__name__} has no gradient with respect to x"


def check_finite_start(values: Tensor, grads: Tensor | None) -> None:
    """Raise unless a sampler can start at one of these points, where everything is finite.

    Args:
        values: potential or tilt at the points, (C,).
        grads: its gradient, (C, Z), if the kernel holds one.

    Raises:
        UsageError: the energy, or its gradient, is finite nowhere, or the energy is -inf somewhere.
    """
    num, finite = len(values), torch.isfinite(values)
    refuse_bottomless(values)
    if not bool(finite.any()):
        raise UsageError(
            f"the energy is not finite at any of {num} points drawn from the base: it returned {float(values[0])} at the "
            "first",
            hint="Look at energy(base(z)) for z drawn from the prior; training may have diverged.",
        )
    if grads is not None and not bool((finite & torch.isfinite(grads).all(1)).any()):
        raise UsageError(
            f"the gradient of the energy is not finite at any of {num} points drawn from the base, although the energy is",
            hint=f"Look for 0 / 0 or sqrt(0) in the backward pass; or use a sampler without gradients ({GRADIENT_FREE}).",
        )


@torch.no_grad()
def caches_tilt(potential: LatentPotential, state: Any) -> bool:
    """Return whether ``state.value`` is the tilt and not U, as kernels that know the prior cache it; nothing is counted."""
    spent = potential.grad_evals, potential.forward_evals
    position, value = state.position[:PROBED], state.value[:PROBED].double()
    tilt, prior = potential.tilt(position).double(), 0.5 * position.double().square().sum(1)
    potential.grad_evals, potential.forward_evals = spent
    off_tilt, off_whole = (value - tilt).abs(), (value - tilt - prior).abs()
    finite = torch.isfinite(off_tilt) & torch.isfinite(off_whole)
    return bool(off_tilt[finite].sum() < off_whole[finite].sum())


def refuse_bottomless(values: Tensor) -> None:
    """Raise UsageError if a potential, (C,), is -inf somewhere."""
    bottomless = int((values == -math.inf).sum())
    if bottomless:
        raise UsageError(
            f"the energy is -inf at {bottomless} of {len(values)} points drawn from the base: the density is infinite "
            "there, and no sampler can draw from it",
            hint="An energy is +inf where the density is 0; look for a logarithm of 0 or an overflow.",
        )


def lost_digits(states: Sequence[Any]) -> list[Tensor]:
    """Count, for each block, the chains whose potential is so large that its type can't hold differences of 1; (1,) each."""
    counts = []
    for state in states:
        gaps = state.value.abs() * torch.finfo(state.value.dtype).eps
        counts.append((gaps > LARGEST_SPACING).sum().double().reshape(1))
    return counts


def warn_of_lost_digits(count: int, num_chains: int, dtype: torch.dtype) -> None:
    """Warn when more than half of the chains have lost the digits that tell likely points from unlikely ones."""
    if 2 * count > num_chains:
        name = str(dtype).removeprefix("torch.")
        warn(
            f"the energy of {count} of {num_chains} chains is so large (above {1 / torch.finfo(dtype).eps:.1g}) that {name} "
            "can't hold differences of 1, so the draws ignore them: subtract a constant from the energy, or compute in "
            "float64."
        )
