"""The model as the energy's own updates see it: on the base of its draws, in codes where the energy is on them.

For ``E(x) = h(G^-1(x))`` a GEBM on the data is one on codes: the energy is h, the base the prior itself, and the data are
the codes of the data. Losses, penalties and chains need to know no more.
"""

from __future__ import annotations

from torch import Tensor

from gebm_kit.core.interfaces import Base, Energy, HasEncoder, OnCodes
from gebm_kit.core.model import GEBM
from gebm_kit.core.priors import Prior


class Codes(Base):
    """``G(z) = z`` with the prior of another base; that base's draw of a code is `draws`."""

    def __init__(self, energy: OnCodes, base: Base) -> None:
        super().__init__()
        self.latent_dim, self.data_shape = base.latent_dim, (base.latent_dim,)
        self._prior, self.encode, self.draws = base.prior, energy.encode, base.__call__

    @property
    def prior(self) -> Prior:
        return self._prior

    def forward(self, z: Tensor) -> Tensor:
        return z


class OfCodes(Energy):
    """h of ``E(x) = h(G^-1(x))``."""

    def __init__(self, energy: OnCodes) -> None:
        super().__init__()
        self.energy = energy

    def forward(self, z: Tensor) -> Tensor:
        return self.energy.of_codes(z)


def energy_side(model: GEBM, base: Base) -> GEBM:
    """``model`` with its draws from ``base``, its own one or an average of it; on codes where its energy is."""
    if isinstance(model.energy, OnCodes):
        model.energy.bind(base)
        return GEBM(Codes(model.energy, base), OfCodes(model.energy), log_ratio=model.log_ratio)
    return model if base is model.base else GEBM(base, model.energy, log_ratio=model.log_ratio)


def points(side: GEBM, x: Tensor) -> Tensor:
    """Data as the energy of ``side`` sees them; (B, *D) -> (B, *D) or (B, Z)."""
    if not isinstance(side.base, Codes):
        return x
    z: Tensor = side.base.encode(x)
    return z


def codes(side: GEBM, seen: Tensor) -> Tensor:
    """The base's codes of data, from what the energy of ``side`` sees of them; (B, *D) or (B, Z) -> (B, Z)."""
    if isinstance(side.base, Codes):
        return seen
    assert isinstance(side.base, HasEncoder)
    return side.base.encode(seen)


def data(side: GEBM, seen: Tensor) -> Tensor:
    """Draws of the base as data, from what the energy of ``side`` sees of them: the inverse of `points`."""
    if not isinstance(side.base, Codes):
        return seen
    x: Tensor = side.base.draws(seen)
    return x
