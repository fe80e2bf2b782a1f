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
    """Energies of the data and of the base draws of one batch, (B,) each."""

    data: Tensor
    base: Tensor


def batch_energies(model: GEBM, batch: Batch) -> Energies:
    """E on data and base draws by a single forward pass of ``cat([x, x_base])``; nothing flows back to the base.

    Raises:
        UsageError: the batch has no data, or the energy does not return one number per row.
    """
    if batch.x is None:
        raise UsageError("the energy step needs data, and the batch has none")
    rows = torch.cat([batch.x, batch.x_base.detach().to(batch.x.dtype)])
    energy: Tensor = model.energy(rows)
    if energy.shape != (rows.shape[0],):
        raise UsageError(
            f"the energy must return one number per row, shape ({rows.shape[0]},), but returned {tuple(energy.shape)}",
            hint="End the energy's forward with .flatten(1).sum(1) or .squeeze(-1).",
        )
    data, base = energy.split([batch.x.shape[0], batch.x_base.shape[0]])
    return Energies(data, base)


def exp_linear(exponent: Tensor) -> Tensor:
    """``exp(t)`` for t <= 20, continued by its tangent: finite, increasing, and with a finite gradient everywhere.

    An energy far below -A on a single draw would otherwise overflow the loss before A can follow.
    """
    return torch.exp(exponent.clamp(max=EXPONENT_LIMIT)) * (1.0 + torch.relu(exponent - EXPONENT_LIMIT))


def weight_ess(log_weights: Tensor, log_mean_weight: Tensor) -> Tensor:
    """Effective sample size of the weights over their number, in (0, 1]: ``1 / mean((w / mean w)^2)``; (B,), () -> ().

    Close to 0 the importance weights rest on a few draws: the energy is too sharp for this base.
    """
    return 1.0 / reduce.mean(torch.exp(2.0 * (log_weights - log_mean_weight).detach()))


def energy_metrics(energies: Energies, log_weights: Tensor, log_mean_weight: Tensor) -> dict[str, Tensor]:
    """Mean energies and the weights' effective share, detached."""
    return {
        "energy_data": reduce.mean(energies.data.detach()),
        "energy_base": reduce.mean(energies.base.detach()),
        "weight_ess": weight_ess(log_weights, log_mean_weight),
    }


def kale_base_loss(model: GEBM, batch: Batch) -> Tensor:
    """``-log mean exp(-E(G(z)))`` over the global batch, ().

    Its gradient is that of KALE(P||B) with respect to the base, ``sum_i w_i grad E(G(z_i))`` with w = softmax(-E).
    """
    return -reduce.log_mean_exp(-model.energy(batch.x_base))


def unknown() -> Tensor:
    """A scalar buffer that holds nan until it is first set."""
    return torch.tensor(math.nan)
