"""The interfaces that components implement, and the small records that pass between them.

Shapes: B batch, C chains, Z latent size, ``*D`` data shape (``(2,)`` for points, ``(channels, height, width)`` for images).
Capabilities are separate runtime-checkable protocols: code asks ``isinstance(base, HasDensity)`` for what it needs and
never for a class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from gebm_kit.core.priors import Prior, StandardNormal, prior_sample
from gebm_kit.core.sampling import (
    DIVERGENCE_THRESHOLD as DIVERGENCE_THRESHOLD,
    Adaptation as Adaptation,
    AnnealedSampler as AnnealedSampler,
    Info as Info,
    Potential as Potential,
    Sampler as Sampler,
    State as State,
    TiltedPotential as TiltedPotential,
    Tunable as Tunable,
    ValueAndGrad as ValueAndGrad,
)

if TYPE_CHECKING:
    from gebm_kit.core.model import GEBM

Part = Literal["both", "energy", "base"]
SplitName = Literal["train", "valid", "test"]


# --- base and energy -------------------------------------------------------------------------------------------------


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


@runtime_checkable
class HasStandardisation(Protocol):
    """A dataset that says how it made ``y``, the data as the model sees them, of measurements ``x`` in a file's columns."""

    columns: tuple[str, ...]
    log_det: float
    """log |det dy/dx|, in nats: ``log p(x) = log p(y) + log_det``."""

    def standardised(self, rows: Tensor) -> Tensor:
        """y of x; (N, D) -> (N, D)."""
        ...


# --- losses ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Batch:
    """What one training step computes on; filled by the engine, so that nothing is computed twice.

    Attributes:
        x: data, (B, *D); None in a base step of a loss that does not need it.
        z: latent codes, (B, Z).
        x_base: ``G(z)``, (B, *D), with gradient in a base step and without in an energy step.
        negatives: chain states for contrastive losses, (B, *D).
    """

    x: Tensor | None
    z: Tensor
    x_base: Tensor
    negatives: Tensor | None = None


@dataclass(frozen=True, slots=True)
class LossTerms:
    """The scalar to minimise, and named metrics as detached scalar tensors (read by the engine at log steps only)."""

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NegativeSettings:
    """How the engine draws `Batch.negatives` for a loss: short chains that walk on the energy as it is now.

    Attributes:
        space: ``latent``: on U(z), negatives are G(z); ``data``: on E(x) itself.
        sampler: registered name of a kernel with a ``step_size``.
        step_size: of that kernel.
        steps: of each chain, at every energy step.
        buffer_size: chain states kept from one energy step to the next; 0: every chain starts afresh.
        restart: share of the chains taken from the buffer that start afresh.
        restart_at: where: ``base``, at draws of the prior or the base; ``data``, at data, by their codes in latent space.
    """

    space: Literal["latent", "data"]
    sampler: str
    step_size: float
    steps: int
    buffer_size: int = 0
    restart: float = 0.0
    restart_at: Literal["base", "data"] = "base"


class Loss(nn.Module):
    """A pair of objectives: one for the energy (and A), one for the base.

    An energy loss leaves no gradient on the base, a base loss none on the energy; the engine sees to the second by
    differentiating with respect to one part's parameters alone.

    Attributes:
        needs: fields of `Batch` that the energy loss reads.
        base_needs: fields of `Batch` that the base loss reads: base draws, or data.
        parts: which parts have an objective; with the base's alone, ``train.part`` must be ``base``.
        log_ratio: whether the optimal energy is a log density ratio relative to the base, so that sampling from it is
            meaningful; where that depends on the loss's parameters, its constructor sets it.
        negatives: how negatives are drawn, for losses that need them.
    """

    needs: frozenset[str] = frozenset({"x", "x_base"})
    base_needs: frozenset[str] = frozenset({"x_base"})
    parts: ClassVar[frozenset[str]] = frozenset({"energy", "base"})
    log_ratio: bool = True
    negatives: NegativeSettings | None = None

    def check(self, model: GEBM) -> None:
        """Called before training; raises UsageError when the loss can't train ``model``."""
        return

    def energy_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        """Objective of the energy step, with ``kale`` and ``log_partition`` among its metrics where they are defined."""
        raise NotImplementedError

    def base_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        """Objective of the base step."""
        raise NotImplementedError

    def log_partition_estimate(self) -> Tensor | None:
        """The loss's current estimate of A, (), or None when it keeps none."""
        return None

    def initialise(self, energy_base: Tensor) -> None:
        """Called once before training with energies of base draws, (N,); sets a learned A to its optimum."""

    def after_energy_step(self, metrics: Mapping[str, Tensor]) -> None:
        """Called after each optimiser step on the energy, for closed-form updates of A and moving averages."""


class Penalty(nn.Module):
    """A regulariser of the energy, added to the energy loss.

    Lazy penalties: the engine adds ``every * weight * penalty`` at every ``every``-th energy step.

    Attributes:
        every: energy steps from one evaluation to the next.
    """

    every: int = 1

    def forward(self, energy: Energy, batch: Batch, generator: torch.Generator) -> Tensor:
        """The weighted penalty, ()."""
        raise NotImplementedError


# --- data ------------------------------------------------------------------------------------------------------------


