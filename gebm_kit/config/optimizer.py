"""The recipe's section about an optimiser and its learning rate. This file does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from gebm_kit.core.components import Range

Rate = Annotated[float, Range(0, None)]
Fraction = Annotated[float, Range(0, 1, high_open=True)]


@dataclass(frozen=True, slots=True)
class OptimizerSection:
    """Settings of one optimiser.

    Attributes:
        name: adam, adamw or sgd.
        lr: learning rate.
        beta1, beta2: Adam's decay rates (sgd: beta1 is the momentum).
        weight_decay: decoupled for adamw, L2 otherwise.
        schedule: constant; cosine or linear, which fall from lr to ``end_scale * lr`` at the end of the phase; or
            multi-step, which multiplies the rate by ``factor`` at each of the ``milestones``.
        decay_start: share of the phase after which cosine and linear begin to fall.
        end_scale: see schedule.
        milestones: times of multi-step's changes; a number below 1 is a share of the phase, any other a number of cycles.
        factor: see schedule.
        warmup_steps: cycles over which the rate rises linearly from 0, with any schedule; 0: no warm-up.
    """

    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: Rate = 2e-4
    beta1: Fraction = 0.5
    beta2: Fraction = 0.999
    weight_decay: Rate = 0.0
    schedule: Literal["constant", "cosine", "linear", "multi-step"] = "constant"
    decay_start: Fraction = 0.0
    end_scale: Annotated[float, Range(0, 1)] = 0.0
    milestones: tuple[Annotated[float, Range(0, None, low_open=True)], ...] = (0.5, 0.75)
    factor: Annotated[float, Range(0, 1)] = 0.1
    warmup_steps: Annotated[int, Range(0, None)] = 0


DEFAULT_OPTIMIZER = OptimizerSection()
"""Optimiser of energy and base in the main phase."""

PRETRAIN_OPTIMIZER = OptimizerSection(lr=1e-3, beta1=0.9, schedule="cosine")
"""Optimiser of a base that is trained alone."""

FINAL_OPTIMIZER = OptimizerSection(lr=2e-4, beta1=0.9, beta2=0.99, schedule="linear")
"""Optimiser of the energy in the final phase."""
