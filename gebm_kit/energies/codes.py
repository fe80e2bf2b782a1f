"""An energy on the codes of an invertible base.

References:
    MCMC Should Mix: Learning Energy-Based Model with Neural Transport Latent Space MCMC. E. Nijkamp et al., ICLR 2022.
    https://arxiv.org/abs/2006.06897
    Generalized Energy Based Models. M. Arbel, L. Zhou, A. Gretton, ICLR 2021. https://arxiv.org/abs/2003.05033
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from gebm_kit.core.components import Injected, Range, check_arguments
from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Base, Energy, HasDensity, HasEncoder
from gebm_kit.core.layers import Activation
from gebm_kit.energies.mlp import MlpEnergy


class CodesEnergy(Energy):
    """``E(x) = h(G^-1(x))`` with h an MLP on codes, without output bias; (B, *D) -> (B,). For bases with an inverse: flows.

    In codes a base that fits is a standard normal, and data that it does not fit yet differ from one in what is left to be
    learned: h sees the same scales and shapes all along, where an energy on x has to learn the data's narrow ridges again.
    ``E(G(z)) = h(z)``, so that a sampler's gradient passes through h alone: the potential is ``|z|^2 / 2 + h(z)``.

    While both parts are trained the energy is bound to the averaged base, which a base that learns pathwise would not move:
    take ``train.base_update`` *mcmc-teaching* or *weighted-likelihood*. Instance noise is added to the codes, and penalties
    are on slopes and values of h.

    With a ``bound`` b the energy is ``b tanh(h / b)``, between -b and b: no row of the data, be it ever so far out, can pull
    the energy down to where it outweighs the prior. It holds while both parts are trained, too, in which the base takes over
    what the energy has said, b nats at a time.

    Args:
        hidden: widths of the hidden layers; empty for a linear h.
        activation: SiLU by default, smooth, so that samplers see a smooth gradient.
        spectral_norm: divide each weight by its largest singular value.
        bound: of the energy's absolute value, in nats; null: none.
        data_shape: ``*D``.

    Raises:
        RecipeError: a width is below 1.
        UsageError: another argument is outside its range; the base has no inverse, from `bind`.
    """

    _base: Base | None

    def __init__(
        self,
        hidden: list[int] = [128, 128, 128],  # noqa: B006  (read only)
        activation: Activation = "silu",
        spectral_norm: bool = False,
        bound: Annotated[float | None, Range(0, None, low_open=True)] = None,
        *,
        data_shape: Annotated[tuple[int, ...], Injected],
    ) -> None:
        super().__init__()
        if bound is not None:
            check_arguments(self, bound=bound)
        self.data_shape = tuple(data_shape)
        self.bound = bound
        self.h = MlpEnergy(hidden, activation, spectral_norm, data_shape=(math.prod(data_shape),))
        self._keep(None)

    def bind(self, base: Base) -> None:
        """From here on codes are this base's.

        Raises:
            UsageError: it has no inverse.
        """
        size = math.prod(self.data_shape)
        if not (isinstance(base, HasEncoder) and isinstance(base, HasDensity) and base.latent_dim == size):
            raise UsageError(
                f"the codes energy needs a base with an inverse, and {type(base).__name__} has none",
                hint="Use a normalizing flow as the base, or an energy on the data such as mlp.",
            )
        self._keep(base)

    def encode(self, x: Tensor) -> Tensor:
        """The base's code, ``G^-1(x)``; (B, *D) -> (B, prod D).

        Raises:
            UsageError: there is no base yet.
        """
        if self._base is None:
            raise UsageError("the codes energy has no base: it gets one as part of a GEBM, or by its method bind")
        assert isinstance(self._base, HasEncoder)
        return self._base.encode(x)

    def of_codes(self, z: Tensor) -> Tensor:
        """``h(z)``, within the bound; (B, prod D) -> (B,)."""
        energy: Tensor = self.h(z)
        return energy if self.bound is None else self.bound * torch.tanh(energy / self.bound)

    def forward(self, x: Tensor) -> Tensor:
        return self.of_codes(self.encode(x))

    def _keep(self, base: Base | None) -> None:
        object.__setattr__(self, "_base", base)  # not as a part of this module: its weights are the base's own
