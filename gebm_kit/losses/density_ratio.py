"""What the losses whose critic is a log density ratio share.

Notation: E_P energies of data, E_B energies of base draws, A the log-partition, r = E_B[exp(-(E + A))], which is 1 where
A is right. Everything is an estimate over the global batch (core/reduce.py).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gebm_kit.core import reduce
from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Batch
from gebm_kit.core.model import GEBM

EXPONENT_LIMIT = 20.0
"""Where `exp_linear` turns straight: e^20 = 5e8, far beyond any r of a run that is not broken, far below overflow."""


class Energies(NamedTuple):
    """Energies of one batch.

    Attributes:
        joint: of data and base draws together, (2B,), with gradient.
        data, base: its two halves, (B,) each, without.
    """

    joint: Tensor
    data: Tensor
    base: Tensor


def batch_energies(model: GEBM, batch: Batch, others: Tensor | None = None) -> Energies:
    """E on data and base draws by a single forward pass of ``cat([x, x_base])``; nothing flows back to the base.

    ``others``, (B, *D), take the place of the base draws where a loss holds the data against something else.

    Raises:
        UsageError: the batch has no data, or the energy does not return one number per row.
    """
    if batch.x is None:
        raise UsageError("the energy step needs data, and the batch has none")
    others = batch.x_base if others is None else others
    rows = torch.cat([batch.x, others.detach().to(batch.x.dtype)])
    joint: Tensor = model.energy(rows)
    if joint.shape != (rows.shape[0],):
        raise UsageError(
            f"the energy must return one number per row, shape ({rows.shape[0]},), but returned {tuple(joint.shape)}",
            hint="End the energy's forward with .flatten(1).sum(1) or .squeeze(-1).",
        )
    data, base = joint.detach().split([batch.x.shape[0], others.shape[0]])
    return Energies(joint, data, base)


def with_gradient(value: Tensor, energies: Energies, on_data: Tensor, on_base: Tensor) -> Tensor:
    """The scalar ``value``, () without gradient, with the derivative ``mean_i c_i dE_i`` over data and over base draws.

    on_data and on_base hold c, (B,) each. The losses here are short formulas in the energies whose derivatives are known;
    written out they cost three nodes of the autograd graph instead of a dozen, which is what small models spend their
    time on. Means over each rank's rows are the convention of core/reduce.py.
    """
    coefficients = torch.cat([on_data / on_data.shape[0], on_base / on_base.shape[0]])
    return value + torch.dot(coefficients, energies.joint - energies.joint.detach())


class Weights(NamedTuple):
    """Importance weights of base draws: ``log_mean = log mean exp(t)``, (), and ``relative = exp(t - log_mean)``, (B,)."""

    log_mean: Tensor
    relative: Tensor


def weights(log_weights: Tensor) -> Weights:
    """`Weights` of ``exp(log_weights)`` over the global batch, where the relative ones have mean 1; (B,) -> ()."""
    log_mean = reduce.log_mean_exp(log_weights)
    return Weights(log_mean, torch.exp(log_weights - log_mean))


class ExpLinear(NamedTuple):
    """Value and derivative of `exp_linear`."""

    value: Tensor
    slope: Tensor


def exp_linear(exponent: Tensor) -> ExpLinear:
    """``exp(t)`` for t <= 20, continued by its tangent: finite, increasing, and with a finite derivative everywhere.

    An energy far below -A on a single draw would otherwise overflow the loss before A can follow.
    """
    slope = torch.exp(exponent.clamp(max=EXPONENT_LIMIT))
    return ExpLinear(torch.addcmul(slope, slope, torch.relu(exponent - EXPONENT_LIMIT)), slope)


def energy_metrics(energies: Energies, relative_weights: Tensor) -> dict[str, Tensor]:
    """Mean energies, and the weights' effective sample size over their number, in (0, 1].

    With ``weight_ess = 1 / mean((w / mean w)^2)`` close to 0 the importance weights rest on a few draws: the energy is too
    sharp for this base.
    """
    return {
        "energy_data": reduce.mean(energies.data),
        "energy_base": reduce.mean(energies.base),
        "weight_ess": reduce.mean(relative_weights.square()).reciprocal(),
    }


def kale_base_loss(model: GEBM, batch: Batch) -> Tensor:
    """``-log mean exp(-E(G(z)))`` over the global batch, ().

    Its gradient is that of KALE(P||B) with respect to the base, ``sum_i w_i grad E(G(z_i))`` with w = softmax(-E).
    """
    return -reduce.log_mean_exp(-model.energy(batch.x_base))


def unknown() -> Tensor:
    """A scalar buffer that holds nan until it is first set."""
    return torch.tensor(math.nan)
