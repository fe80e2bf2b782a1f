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
    """An energy ``E(x) = h(G^-1(x))`` for bases with an inverse (flows): h is an MLP on codes; (B, *D) -> (B,).

    The codes of data that the base fits are standard normal. Where it does not fit yet, the codes differ from a standard
    normal by exactly what is left to learn. h therefore always sees the same scales and shapes, whereas an energy on x has
    to learn the data's narrow ridges again. h has no output bias. Because ``E(G(z)) = h(z)``, a sampler's gradient passes
    through h alone: the potential is ``|z|^2 / 2 + h(z)``.

    When both parts are trained, the energy is bound to the averaged base. A base that learns pathwise would not move then,
    so set ``train.base_update`` to *mcmc-teaching* or *weighted-likelihood*. Instance noise is added to the codes, and
    penalties act on the slopes and values of h.

    With a ``bound`` b the energy is ``b tanh(h / b)``, between -b and b. A data row, however far out, then can't pull the
    energy down so far that it outweighs the prior. The bound also holds while both parts are trained; the base then takes
    over what the energy has learned, b nats at a time.

    Args:
        hidden: widths of the hidden layers; empty for a linear h.
        activation: activation of the hidden layers. SiLU, the default, gives samplers a smooth gradient.
        spectral_norm: divide each weight by its largest singular value.
        bound: bound of the energy's absolute value, in nats; null: no bound.
        data_shape: ``*D``.

    Raises:
        RecipeError: a width is below 1.
        UsageError: another argument is outside its range; `bind` gets a base without an inverse.
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
        """Use the inverse of ``base`` as G^-1 from here on.

        Raises:
            UsageError: the base has no inverse.
        """
        size = math.prod(self.data_shape)
        if not (isinstance(base, HasEncoder) and isinstance(base, HasDensity) and base.latent_dim == size):
            raise UsageError(
                f"the codes energy needs a base with an inverse, but {type(base).__name__} has none",
                hint="Use a normalizing flow as the base, or an energy on the data such as mlp.",
            )
        self._keep(base)

    def encode(self, x: Tensor) -> Tensor:
        """Return the base's code ``G^-1(x)``; (B, *D) -> (B, prod D).

        Raises:
            UsageError: no base is bound yet.
        """
        if self._base is None:
            raise UsageError("the codes energy has no base yet: build a GEBM with it, or call its method bind")
        assert isinstance(self._base, HasEncoder)
        return self._base.encode(x)

    def of_codes(self, z: Tensor) -> Tensor:
        """Return ``h(z)``, within the bound; (B, prod D) -> (B,)."""
        energy: Tensor = self.h(z)
        return energy if self.bound is None else self.bound * torch.tanh(energy / self.bound)

    def forward(self, x: Tensor) -> Tensor:
        return self.of_codes(self.encode(x))

    def _keep(self, base: Base | None) -> None:
        object.__setattr__(self, "_base", base)  # not a submodule: the weights belong to the base
