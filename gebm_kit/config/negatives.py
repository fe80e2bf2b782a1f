"""The recipe's section about negatives that training draws from the model itself. This file does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from gebm_kit.core.components import Range

Positive = Annotated[int, Range(1, None)]


@dataclass(frozen=True, slots=True)
class NegativesSection:
    """Negatives that the energy's updates draw from the model itself, by persistent chains in latent space.

    An energy update then minimises ``(1 - share) L(E) + share (E_P[E] - E_neg[E])`` with L the recipe's loss, whose energy
    must be a log density ratio. `gebm_kit.engine.training.model_negatives` proves that the minimum stays where it was.

    Attributes:
        share: weight of the chains in the energy's objective; 0: there are none.
        sampler: name of a registered kernel whose chains move alone, such as ``mala``; or ``imh``, whose proposals are base
            draws and need no gradient.
        step_size: the kernel's step size at the start, if it has one.
        adapt: whether the step follows the acceptance towards the kernel's own goal, for kernels that have one.
        steps: steps of each chain at every energy update.
        chains: number of chains that are kept, at least as many as a batch has rows; null: eight times as many. An update
            moves as many as a batch has rows.
        restart: share of the chains that start afresh, at draws of the prior, when they are moved.
    """

    share: Annotated[float, Range(0, 1)] = 0.0
    sampler: str = "mala"
    step_size: Annotated[float, Range(0, None, low_open=True)] = 0.05
    adapt: bool = True
    steps: Positive = 5
    chains: Positive | None = None
    restart: Annotated[float, Range(0, 1)] = 0.01


NO_NEGATIVES = NegativesSection()
"""The section of a recipe that has none."""
