"""Logistic classification of data against base draws."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

from torch.nn.functional import softplus

from gebm_kit.core import reduce
from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.interfaces import Batch, Loss, LossTerms
from gebm_kit.core.model import GEBM


class Example(Loss):
    """Logistic classification of data against base draws.

    With data x ~ P and base draws y ~ B,

        energy loss: w E_P[softplus(E(x))] + E_B[softplus(-E(y))],
        base loss:   E_B[softplus(E(y) + log w)].

    The optimal energy is -log(dP/dB) - log w, a log density ratio, with A = log w. `reduce.mean` is the mean over the
    batches of all processes.

    Args:
        data_weight: w, the weight of the data's term.
    """

    needs = frozenset({"x", "x_base"})
    base_needs = frozenset({"x_base"})
    serves_classes: ClassVar[bool] = True

    def __init__(self, data_weight: Annotated[float, Range(0, None, low_open=True)] = 1.0) -> None:
        super().__init__()
        check_arguments(self, data_weight=data_weight)
        self.data_weight = data_weight

    def energy_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        """Compute the objective of the energy step; the batch has ``x`` and ``x_base``, (B, *D)."""
        assert batch.x is not None
        on_data = model.energy_at(batch.x, batch.labels)
        on_base = model.energy_at(batch.x_base, batch.base_labels)
        loss = self.data_weight * reduce.mean(softplus(on_data)) + reduce.mean(softplus(-on_base))
        metrics = {"energy_data": on_data.detach().mean(), "energy_base": on_base.detach().mean()}
        return LossTerms(loss, metrics)

    def base_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        """Compute the objective of the base step; ``x_base`` carries the base's gradient."""
        on_base = model.energy_at(batch.x_base, batch.base_labels)
        return LossTerms(reduce.mean(softplus(on_base + math.log(self.data_weight))))
