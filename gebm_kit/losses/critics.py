"""The critics of GANs, for comparison: their optimal energy is not a log density ratio.

The base follows the critic as a GAN's generator does. The weights exp(-E) have no meaning for the base, so drawing from
a model that was trained by these losses gives a warning.

References:
    Geometric GAN. J. H. Lim, J. C. Ye, 2017. https://arxiv.org/abs/1705.02894 (the hinge loss)
    Wasserstein GAN. M. Arjovsky, S. Chintala, L. Bottou, ICML 2017. https://arxiv.org/abs/1701.07875
    Improved Training of Wasserstein GANs. I. Gulrajani et al., NeurIPS 2017. https://arxiv.org/abs/1704.00028
"""

from __future__ import annotations

import torch
from torch import Tensor

from gebm_kit.core import reduce
from gebm_kit.core.interfaces import Batch, Loss, LossTerms
from gebm_kit.core.model import GEBM
from gebm_kit.losses.density_ratio import Energies, batch_energies, with_gradient


class _Critic(Loss):
    """The base loss ``E_B[E]``, by which the base moves to where the critic is low."""

    log_ratio = False
    serves_classes = True

    def base_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        return LossTerms(reduce.mean(model.energy_at(batch.x_base, batch.base_labels)))


class Hinge(_Critic):
    """Energy loss ``E_P[relu(1 + E)] + E_B[relu(1 - E)]``, base loss ``E_B[E]``.

    For fixed P and B the optimal energy is -1 where P is denser and 1 where B is. That is a classifier's decision and not
    a log-ratio (``log_ratio`` is False). A and KALE have no meaning here.

    Metrics of the energy step: ``energy_data``, ``energy_base``, and ``inside_margin``, the share of data and base draws
    that still give a gradient.
    """

    def energy_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        energies = batch_energies(model, batch)
        with torch.no_grad():
            on_data, on_base = (energies.data > -1.0).to(energies.data), (energies.base < 1.0).to(energies.base)
            value = reduce.mean(torch.relu(1.0 + energies.data)) + reduce.mean(torch.relu(1.0 - energies.base))
            metrics = _means(energies) | {"inside_margin": 0.5 * (reduce.mean(on_data) + reduce.mean(on_base))}
        return LossTerms(with_gradient(value, energies, on_data, -on_base), metrics)


class Wasserstein(_Critic):
    """Energy loss ``E_P[E] - E_B[E]``, base loss ``E_B[E]``.

    Minus the minimum over 1-Lipschitz energies is the Wasserstein-1 distance of P and B (Kantorovich and Rubinstein). The
    optimal energy is a transport potential and not a log-ratio (``log_ratio`` is False). Without a bound on the energy's
    slope the loss has no minimum. Use it with ``train.penalty: {name: gradient, weight: 10, centre: 1}``, or with an energy
    that has ``spectral_norm: true``.

    Metrics of the energy step: ``wasserstein`` (minus the loss), ``energy_data``, ``energy_base``.
    """

    def energy_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        energies = batch_energies(model, batch)
        with torch.no_grad():
            metrics = _means(energies)
            metrics["wasserstein"] = metrics["energy_base"] - metrics["energy_data"]
            ones = torch.ones_like(energies.data), torch.ones_like(energies.base)
        return LossTerms(with_gradient(-metrics["wasserstein"], energies, ones[0], -ones[1]), metrics)


def _means(energies: Energies) -> dict[str, Tensor]:
    return {"energy_data": reduce.mean(energies.data), "energy_base": reduce.mean(energies.base)}
