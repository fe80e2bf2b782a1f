"""KALE in its Donsker-Varadhan form, plain or with a moving average of the partition.

References:
    Generalized Energy Based Models. M. Arbel, L. Zhou, A. Gretton, ICLR 2021. https://arxiv.org/abs/2003.05033
    Mutual Information Neural Estimation. M. I. Belghazi et al., ICML 2018. https://arxiv.org/abs/1801.04062
    (Section 3.2: a moving average corrects the gradient's bias)
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.interfaces import Batch, LossTerms
from gebm_kit.core.model import GEBM
from gebm_kit.losses.density_ratio import (
    BatchLogPartition,
    batch_energies,
    energy_metrics,
    kale_base_loss,
    unknown,
    weights,
    with_gradient,
)


class KaleDV(BatchLogPartition):
    """Energy loss ``E_P[E] + log E_B[exp(-E)]``; minus its minimum over E is KALE(P||B) <= KL(P||B).

    The log of a mini-batch mean is biased, and so is its gradient, ``-sum_i softmax(-E)_i grad E_i``. With a moving
    average m of ``E_B[exp(-E)]`` the gradient is that of ``E_B[exp(-E)] / m`` instead, with m not differentiated. Its bias
    vanishes as the average grows longer (MINE). The value of the loss is still that of the mini-batch. m includes the
    current batch and starts from its first term. m is stored as its logarithm,
    ``A <- logaddexp(log d + A, log(1 - d) + log mean exp(-E))``.

    Args:
        moving_average: d, the share of m that is kept from one step to the next, 0 <= d < 1; 0 is plain Donsker-Varadhan.

    Metrics of the energy step: ``kale`` (minus the loss), ``log_partition`` (A, with this batch), ``energy_data``,
    ``energy_base``, ``weight_ess``.
    """

    serves_classes = True

    def __init__(self, moving_average: Annotated[float, Range(0, 1, high_open=True)] = 0.0) -> None:
        super().__init__()
        check_arguments(self, moving_average=moving_average)
        self.moving_average = float(moving_average)
        self.register_buffer("log_partition", unknown())

    def energy_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        energies = batch_energies(model, batch)
        with torch.no_grad():
            log_mean, relative = weights(-energies.base)
            updated = self._updated(log_mean)
            metrics = {"log_partition": updated, **energy_metrics(energies, relative)}
            value = metrics["energy_data"] + log_mean
            metrics["kale"] = -value
            if self.moving_average > 0:  # mean exp(-E) / m, which is at most 1 / (1 - d)
                relative = relative * torch.exp(log_mean - updated)
        return LossTerms(with_gradient(value, energies, torch.ones_like(energies.data), -relative), metrics)

    def base_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        return LossTerms(kale_base_loss(model, batch))

    def _updated(self, log_mean_weight: Tensor) -> Tensor:
        """Return A after this batch; at the first step the batch alone."""
        if self.moving_average == 0:
            return log_mean_weight
        kept = self.log_partition + math.log(self.moving_average)
        average = torch.logaddexp(kept, log_mean_weight + math.log1p(-self.moving_average))
        return torch.where(torch.isnan(self.log_partition), log_mean_weight, average)
