"""The logistic density-ratio loss: the critic of a GAN, used as an energy.

References:
    Generative Adversarial Nets. I. Goodfellow et al., NeurIPS 2014. https://arxiv.org/abs/1406.2661
    (Section 3: the non-saturating loss of the generator)
    Your GAN is Secretly an Energy-based Model. T. Che et al., NeurIPS 2020. https://arxiv.org/abs/2003.06060
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from gebm_kit.core import reduce
from gebm_kit.core.interfaces import Batch, Loss, LossTerms
from gebm_kit.core.model import GEBM
from gebm_kit.losses.density_ratio import batch_energies, energy_metrics, exp_linear, weights, with_gradient


class Logistic(Loss):
    """Energy loss ``E_P[softplus(E + A)] + E_B[softplus(-(E + A))]``, base loss ``E_B[softplus(E + A)]``.

    At the optimum ``-(E + A) = log dP/dB``, as for KALE. Each term is bounded below and grows at most linearly in E, so
    this is the stable fallback when KALE's weights collapse. A is a parameter, which the energy's optimiser trains; it
    starts at ``log E_B[exp(-E)]``. The base loss is the non-saturating one, with A not differentiated.

    Metrics of the energy step: ``kale`` (the Fenchel value ``1 - E_P[E] - A - E_B[exp(-(E + A))]`` at these E and A),
    ``log_partition`` (A), ``energy_data``, ``energy_base``, ``weight_ess``.
    """

    serves_classes = True

    def __init__(self) -> None:
        super().__init__()
        self.log_partition = nn.Parameter(torch.zeros(()))

    def energy_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        energies = batch_energies(model, batch)
        with torch.no_grad():
            log_partition = self.log_partition.detach().clone()
            on_data, on_base = energies.data + log_partition, energies.base + log_partition
            log_mean_weight, relative = weights(-on_base)
            metrics = {"log_partition": log_partition, **energy_metrics(energies, relative)}
            metrics["kale"] = 1.0 - metrics["energy_data"] - log_partition - exp_linear(log_mean_weight).value
            value = reduce.mean(softplus(on_data)) + reduce.mean(softplus(-on_base))
            on_data, on_base = torch.sigmoid(on_data), -torch.sigmoid(-on_base)
        loss = with_gradient(value, energies, on_data, on_base)
        loss = loss + (on_data.mean() + on_base.mean()) * (self.log_partition - log_partition)
        return LossTerms(loss, metrics)

    def base_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        on_base = model.energy_at(batch.x_base, batch.base_labels) + self.log_partition.detach()
        return LossTerms(reduce.mean(softplus(on_base)))

    def log_partition_estimate(self) -> Tensor:
        return self.log_partition.detach()

    @torch.no_grad()
    def initialise(self, energy_base: Tensor) -> None:
        self.log_partition.copy_(reduce.log_mean_exp(-energy_base))
