"""KALE of the energy on held-out data."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch

from gebm_kit.core import estimators
from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import EvalContext, Metric
from gebm_kit.core.model import GEBM, LatentPotential

MODEL_ROWS = 1024
"""Rows that pass through the model at a time: more take more memory, fewer make more calls."""


class KaleMetric(Metric):
    """``1 - E_P[E] - A - E_B[exp(-(E + A))]``, with A estimated from one set of base draws and the mean over B from another.

    P is the reference (held-out data). Whatever A is, the expected value is at most KL(P || B); this would not hold if A and
    the mean came from the same draws. How far training has raised the value says how much of the base's error the energy has
    found. KALE is a property of the model, not of draws, and of the energy E itself: it is always taken at inverse
    temperature 1. (``kale_test`` of an evaluation is taken at the inverse temperature at which draws are sampled.)

    Args:
        num_draws: base draws in each of the two sets.

    References:
        Generalized Energy Based Models. M. Arbel, L. Zhou, A. Gretton, ICLR 2021, Section 3.1.
        https://arxiv.org/abs/2003.05033
    """

    ratio: ClassVar[bool] = False
    of_model: ClassVar[bool] = True
    lower_is_better: ClassVar[bool | None] = None

    def __init__(self, num_draws: Annotated[int, Range(2, None)] = 20_000) -> None:
        check_arguments(self, num_draws=num_draws)
        self.num_draws = num_draws

    def __call__(self, context: EvalContext) -> dict[str, float]:
        model = self._model(context)
        place = next(model.parameters(), context.reference).device, model.dtype
        num = 2 * self.num_draws
        z = torch.randn(num, model.latent_dim, generator=context.generator).to(*place)
        with LatentPotential(model, block_size=min(num, MODEL_ROWS)) as potential, torch.no_grad():
            base = potential.energy(z).cpu().double()
            data = torch.cat([model.energy(x.to(*place)).cpu().double() for x in context.reference.split(MODEL_ROWS)])
        log_partition = estimators.log_partition(base[: self.num_draws])
        return {"kale": float(estimators.kale(data, base[self.num_draws :], log_partition))}

    def protocol(self, context: EvalContext) -> dict[str, Any]:
        return {"reference": len(context.reference), "base_draws": 2 * self.num_draws}

    def _model(self, context: EvalContext) -> GEBM:
        if context.model is None:
            raise UsageError("metric kale is a property of a model, and there is none here")
        return context.model
