"""Losses and penalties, which training minimises, and the batch that they are computed on.

Shapes: B batch, Z latent size, ``*D`` data shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from gebm_kit.core.networks import Energy

if TYPE_CHECKING:
    from gebm_kit.core.model import GEBM


Part = Literal["both", "energy", "base"]
"""What is trained: both parts of the model, or one of them."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The inputs of one training step, filled by the engine so that nothing is computed twice.

    An energy step has every field, and negatives if the loss declares them. A base step has the fields that the loss's
    ``base_needs`` names, and the engine draws no others. Data and base draws carry the instance noise of ``train.noise``.

    Attributes:
        x: data, (B, *D); None in a base step of a loss that does not need data.
        z: latent codes, (B, Z). A base step has them for ``z`` and for ``x_base``; otherwise they are empty, (0,).
        x_base: ``G(z)``, (B, *D), with gradient in a base step and without in an energy step; empty, (0,), in a base step
            of a loss that does not need base draws.
        negatives: chain states, (B, *D), without gradient, for contrastive losses and with ``train.negatives``; otherwise
            None. A base step has the negatives of the last energy step.
        labels: classes of the data, (B,) int64; None where the model is not conditional, and where x is None.
        base_labels: classes of the base draws, (B,) int64, drawn by the data's frequencies; None as above. `GEBM.decode` and
            `GEBM.energy_at` take both as they are.
    """

    x: Tensor | None
    z: Tensor
    x_base: Tensor
    negatives: Tensor | None = None
    labels: Tensor | None = None
    base_labels: Tensor | None = None


@dataclass(frozen=True, slots=True)
class LossTerms:
    """The scalar to minimise, and named metrics as detached scalar tensors, which the engine reads at log steps only."""

    loss: Tensor  # scalar, (), with a gradient
    metrics: dict[str, Tensor] = field(default_factory=dict)  # values by name, () each, without gradient


@dataclass(frozen=True, slots=True)
class NegativeSettings:
    """Settings by which the engine draws `Batch.negatives` for a loss: short chains on the current energy.

    Attributes:
        space: space of the chains. ``latent``: they run on U(z), and negatives are G(z); ``data``: they run on E(x) itself.
        sampler: registered name of a kernel with a ``step_size``.
        step_size: the kernel's step size.
        steps: number of steps of each chain at every energy step.
        buffer_size: number of chain states kept from one energy step to the next; 0: every chain starts afresh.
        restart: probability that a chain taken from the buffer starts afresh.
        restart_at: where chains start afresh. ``base``: at draws of the prior or the base; ``data``: at data, or at the
            codes of data in latent space.
        adapt: whether the step follows the acceptance, for kernels that are tuned by it and have a preconditioner.
    """

    space: Literal["latent", "data"]
    sampler: str
    step_size: float
    steps: int
    buffer_size: int = 0
    restart: float = 0.0
    restart_at: Literal["base", "data"] = "base"
    adapt: bool = False


class Loss(nn.Module):
    """A pair of objectives: one for the energy (and A), one for the base.

    An energy loss leaves no gradient on the base, and a base loss leaves none on the energy. The engine ensures the latter
    by differentiating with respect to one part's parameters alone.

    A base loss may compare data with base draws, as relativistic and MMD losses do::

        class MeanMatching(Loss):
            base_needs = frozenset({"x", "x_base"})

            def base_loss(self, model: GEBM, batch: Batch) -> LossTerms:
                return LossTerms((batch.x_base.mean(0) - batch.x.mean(0)).square().sum())

    Before training the engine checks ``needs`` and ``base_needs``. A field that `Batch` does not have is a UsageError, and
    so are negatives without settings.

    Attributes:
        needs: fields of `Batch` that the energy loss reads.
        base_needs: fields of `Batch` that the base loss reads: any of ``x``, ``z``, ``x_base`` and ``negatives``. The
            engine fills every named field; negatives come from the last energy update.
        parts: parts that have an objective; if only the base has one, ``train.part`` must be ``base``.
        log_ratio: whether the optimal energy is a log density ratio relative to the base, so that sampling from it is
            meaningful. If that depends on the loss's parameters, the constructor sets it.
        negatives: settings for drawing negatives, for losses that need them.
        serves_classes: whether the loss passes the batch's labels on to a conditional model. Training refuses a conditional
            model with a loss that does not.
    """

    needs: frozenset[str] = frozenset({"x", "x_base"})
    base_needs: frozenset[str] = frozenset({"x_base"})
    parts: ClassVar[frozenset[str]] = frozenset({"energy", "base"})
    log_ratio: bool = True
    negatives: NegativeSettings | None = None
    serves_classes: ClassVar[bool] = False

    def check(self, model: GEBM) -> None:
        """Check, before training, that the loss can train ``model``.

        Raises:
            UsageError: the loss can't train this model.
        """
        return

    def energy_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        """Compute the objective of the energy step; its metrics include ``kale`` and ``log_partition`` if defined."""
        raise NotImplementedError

    def base_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        """Compute the objective of the base step."""
        raise NotImplementedError

    def log_partition_estimate(self) -> Tensor | None:
        """Return the loss's current estimate of A, (), or None if it keeps none."""
        return None

    def initialise(self, energy_base: Tensor) -> None:
        """Set a learned A to its optimum; called once before training with energies of base draws, (N,)."""

    def after_energy_step(self, metrics: Mapping[str, Tensor]) -> None:
        """Update A in closed form and moving averages; called after each optimiser step on the energy."""


class Penalty(nn.Module):
    """A regulariser of the energy, added to the energy loss.

    The engine evaluates penalties lazily: it adds ``every * weight * penalty`` at every ``every``-th energy step.

    Attributes:
        every: number of energy steps from one evaluation to the next.
        needs: fields of `Batch` that the penalty reads. With ``negatives`` among them, training refuses a phase whose
            updates draw none. If that depends on the penalty's parameters, the constructor sets it.
        serves_classes: whether the penalty passes the batch's labels on to a conditional energy. Training refuses a
            conditional energy with a penalty that does not.
    """

    every: int = 1
    serves_classes: ClassVar[bool] = False
    needs: frozenset[str] = frozenset({"x", "x_base"})

    def forward(self, energy: Energy, batch: Batch, generator: torch.Generator) -> Tensor:
        """Compute the weighted penalty, ()."""
        raise NotImplementedError


class SlopePenalty(Penalty):
    """A penalty on the squared slopes ``|grad_x E|^2`` of single rows: of the data, the base draws or the negatives.

    Where penalties on data and on base draws are due, and the loss evaluates the energy once at ``cat([x, x_base])``, the
    engine takes both slopes from that forward pass and differentiates it twice once. The penalties then need no forward
    pass of their own.

    Attributes:
        at: the field of `Batch` with the rows.
    """

    at: Literal["x", "x_base", "negatives"]

    def of_slopes(self, squared: Tensor) -> Tensor:
        """Compute the weighted penalty, (), from this rank's squared slopes, (B,), with gradient."""
        raise NotImplementedError
