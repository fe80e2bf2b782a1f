"""KALE in its Fenchel form, with the log-partition A learned beside the energy.

References:
    Generalized Energy Based Models. M. Arbel, L. Zhou, A. Gretton, ICLR 2021. https://arxiv.org/abs/2003.05033
    (Section 3.1 for KALE and its form with A, Section 3.2 for the gradient with respect to the base)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from gebm_kit.core import reduce
from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.interfaces import Batch, Loss, LossTerms
from gebm_kit.core.model import GEBM
from gebm_kit.losses.density_ratio import (
    batch_energies,
    energy_metrics,
    exp_linear,
    kale_base_loss,
    weights,
    with_gradient,
)


class Kale(Loss):
    """Energy loss ``E_P[E] + A + r - 1``, r = E_B[exp(-(E + A))], whose gradients in (E, A) are unbiased.

    Minus its minimum over A is the Donsker-Varadhan value ``-E_P[E] - log E_B[exp(-E)]``. Minus its minimum over (E, A) is
    KALE(P||B) <= KL(P||B). The base loss is ``-log mean exp(-E(G(z)))``.

    At fixed E the best A is ``log E_B[exp(-E)]``. A starts there and then follows one of two rules.

    - ``log-ratio``: ``A <- A + rate * log r``, with the r of each batch, after the energy's step. This can't overflow,
      whereas the Newton step ``rate * (1 - 1/r)`` does when A is too high. The fixed point is too low by about
      ``(1/ess - 1) / (2 B)``, for batches of B draws whose weights have an effective share ess.
    - ``adam``: A is a parameter, which the energy's optimiser trains.

    Args:
        update: rule for A.
        rate: rho of the log-ratio rule, 0 < rho <= 1; ``adam`` ignores it.

    Metrics of the energy step: ``kale`` (minus the loss), ``log_partition`` (A before the step), ``energy_data``,
    ``energy_base``, ``weight_ess`` and ``log_mean_weight`` (log r).
    """

    log_partition: Tensor
    serves_classes = True

    def __init__(
        self,
        update: Literal["log-ratio", "adam"] = "log-ratio",
        rate: Annotated[float, Range(0, 1, low_open=True)] = 0.1,
    ) -> None:
        super().__init__()
        check_arguments(self, update=update, rate=rate)
        self.update = update
        self.rate = float(rate)
        if update == "adam":
            self.log_partition = nn.Parameter(torch.zeros(()))
        else:
            self.register_buffer("log_partition", torch.zeros(()))

    def energy_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        energies = batch_energies(model, batch)
        with torch.no_grad():
            log_partition = self.log_partition.detach().clone()
            log_mean_weight, relative = weights(-(energies.base + log_partition))
            r, slope = exp_linear(log_mean_weight)
            metrics = {
                "log_partition": log_partition,
                "log_mean_weight": log_mean_weight,
                **energy_metrics(energies, relative),
            }
            value = metrics["energy_data"] + log_partition + r - 1.0
            metrics["kale"] = -value
        loss = with_gradient(value, energies, torch.ones_like(energies.data), -slope * relative)
        if self.log_partition.requires_grad:
            loss = loss + (1.0 - slope) * (self.log_partition - log_partition)
        return LossTerms(loss, metrics)

    def base_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        return LossTerms(kale_base_loss(model, batch))

    def log_partition_estimate(self) -> Tensor:
        return self.log_partition.detach()

    @torch.no_grad()
    def initialise(self, energy_base: Tensor) -> None:
        self.log_partition.copy_(reduce.log_mean_exp(-energy_base))

    @torch.no_grad()
    def after_energy_step(self, metrics: Mapping[str, Tensor]) -> None:
        if self.update == "log-ratio":
            self.log_partition.add_(metrics["log_mean_weight"], alpha=self.rate)
