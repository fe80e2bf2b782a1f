"""What samplers assume of an energy, checked on a few draws of the prior before and after warm-up.

An energy without a gradient is finite and varies, yet its gradient is 0 everywhere: its forward detaches x, rounds it,
or picks an argmax. A sampler that follows the gradient would draw from the base, or walk blindly. The four rows of the check
of components (`gebm_kit.engine.sampling.contract`) may all lie on one step of such an energy; starting points rarely do.
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
from gebm_kit.core.model_contracts import GRADIENT_FREE
from gebm_kit.core.networks import OnCodes
from gebm_kit.core.plugins import component_name
from gebm_kit.core.progress import warn

PROBED = 16
"""Draws of the prior at which the gradient is looked at: enough to tell an energy that varies from a constant one."""


LARGEST_SPACING = 1.0
"""Widest gap between neighbouring floating-point numbers that energies may have; a gap of 1 hides a factor of e."""


MOST_GAPS = 16
"""Gaps between neighbouring floating-point numbers within which energies count as equal."""


def check_gradient(potential: LatentPotential, sampler: Sampler, state: Any) -> None:
    """Check that the energy has a gradient with respect to z, for a sampler that uses it.

    A state that holds gradients other than 0 costs no evaluation. Otherwise a few draws of the prior tell whether the energy
    varies. A constant energy is fine.

    Args:
        state: the sampler's state, which may hold gradients.

    Raises:
        UsageError: the energy has none.
    """
    slope = _tilt_gradient(sampler, state)
    if slope is None or bool((slope != 0).any()):
        return
    generator = torch.Generator(state.position.device).manual_seed(0)
    z = torch.randn(
        PROBED, potential.model.latent_dim, generator=generator, device=generator.device, dtype=state.position.dtype
    )
    values, grads = potential.tilt_and_grad(z)
    finite = torch.isfinite(values)
    known = values[finite]
    if not len(known) or bool((known == known[0]).all()) or bool((grads[finite] != 0).any()):
        return
    name, points = component_name("sampler", sampler), f"{len(known)} points drawn from the base"
    where = f"{_without_gradient(potential, z)}: it is 0 at all of {points}, where the energy varies"
    raise UsageError(
        f"{where}. Sampler {name!r} follows the gradient, so it can't draw from it",
        hint=f"Use a sampler without gradients ({GRADIENT_FREE}); or mend the forward: detach(), argmax, rounding and "
        "no_grad() stop gradients.",
    )


def _tilt_gradient(sampler: Sampler, state: Any) -> Tensor | None:
    """Return the gradient of the tilt that a state holds, (C, Z); None when it holds none."""
    grad = getattr(state, "grad", None)
    if grad is None:
        ladder = getattr(state, "grads", None)
        grad = None if ladder is None else ladder[:, -1]
    if grad is None or grad.shape != state.position.shape:
        return None
    return grad if sampler.caches_tilt else grad - state.position


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
        UsageError: the energy, or its gradient, is finite nowhere.
    """
    num, finite = len(values), torch.isfinite(values)
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


def warn_of_bottomless(values: Tensor) -> None:
    """Warn if a potential, (C,), is -inf somewhere: no sampler can draw from an infinite density."""
    if bool((values == -math.inf).any()):
        warn(
            "the energy is -inf at some points drawn from the base. The density would be infinite there, so these places "
            "are left out. An energy is +inf where the density is 0; look for a logarithm of 0 or an overflow."
        )


def check_digits(values: Tensor) -> None:
    """Raise if the potential of the likeliest starting points, (C,), is so large that its type can't hold differences
    of 1.

    Values far below 0 are such, and values far above 0 if all of them agree to their last digits. Otherwise they lie on a
    steep slope, from which chains may come down.

    Raises:
        UsageError: it does.
    """
    finite = values[torch.isfinite(values)].double()
    if len(finite) < 2:
        return
    eps, (low, high) = torch.finfo(values.dtype).eps, finite.aminmax()
    drowned = eps * low > LARGEST_SPACING and high - low <= MOST_GAPS * eps * high
    if drowned or -eps * low > LARGEST_SPACING:
        name = str(values.dtype).removeprefix("torch.")
        raise UsageError(
            f"the energy is {float(low):.3g} at the likeliest of {len(finite)} starting points, where numbers of type "
            f"{name} are too far apart to hold differences of 1: likely points can't be told from unlikely ones",
            hint="Subtract a constant from the energy, lower inverse_temperature, or compute in float64.",
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
