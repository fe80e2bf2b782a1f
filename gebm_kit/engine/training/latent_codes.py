"""The model as the energy's own updates see it: on latent codes if the energy is defined on codes, else on the data.

For ``E(x) = h(G^-1(x))`` a GEBM on the data is equivalent to one on codes: its energy is h, its base is the prior itself,
and its data are the codes of the data. Losses, penalties and chains work on this model without knowing the difference.
"""

from __future__ import annotations

from torch import Tensor

from gebm_kit.core.interfaces import Base, Energy, HasEncoder, OnCodes
from gebm_kit.core.model import GEBM
from gebm_kit.core.priors import Prior


class Codes(Base):
    """A base with ``G(z) = z`` and another base's prior; `draws` maps a code to data with that other base."""

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
    """The energy h on codes, for an energy ``E(x) = h(G^-1(x))`` on data."""

    def __init__(self, energy: OnCodes) -> None:
        super().__init__()
        self.energy = energy

    def forward(self, z: Tensor) -> Tensor:
        return self.energy.of_codes(z)


def energy_side(model: GEBM, base: Base) -> GEBM:
    """Return ``model`` with draws from ``base`` (its own base, or an average of it); on codes if its energy is on codes.

    An energy on codes is bound to ``base``.
    """
    if isinstance(model.energy, OnCodes):
        model.energy.bind(base)
        return GEBM(Codes(model.energy, base), OfCodes(model.energy), log_ratio=model.log_ratio)
    return model if base is model.base else GEBM(base, model.energy, log_ratio=model.log_ratio)


def points(side: GEBM, x: Tensor) -> Tensor:
    """Return data as the energy of ``side`` sees them: as they are, or as codes; (B, *D) -> (B, *D) or (B, Z)."""
    if not isinstance(side.base, Codes):
        return x
    z: Tensor = side.base.encode(x)
    return z


def codes(side: GEBM, seen: Tensor) -> Tensor:
    """Return the base's codes of data, given the data as the energy of ``side`` sees them; (B, *D) or (B, Z) -> (B, Z)."""
    if isinstance(side.base, Codes):
        return seen
    assert isinstance(side.base, HasEncoder)
    return side.base.encode(seen)


def data(side: GEBM, seen: Tensor) -> Tensor:
    """Return base draws as data, given the draws as the energy of ``side`` sees them: the inverse of `points`."""
    if not isinstance(side.base, Codes):
        return seen
    x: Tensor = side.base.draws(seen)
    return x
