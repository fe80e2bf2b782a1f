"""Plain modules of the caller's as a base and an energy of the kit.

Shapes: B batch, Z latent size, ``*D`` data shape.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from gebm_kit.core.attribution import package_of, place_of
from gebm_kit.core.networks import Base, Energy
from gebm_kit.core.priors import Prior, StandardNormal

CAPABILITIES = ("log_prob", "encode", "pretraining_loss")
"""Methods of a module that make a base more than a generator (`HasDensity`, `HasEncoder`, `HasPretraining`)."""


class ModuleBase(Base):
    """A plain module as a base. It holds the module itself, so training changes the caller's.

    Args:
        module: maps codes to data, ``(B, Z) -> (B, *D)``; with ``conditional``, codes and labels.
        latent_dim: Z.
        data_shape: ``*D``.
        conditional: whether ``forward`` takes labels.
        num_classes: number of classes of a conditional module.
    """

    def __init__(
        self,
        module: nn.Module,
        latent_dim: int,
        data_shape: tuple[int, ...],
        conditional: bool = False,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.module = module
        self.latent_dim, self.data_shape = latent_dim, data_shape
        self.conditional, self.num_classes = conditional, num_classes
        self.described = f"the base {named(module)}"
        self._prior = getattr(module, "prior", None)
        for name in CAPABILITIES:  # code asks whether a base has the method
            if callable(method := getattr(module, name, None)):
                setattr(self, name, method)

    @property
    def of_caller(self) -> nn.Module:
        """The module, for messages about whose fault something is."""
        return self.module

    @property
    def prior(self) -> Prior:
        """The module's own ``prior``, or the standard normal."""
        return StandardNormal(self.latent_dim) if self._prior is None else self._prior

    def forward(self, z: Tensor, *labels: Tensor) -> Any:
        return self.module(z, *labels)


class ModuleEnergy(Energy):
    """A plain module as an energy. Values (B, 1), which a last linear layer returns, become (B,).

    Args:
        module: maps data to numbers, ``(B, *D) -> (B,)`` or ``(B, 1)``; with ``conditional``, data and labels.
        conditional: whether ``forward`` takes labels.
        num_classes: number of classes of a conditional module.
    """

    def __init__(self, module: nn.Module, conditional: bool = False, num_classes: int | None = None) -> None:
        super().__init__()
        self.module = module
        self.conditional, self.num_classes = conditional, num_classes
        self.frozen = bool(getattr(module, "frozen", False))
        self.described = f"the energy {named(module)}"

    @property
    def of_caller(self) -> nn.Module:
        """The module, for messages about whose fault something is."""
        return self.module

    def forward(self, x: Tensor, *labels: Tensor) -> Any:
        values = self.module(x, *labels)
        column = isinstance(values, Tensor) and values.ndim > 1 and values.numel() == len(values) == len(x)
        return values.flatten() if column else values


def named(module: nn.Module) -> str:
    """Return the words that name a module in a message: its class, and where that is defined."""
    cls = type(module)
    where = package_of(cls.__module__) if cls.__module__.startswith("torch.") else place_of(cls)
    return f"{cls.__name__!r} ({where or cls.__module__})"
