"""The two networks of a model, base and energy, and their optional capabilities.

Shapes: B batch, Z latent size, ``*D`` data shape (``(2,)`` for points, ``(channels, height, width)`` for images).
Capabilities are separate runtime-checkable protocols: code asks for the capability it needs, as in
``isinstance(base, HasDensity)``, and never for a concrete class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from gebm_kit.core.datasets import Dataset
from gebm_kit.core.priors import Prior, StandardNormal, prior_sample


class Base(nn.Module):
    """A map ``x = G(z)`` from the latent space to the data space, with the prior of z.

    Subclasses set ``latent_dim`` and ``data_shape`` in their constructor and implement
    ``forward(z: (B, Z)) -> x: (B, *D)``. They override ``prior`` if it is not the standard normal.

    A conditional base has a law for each class: ``forward(z: (B, Z), labels: (B,) int64) -> x: (B, *D)``. A row of x
    depends on its own code and label alone.

    Attributes:
        latent_dim: Z.
        data_shape: ``*D``.
        conditional: whether ``forward`` takes labels; set on the class or in the constructor.
        num_classes: number of classes of a conditional base; labels are 0 to ``num_classes - 1``.
    """

    latent_dim: int
    data_shape: tuple[int, ...]
    conditional: bool = False
    num_classes: int | None = None

    @property
    def prior(self) -> Prior:
        """Distribution of z; the standard normal unless a subclass overrides it."""
        return StandardNormal(self.latent_dim)

    def sample_prior(self, num: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw ``num`` latent codes from the prior, (num, Z), on the generator's device."""
        return prior_sample(self.prior, num, generator, dtype)


class Energy(nn.Module):
    """A scalar function of a data point, low on data: ``forward(x: (B, *D)) -> (B,)``.

    Only ``E + A`` is identified, so an energy has no output bias. Its values are never clamped in a way that makes the
    gradient zero.

    A conditional energy scores a point as one of a class: ``forward(x: (B, *D), labels: (B,) int64) -> (B,)``.

    Attributes:
        frozen: whether there is nothing to train, as for a scorer.
        conditional: whether ``forward`` takes labels; set on the class or in the constructor.
        num_classes: number of classes of a conditional energy; labels are 0 to ``num_classes - 1``.
    """

    frozen: bool = False
    conditional: bool = False
    num_classes: int | None = None


@runtime_checkable
class HasDensity(Protocol):
    """A base, or a toy dataset, whose log-density is known. A conditional base takes labels, (B,), as second argument."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density in nats; (B, *D) -> (B,)."""
        ...


@runtime_checkable
class HasEncoder(Protocol):
    """A base that maps data to latent codes. A conditional base takes labels, (B,), as second argument."""

    def encode(self, x: Tensor) -> Tensor:
        """Map data to latent codes; (B, *D) -> (B, Z)."""
        ...


@runtime_checkable
class OnCodes(Protocol):
    """An energy defined on the base's codes of points: ``E(x) = h(G^-1(x))``, so ``E(G(z)) = h(z)``.

    A `GEBM` binds such an energy to its base. Training and sampling evaluate h directly at codes, without the base.
    """

    def bind(self, base: Base) -> None:
        """Use this base's G from now on; the energy keeps no copy of the base and does not train it.

        Raises:
            UsageError: the base has no inverse.
        """
        ...

    def encode(self, x: Tensor) -> Tensor:
        """Return ``G^-1(x)``; (B, *D) -> (B, Z)."""
        ...

    def of_codes(self, z: Tensor) -> Tensor:
        """Return ``h(z)``; (B, Z) -> (B,)."""
        ...


@runtime_checkable
class HasPretraining(Protocol):
    """A base with its own loss (negative log-likelihood, negative ELBO).

    A conditional base takes labels, (B,), as second argument.
    """

    def pretraining_loss(self, x: Tensor) -> Tensor:
        """Return the mean loss of a batch; (B, *D) -> ()."""
        ...


@runtime_checkable
class HasSource(Protocol):
    """A base or an energy that was read from a file; a run keeps a copy of that file.

    A base that was read from a folder names one of its files here and the others in ``source_parts``, a mapping from their
    paths inside the folder to where they are; a run keeps them too.

    Attributes:
        source_file: the file.
        source_sha256: SHA-256 of its contents, in hexadecimal digits.
    """

    source_file: Path
    source_sha256: str


@runtime_checkable
class HoldsWeights(Protocol):
    """A base or an energy with fixed weights beside its parameters and buffers, which no checkpoint holds."""

    def held_weights(self) -> Iterator[Tensor]:
        """Yield these weights."""
        ...


@runtime_checkable
class HasFitting(Protocol):
    """An energy with a part that is learned from the data before training begins and stays fixed during training.

    ``state_dict()`` includes that part's tensors; its parameters take no gradient.
    """

    fitted: Tensor
    """Flag, () bool buffer: whether the part has been learned."""

    def fit(
        self, dataset: Dataset, device: torch.device, seed: int, on_step: Callable[[int, int], None] | None = None
    ) -> None:
        """Learn the part from the data.

        Args:
            dataset: the data.
            device: device to compute on.
            seed: seed of the random numbers.
            on_step: called with the number of steps done and the total number of steps.
        """
        ...
