"""Building blocks of the losses whose critic is a log density ratio.

Notation: E_P[.] is a mean over data, E_B[.] a mean over base draws, A the log-partition, and r = E_B[exp(-(E + A))], which
is 1 when A is right. Every mean is estimated over the global batch (core/reduce.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from gebm_kit.core import reduce
from gebm_kit.core.classes import joined
from gebm_kit.core.contracts import check_energy_output
from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Batch, Loss
from gebm_kit.core.model import GEBM

EXPONENT_LIMIT = 20.0
"""Exponent from which `exp_linear` continues as a straight line. e^20 = 5e8 is far above any r of a healthy run and far
below overflow."""


class BatchLogPartition(Loss):
    """A loss whose A is that of the batch, a buffer that no gradient trains.

    A subclass registers the buffer ``log_partition``, (), and returns the new A as the metric of that name.
    """

    log_partition: Tensor

    def log_partition_estimate(self) -> Tensor:
        return self.log_partition

    @torch.no_grad()
    def initialise(self, energy_base: Tensor) -> None:
        self.log_partition.copy_(reduce.log_mean_exp(-energy_base))

    @torch.no_grad()
    def after_energy_step(self, metrics: Mapping[str, Tensor]) -> None:
        self.log_partition.copy_(metrics["log_partition"])


class Energies(NamedTuple):
    """The energies of one batch.

    Attributes:
        joint: energies of data and base draws together, (2B,), with gradient.
        data, base: the two halves of ``joint``, (B,) each, without gradient.
    """

    joint: Tensor
    data: Tensor
    base: Tensor


def batch_energies(model: GEBM, batch: Batch, others: Tensor | None = None) -> Energies:
    """Evaluate E on data and base draws in a single forward pass of ``cat([x, x_base])``; the base gets no gradient.

    Args:
        model: base and energy.
        batch: data and base draws.
        others: rows, (B, *D), that replace the base draws, for a loss that compares the data with something else.

    Raises:
        UsageError: the batch has no data.
        PluginError: the energy does not return one number per row.
    """
    if batch.x is None:
        raise UsageError("the energy step needs data, and the batch has none")
    labels = joined(batch.labels, batch.base_labels) if others is None else None
    others = batch.x_base if others is None else others
    rows = torch.cat([batch.x, others.detach().to(batch.x.dtype)])
    joint: Tensor = model.energy_at(rows, labels)
    check_energy_output(model.energy, joint, rows.shape[0])
    data, base = joint.detach().split([batch.x.shape[0], others.shape[0]])
    return Energies(joint, data, base)


def with_gradient(value: Tensor, energies: Energies, on_data: Tensor, on_base: Tensor) -> Tensor:
    """Return the scalar ``value``, (), with the derivative ``mean_i c_i dE_i``: a mean over data plus one over base draws.

    ``on_data`` and ``on_base`` hold c, (B,) each. The losses here are short formulas in the energies with known
    derivatives. Written out, a derivative costs three nodes of the autograd graph instead of a dozen, and small models
    spend their time on such nodes. Means over each rank's rows are the convention of core/reduce.py.
    """
    coefficients = torch.cat([on_data / on_data.shape[0], on_base / on_base.shape[0]])
    return value + torch.dot(coefficients, energies.joint - energies.joint.detach())


class Weights(NamedTuple):
    """The importance weights exp(t) of base draws.

    Attributes:
        log_mean: ``log mean exp(t)`` over the global batch, ().
        relative: ``exp(t - log_mean)``, (B,).
    """

    log_mean: Tensor
    relative: Tensor


def weights(log_weights: Tensor) -> Weights:
    """Return the `Weights` exp(``log_weights``), (B,). Over the global batch the relative weights have mean 1."""
    log_mean = reduce.log_mean_exp(log_weights)
    return Weights(log_mean, torch.exp(log_weights - log_mean))


class ExpLinear(NamedTuple):
    """The value and the derivative of `exp_linear`."""

    value: Tensor
    slope: Tensor


def exp_linear(exponent: Tensor) -> ExpLinear:
    """Return ``exp(t)`` for t <= 20, continued by its tangent, and the derivative. Both are finite; the value increases.

    Without the tangent a single draw with an energy far below -A would overflow the loss before A can follow.
    """
    slope = torch.exp(exponent.clamp(max=EXPONENT_LIMIT))
    return ExpLinear(torch.addcmul(slope, slope, torch.relu(exponent - EXPONENT_LIMIT)), slope)


def energy_metrics(energies: Energies, relative_weights: Tensor) -> dict[str, Tensor]:
    """Return the mean energies and ``weight_ess``, the weights' effective sample size over their number, in (0, 1].

    ``weight_ess`` is ``1 / mean((w / mean w)^2)``. When it is close to 0, a few draws have most of the weight, and the
    energy is too sharp for this base.
    """
    return {
        "energy_data": reduce.mean(energies.data),
        "energy_base": reduce.mean(energies.base),
        "weight_ess": reduce.mean(relative_weights.square()).reciprocal(),
    }


def kale_base_loss(model: GEBM, batch: Batch) -> Tensor:
    """Return ``-log mean exp(-E(G(z)))`` over the global batch, ().

    Its gradient is that of KALE(P||B) with respect to the base, ``sum_i w_i grad E(G(z_i))`` with w = softmax(-E).
    """
    return -reduce.log_mean_exp(-model.energy_at(batch.x_base, batch.base_labels))


def unknown() -> Tensor:
    """Return a scalar that is NaN, for a buffer that is not set yet."""
    return torch.tensor(math.nan)
