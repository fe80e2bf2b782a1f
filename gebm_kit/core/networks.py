"""The two networks of a model, and what a base or an energy may be able to do besides.

Shapes: B batch, Z latent size, ``*D`` data shape (``(2,)`` for points, ``(channels, height, width)`` for images).
Capabilities are separate runtime-checkable protocols: code asks ``isinstance(base, HasDensity)`` for what it needs and
never for a class.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from gebm_kit.core.datasets import Dataset
from gebm_kit.core.priors import Prior, StandardNormal, prior_sample

if TYPE_CHECKING:
    pass


class Base(nn.Module):
    """A map ``x = G(z)`` from the latent space to the data space, with the prior of z.

    Subclasses set ``latent_dim`` and ``data_shape`` (and ``prior`` when it is not the standard normal) in their
    constructor and implement ``forward(z: (B, Z)) -> x: (B, *D)``.
    """

    latent_dim: int
    data_shape: tuple[int, ...]

    @property
    def prior(self) -> Prior:
        """Distribution of z; the standard normal unless a subclass says otherwise."""
        return StandardNormal(self.latent_dim)

    def sample_prior(self, num: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """``num`` latent codes from the prior, (num, Z), on the generator's device."""
        return prior_sample(self.prior, num, generator, dtype)


class Energy(nn.Module):
    """A scalar function of a data point, low on data: ``forward(x: (B, *D)) -> (B,)``.

    Only ``E + A`` is identified, so an energy has no output bias; it is never clamped with a dead gradient.
    """


@runtime_checkable
class HasDensity(Protocol):
    """A base, or a toy dataset, whose log-density is known."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density in nats; (B, *D) -> (B,)."""
        ...


@runtime_checkable
class HasEncoder(Protocol):
    """A base that maps data to latent codes."""

    def encode(self, x: Tensor) -> Tensor:
        """(B, *D) -> (B, Z)."""
        ...


@runtime_checkable
class OnCodes(Protocol):
    """An energy that sees a point through the code that its base has for it, ``E(x) = h(G^-1(x))``, ``E(G(z)) = h(z)``.

    A `GEBM` binds such an energy to its base. Training and sampling evaluate it at codes, without the base.
    """

    def bind(self, base: Base) -> None:
        """From here on G is this base's, of which the energy keeps no copy and learns nothing.

        Raises:
            UsageError: the base has no inverse.
        """
        ...

    def encode(self, x: Tensor) -> Tensor:
        """``G^-1(x)``; (B, *D) -> (B, Z)."""
        ...

    def of_codes(self, z: Tensor) -> Tensor:
        """``h(z)``; (B, Z) -> (B,)."""
        ...


@runtime_checkable
class HasPretraining(Protocol):
    """A base with a loss of its own (negative log-likelihood, negative ELBO)."""

    def pretraining_loss(self, x: Tensor) -> Tensor:
        """Mean loss of a batch; (B, *D) -> ()."""
        ...


@runtime_checkable
class HasSource(Protocol):
    """A base that was read from a file, of which a run keeps a copy."""

    source_file: Path
    source_sha256: str


@runtime_checkable
class HasFitting(Protocol):
    """An energy with a part that is learned from the data before training begins, and fixed from then on.

    The part's tensors belong to ``state_dict()``; its parameters take no gradient.
    """

    fitted: Tensor
    """Whether that is done, () bool; a buffer."""

    def fit(
        self, dataset: Dataset, device: torch.device, seed: int, on_step: Callable[[int, int], None] | None = None
    ) -> None:
        """Learn it; ``on_step`` is told the number of steps done, and of all."""
        ...
