"""What training minimises: losses and penalties, and the batch that they are computed on.

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
        base_needs: fields of `Batch` that the base loss reads. The engine fills every field that is named: data, base draws,
            or both; negatives are those of the last energy update.
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
