"""SMILE: the Donsker-Varadhan form with clipped weights.

References:
    Understanding the Limitations of Variational Mutual Information Estimators. J. Song, S. Ermon, ICLR 2020.
    https://arxiv.org/abs/1910.06222 (Section 5)
    The authors' code, https://github.com/ermongroup/smile-mi-estimator, takes the critic's gradient from the logistic loss.
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
    kale_base_loss,
    weights,
    with_gradient,
)

STARTING_ROUNDS = 50
"""Iterations that find A's starting value, a fixed point, for ``gradient: clipped``. Each one brings A closer unless every
weight is clipped. They run once, so there is no need to stop early."""


class Smile(Loss):
    """Energy loss ``E_P[E] + A + log E_B[clip(exp(-(E + A)), e^-tau, e^tau)]``, base loss ``-log mean exp(-E(G(z)))``.

    This is Donsker-Varadhan with weights that are clipped only in the log-mean. Its variance no longer grows like exp(KL),
    but it is no longer a bound on the KL. For tau -> infinity it is ``kale-dv``. The paper clips its critic T, a log density
    ratio that includes its constant. Here only E + A is identified, so the clip acts on the ratio's estimate
    ``exp(-(E + A))``. At A = 0 this is the paper's formula.

    As an objective the clipped form is unbounded below. Weights above e^tau give no gradient. Where ``dP/dB`` exceeds
    e^tau, or seems to for a while, only a penalty stops E from falling. The paper therefore evaluates the formula for a
    critic that was trained by another loss, and so does the default here.

    - ``gradient: logistic``: E and A follow the gradient of the logistic loss (``sigmoid(E + A)`` on data,
      ``-sigmoid(-(E + A))`` on base draws), whose optimum is the log-ratio everywhere. The clipped form is only the loss's
      value. The authors' code does the same.
    - ``gradient: clipped``: E follows the gradient of the formula. A is not differentiated; it follows the clipped mean,
      ``A <- A + rate * log E_B[clip(...)]``. This is for energies that stay within the clip. On eight Gaussians the base
      diverged with it.

    Args:
        clip: tau > 0; the paper uses 1, 5 and 20.
        gradient: gradient of the energy: that of the logistic loss or that of the formula.
        rate: rate of A's rule, 0 < rate <= 1; ``logistic`` ignores it.

    Metrics of the energy step: ``kale`` (minus the loss), ``log_partition`` (A before the step), ``log_mean_weight`` (the
    log of the clipped mean), ``clipped`` (share of base draws whose weight was clipped), ``energy_data``, ``energy_base``,
    ``weight_ess`` (of the clipped weights).
    """

    log_partition: Tensor
    serves_classes = True

    def __init__(
        self,
        clip: Annotated[float, Range(0, None, low_open=True)] = 5.0,
        gradient: Literal["logistic", "clipped"] = "logistic",
        rate: Annotated[float, Range(0, 1, low_open=True)] = 0.1,
    ) -> None:
        super().__init__()
        check_arguments(self, clip=clip, gradient=gradient, rate=rate)
        self.clip = float(clip)
        self.gradient = gradient
        self.rate = float(rate)
        if gradient == "logistic":
            self.log_partition = nn.Parameter(torch.zeros(()))
        else:
            self.register_buffer("log_partition", torch.zeros(()))

    def energy_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        energies = batch_energies(model, batch)
        with torch.no_grad():
            log_partition = self.log_partition.detach().clone()
            exponent = -(energies.base + log_partition)
            inside = exponent.abs() <= self.clip
            log_mean, relative = weights(exponent.clamp(-self.clip, self.clip))
            metrics = {
                "log_partition": log_partition,
                "log_mean_weight": log_mean,
                "clipped": 1.0 - reduce.mean(inside.to(exponent.dtype)),
                **energy_metrics(energies, relative),
            }
            value = metrics["energy_data"] + log_partition + log_mean
            metrics["kale"] = -value
            if self.gradient == "logistic":
                on_data, on_base = torch.sigmoid(energies.data + log_partition), -torch.sigmoid(exponent)
            else:
                on_data, on_base = torch.ones_like(energies.data), torch.where(inside, -relative, 0.0)
        loss = with_gradient(value, energies, on_data, on_base)
        if self.log_partition.requires_grad:
            loss = loss + (on_data.mean() + on_base.mean()) * (self.log_partition - log_partition)
        return LossTerms(loss, metrics)

    def base_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        return LossTerms(kale_base_loss(model, batch))

    def log_partition_estimate(self) -> Tensor:
        return self.log_partition.detach()

    @torch.no_grad()
    def initialise(self, energy_base: Tensor) -> None:
        log_partition = reduce.log_mean_exp(-energy_base)
        for _ in range(STARTING_ROUNDS if self.gradient == "clipped" else 0):
            exponent = -(energy_base + log_partition)
            log_partition = log_partition + reduce.log_mean_exp(exponent.clamp(-self.clip, self.clip))
        self.log_partition.copy_(log_partition)

    @torch.no_grad()
    def after_energy_step(self, metrics: Mapping[str, Tensor]) -> None:
        if self.gradient == "clipped":
            self.log_partition.add_(metrics["log_mean_weight"], alpha=self.rate)
