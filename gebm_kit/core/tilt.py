"""A potential as prior plus tilt, ``U(z) = |z|^2 / 2 + tilt(z)``, whether or not it says so itself.

Any U can be read this way: the tilt is what remains once the standard normal's part is taken off. Kernels whose proposals
leave the standard normal invariant (pCN, elliptical slices, prior draws) need nothing but the tilt, and so serve every
potential; one that splits itself is cheaper and loses no digits to the subtraction.
"""

from __future__ import annotations

import functools

from torch import Tensor

from gebm_kit.core.interfaces import Potential, TiltedPotential, ValueAndGrad


@functools.cache
def is_tilted(potential: type) -> bool:
    """Whether a class of potentials splits off its standard-normal prior (cached: protocol checks are slow)."""
    return issubclass(potential, TiltedPotential)


def tilt(potential: Potential, z: Tensor) -> Tensor:
    """``U(z) - |z|^2 / 2``; (C, Z) -> (C,)."""
    if is_tilted(type(potential)):
        return potential.tilt(z)  # type: ignore[attr-defined]  # the cached check narrows no type
    return potential.value(z) - 0.5 * z.square().sum(1)


def tilt_and_grad(potential: Potential, z: Tensor) -> ValueAndGrad:
    """The tilt (C,) and its gradient ``grad U(z) - z`` (C, Z)."""
    if is_tilted(type(potential)):
        return potential.tilt_and_grad(z)  # type: ignore[attr-defined]
    value, grad = potential.value_and_grad(z)
    return ValueAndGrad(value - 0.5 * z.square().sum(1), grad - z)