class Split(ABC):
    """One part of a dataset. ``batch`` returns floating-point data in the dataset's value range."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batch(self, indices: Tensor) -> Tensor:
        """Rows ``indices``, (B,) int64 on the CPU -> (B, *D) float32 on the CPU (or wherever the data lives)."""

    def first(self, num: int) -> Tensor:
        """The first ``num`` rows (all when there are fewer), (num, *D)."""
        return self.batch(torch.arange(min(num, len(self))))


@runtime_checkable
class HasStoredRows(Protocol):
    """A split that keeps its rows in another type than it hands out, such as images in bytes.

    Training holds them on the device as they are and decodes each batch there; ``batch(i)`` is ``decode(stored(i))``.
    """

    def stored(self, indices: Tensor | None) -> Tensor:
        """Rows ``indices``, (B,) int64 on the CPU, as they are stored; None: all of them, without a copy if possible."""
        ...

    def decode(self, stored: Tensor) -> Tensor:
        """Stored rows, on any device, as floating-point data in the dataset's value range; (B, *D) -> (B, *D)."""
        ...


class Dataset(ABC):
    """Data with fixed train, validation and test parts that share no row.

    Attributes:
        data_shape: shape of one data point.
        value_range: (low, high) that every value lies in, or None when unbounded. Bases end in tanh for (-1, 1).
    """

    data_shape: tuple[int, ...]
    value_range: tuple[float, float] | None = None

    @abstractmethod
    def split(self, name: SplitName) -> Split:
        """One of the three parts, never empty."""


@runtime_checkable
class HasLabels(Protocol):
    """A dataset with class labels."""

    num_classes: int

    def labels(self, name: SplitName) -> Tensor:
        """Class indices of the split's rows, in its order, (N,) int64."""
        ...


@runtime_checkable
class HasModes(Protocol):
    """A toy with known modes."""

    mode_centres: Tensor  # (M, D)
    mode_std: float


# --- evaluation ------------------------------------------------------------------------------------------------------


class FeatureMap(ABC):
    """Features on which metrics compare sets of draws.

    Attributes:
        checksum: identifies the features exactly (weights included), part of every metric's protocol.
        resize: what is done to an image before its features are taken, in words; part of every metric's protocol too.
        cached: whether features of reference data are worth keeping on disk; False where they cost nothing.
    """

    checksum: str
    resize: str = "none"
    cached: ClassVar[bool] = True

    def check(self, dataset: Dataset) -> None:
        """Called before anything is trained or drawn; raises UsageError when the map can't serve ``dataset`` (or a file that
        it needs is missing), PluginError when a package that it needs is."""
        return

    @abstractmethod
    def fit(self, dataset: Dataset, device: torch.device) -> None:
        """Prepare for a dataset (train or load a classifier). Called once, before the first `__call__`."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """(N, *D) -> (N, F), evaluated in blocks, without gradient."""


@runtime_checkable
class HasLogits(Protocol):
    """A feature map of a classifier: its features determine the probabilities of classes."""

    def logits(self, features: Tensor) -> Tensor:
        """Logarithms of class probabilities, up to a constant of each row, of rows of features; (N, F) -> (N, K)."""
        ...


@dataclass(frozen=True, slots=True)
class EvalContext:
    """What a metric is computed from.

    Attributes:
        samples: the draws to score, (N, *D).
        reference: data to score them against, (M, *D).
        model: the GEBM, for metrics of the model itself (kale).
        dataset: where the data comes from, for toys with known modes.
        features: `FeatureMap` by name, fitted on first use.
        generator: for metrics that subsample.
    """

    samples: Tensor
    reference: Tensor
    dataset: Dataset | None
    features: Any
    generator: torch.Generator
    model: GEBM | None = None


class Metric(ABC):
    """A named figure of merit of a set of draws.

    Attributes:
        ratio: whether GEBM over base is meaningful (a distance that is zero at the truth).
        of_model: True when the metric is a property of the model and not of draws (kale): called once.
        lower_is_better: direction, for tables and for choosing the best checkpoint; None when there is none.
        least_rows: fewest draws, and rows of data to score them against, that a value can be computed from.
        against_train: True when draws are to be scored against training data too: what a model that memorises gains there
            it does not gain on held-out data.
    """

    ratio: ClassVar[bool] = True
    of_model: ClassVar[bool] = False
    lower_is_better: ClassVar[bool | None] = True
    against_train: ClassVar[bool] = False
    least_rows: int = 1

    @abstractmethod
    def __call__(self, context: EvalContext) -> dict[str, float]:
        """Named values; a metric with one value uses its own component name as the key."""

    def check(self, dataset: Dataset) -> None:
        """Called before anything is trained or drawn; raises UsageError when the metric can't serve ``dataset``, RecipeError
        or PluginError when it names a component that is not installed."""
        return

    def protocol(self, context: EvalContext) -> dict[str, Any]:
        """What the value depends on: N, features and their checksum, bandwidths."""
        return {"samples": len(context.samples), "reference": len(context.reference)}


class Logger(ABC):
    """Where a run's numbers and pictures go. What a logger raises is a warning to the user, and never stops training."""

    @classmethod
    def check(cls) -> None:
        """Called before anything is trained or written; raises PluginError when a package that it needs is missing."""
        return

    @abstractmethod
    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Values by name after ``step`` cycles. Training and evaluation log: a step may come twice, with other names."""

    def log_config(self, config: Mapping[str, Any]) -> None:
        """The resolved recipe as plain data, once, before anything else; again when a run is resumed."""
        return

    def log_image(self, step: int, name: str, path: Path) -> None:
        """A picture (PNG) that was written to ``path``."""
        return

    def close(self) -> None:
        """The last call, however training ends."""
        return


def named_scalars(metrics: Mapping[str, Tensor]) -> Iterator[tuple[str, float]]:
    """Read metrics off the device; the one place where training waits for it."""
    for name, value in metrics.items():
        yield name, float(value)
