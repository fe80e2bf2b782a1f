"""FLO: KALE's Fenchel form with a second scalar network in place of the constant A.

References:
    Tight Mutual Information Estimation With Contrastive Fenchel-Legendre Optimization. Q. Guo et al., NeurIPS 2022.
    https://arxiv.org/abs/2107.01131 (Section 3: the FLO bound, for pairs (x, y))
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

import torch
from torch import Tensor, nn

from gebm_kit.core import reduce
from gebm_kit.core.components import Injected, Range, check_arguments
from gebm_kit.core.interfaces import Batch, Loss, LossTerms
from gebm_kit.core.layers import Readout, check_sizes
from gebm_kit.core.model import GEBM
from gebm_kit.losses.density_ratio import (
    batch_energies,
    energy_metrics,
    exp_linear,
    kale_base_loss,
    unknown,
    weights,
    with_gradient,
)


class Flo(Loss):
    """Energy loss ``E_P[E + v] + r - 1``, ``r = E_P[exp(-v)] E_B[exp(-E)]``, v(x) a scalar network; base loss as kale's.

    Derivation. Donsker and Varadhan's formula is ``KL(P||B) = max_E -E_P[E] - log E_B[exp(-E)]``. Take the second term
    inside the expectation over P. For each data point x, with x' from the base, this gives

        KL >= E_P[-log t(x)],        t(x) = exp(E(x)) E_B[exp(-E(x'))] = E_B[exp(E(x) - E(x'))].

    The logarithm biases an estimate from a batch. Its Fenchel dual removes it: -log is convex, and

        -log t = max_u  1 - u - t exp(-u),          attained at u = log t.

    A function u(x) takes the maximum for every x at once, which gives the FLO bound

        KL >= 1 - E_P[ u(x) + exp(-u(x)) E_B[exp(E(x) - E(x'))] ],        best at u(x) = E(x) + log E_B[exp(-E)].

    So u is E plus a term that is A at the optimum. With u(x) = E(x) + v(x) the second term is a product of two
    expectations:

        -bound = E_P[E(x) + v(x)] + E_P[exp(-v(x))] E_B[exp(-E(x'))] - 1.

    This is kale's Fenchel form with the network v in place of the constant A; the two are equal where v is constant. Data
    and base draws of a batch are independent, so the value and the gradients in (E, v) are unbiased. At the optimum v = A
    and E + A = -log dP/dB. During training v(x) absorbs how far E is ahead of or behind A at x. The paper finds this less
    noisy at large KL than one constant.

    v is a fully connected network on flattened data plus a constant, ``v(x) = a + w . h(x / s)``. It starts at w = 0 and
    a = ``log mean exp(-E)``. The energy's optimiser trains it, and it is saved with the loss.

    Args:
        hidden: widths of v's hidden layers; empty for an affine v.
        data_scale: s, the rough size of the data's coordinates, which are divided by it.
        data_shape: ``*D``.

    Metrics of the energy step: ``kale`` (minus the loss), ``log_partition`` (``-log E_P[exp(-v)]``, the constant that
    would give the same r), ``log_mean_weight`` (log r), ``energy_data``, ``energy_base``, ``weight_ess``.

    Raises:
        RecipeError: a width is below 1.
        UsageError: ``data_scale`` is not positive.
    """

    log_partition: Tensor
    serves_classes = True

    def __init__(
        self,
        hidden: list[int] = [64, 64],  # noqa: B006  (read only)
        data_scale: Annotated[float, Range(0, None, low_open=True)] = 1.0,
        *,
        data_shape: Annotated[tuple[int, ...], Injected],
    ) -> None:
        super().__init__()
        check_arguments(self, data_scale=data_scale)
        check_sizes("hidden", hidden)
        self.data_scale = float(data_scale)
        layers: list[nn.Module] = []
        size = math.prod(data_shape)
        for width in hidden:
            layers += [nn.Linear(size, width), nn.SiLU()]
            size = width
        self.layers = nn.Sequential(*layers)
        self.readout = Readout(size)
        self.constant = nn.Parameter(torch.zeros(()))
        with torch.no_grad():
            self._flatten(self.constant)
        self.register_buffer("log_partition", unknown())

    def v(self, x: Tensor) -> Tensor:
        """Evaluate the network that replaces A; (B, *D) -> (B,)."""
        x = x.flatten(1)
        if self.data_scale != 1.0:
            x = x / self.data_scale
        value: Tensor = self.constant + self.readout(self.layers(x))
        return value

    def energy_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        energies = batch_energies(model, batch)
        assert batch.x is not None  # batch_energies has checked it
        v = self.v(batch.x)
        with torch.no_grad():
            log_partition, relative_v = weights(-v)
            log_partition = -log_partition
            log_mean, relative = weights(-energies.base)
            log_mean_weight = log_mean - log_partition
            r, slope = exp_linear(log_mean_weight)
            metrics = {
                "log_partition": log_partition,
                "log_mean_weight": log_mean_weight,
                **energy_metrics(energies, relative),
            }
            value = metrics["energy_data"] + reduce.mean(v) + r - 1.0
            metrics["kale"] = -value
            on_v = (1.0 - slope * relative_v) / len(v)
        loss = with_gradient(value, energies, torch.ones_like(energies.data), -slope * relative)
        return LossTerms(loss + torch.dot(on_v, v - v.detach()), metrics)

    def base_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        return LossTerms(kale_base_loss(model, batch))

    def log_partition_estimate(self) -> Tensor:
        return self.log_partition

    @torch.no_grad()
    def initialise(self, energy_base: Tensor) -> None:
        best = reduce.log_mean_exp(-energy_base)
        self._flatten(best)
        self.log_partition.copy_(best)

    @torch.no_grad()
    def after_energy_step(self, metrics: Mapping[str, Tensor]) -> None:
        self.log_partition.copy_(metrics["log_partition"])

    def _flatten(self, level: Tensor) -> None:
        """Set v(x) = ``level`` for every x."""
        for weight in self.readout.parameters():
            weight.zero_()
        self.constant.copy_(level)
