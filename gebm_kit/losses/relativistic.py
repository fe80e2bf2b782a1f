"""Relativistic pairs: a classifier that says which of two points is data, used as an energy.

References:
    The relativistic discriminator: a key element missing from standard GAN. A. Jolicoeur-Martineau, ICLR 2019.
    https://arxiv.org/abs/1807.00734 (Section 4.1: one point against another, RSGAN)
    The GAN is dead; long live the GAN! A Modern Baseline GAN. Y. Huang, A. Gokaslan, V. Kuleshov, J. Tompkin, NeurIPS 2024.
    https://arxiv.org/abs/2501.05441 (R3GAN: this loss with the penalties R1 and R2)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from gebm_kit.core import reduce
from gebm_kit.core.classes import joined
from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Batch, LossTerms
from gebm_kit.core.model import GEBM
from gebm_kit.losses.density_ratio import (
    BatchLogPartition,
    Energies,
    batch_energies,
    energy_metrics,
    unknown,
    weights,
    with_gradient,
)

PAIRS_AT_ONCE = 2**20
"""Most pairs in memory at once. A batch of 1,024 takes one pass; larger batches take several, in the same memory."""


class Relativistic(BatchLogPartition):
    """Energy loss ``E_{P x B}[softplus(E(x) - E(G(z)))]``, base loss the same with the roles exchanged.

    Derivation. Take a data point and a base draw in random order. With ``r = log dP/dB``, the first of (a, b) is the data
    point with probability

        p(a) b(b) / (p(a) b(b) + p(b) b(a)) = sigmoid(r(a) - r(b)).

    The energy loss is the cross-entropy of the classifier ``sigmoid(E(b) - E(a))``. At its optimum ``E = -r`` up to a
    constant, so this critic is a log density ratio. At E = 0 the loss is log 2. The published loss takes one base draw for
    each data point. Here the mean runs over all N^2 pairs of the global batch, which cost no more evaluations of E.

    The base loss ``E_{P x B}[softplus(E(G(z)) - E(x))]`` is the non-saturating one. It reads data too: base draws must have
    lower energies than the data beside them, not than a fixed level. Nothing in either loss depends on the energy's level.

    Every term grows at most linearly in E. With the penalties ``r1`` and ``r2`` together, training converges locally
    (Huang et al., Section 3); with neither it may not. The loss has no A of its own: A is the estimate
    ``log mean exp(-E)`` of the last batch.

    Metrics of the energy step: ``pairs_ordered`` (share of the pairs in which the data point has the lower energy; 0.5 if E
    knows nothing), ``kale`` (Donsker and Varadhan's ``-E_P[E] - log E_B[exp(-E)]`` at this E), ``log_partition``,
    ``energy_data``, ``energy_base``, ``weight_ess``.

    Raises:
        UsageError: the batch of a base step has no data (`base_loss`).
    """

    base_needs = frozenset({"x", "x_base"})
    serves_classes = True

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("log_partition", unknown())

    def energy_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        energies = _in_full_precision(batch_energies(model, batch))
        with torch.no_grad():
            pairs = compare(energies.data, energies.base)
            log_mean, relative = weights(-energies.base)
            metrics = {
                "log_partition": log_mean,
                "pairs_ordered": 1.0 - pairs.first_is_higher,
                **energy_metrics(energies, relative),
            }
            metrics["kale"] = -metrics["energy_data"] - log_mean
        return LossTerms(with_gradient(pairs.value, energies, pairs.on_first, -pairs.on_second), metrics)

    def base_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        if batch.x is None:
            raise UsageError("the base step of relativistic pairs needs data, and the batch has none")
        # one forward pass of both: a batch norm in the energy then sees what it saw in the energy step
        rows = torch.cat([batch.x.detach(), batch.x_base.to(batch.x.dtype)])
        joint = model.energy_at(rows, joined(batch.labels, batch.base_labels))
        data, base = joint.to(_full(joint.dtype)).split([len(batch.x), len(batch.x_base)])
        with torch.no_grad():
            pairs = compare(base, data)
        return LossTerms(pairs.value + torch.dot(pairs.on_first / len(base), base - base.detach()))


class Pairs(NamedTuple):
    """The mean over all pairs of ``softplus(a_i - b_j)``, and its derivatives.

    Attributes:
        value: the mean, ().
        on_first: N times the derivative in a_i, ``mean_j sigmoid(a_i - b_j)``, (B,).
        on_second: minus N times the derivative in b_j, ``mean_i sigmoid(a_i - b_j)``, (B,).
        first_is_higher: share of the pairs with ``a_i > b_j``, (); pairs of equal numbers count one half.
    """

    value: Tensor
    on_first: Tensor
    on_second: Tensor
    first_is_higher: Tensor


@torch.no_grad()
def compare(first: Tensor, second: Tensor) -> Pairs:
    """Compare each number of ``first`` with each of ``second``, over the global batch of N; both are (B,).

    A rank compares its part of the first with all of the second, `PAIRS_AT_ONCE` at a time.
    """
    others = reduce.gather(second)
    sums = torch.zeros_like(others)
    values, slopes, higher = [], [], []
    for part in first.split(max(PAIRS_AT_ONCE // len(others), 1)):
        difference = part.unsqueeze(1) - others
        slope = torch.sigmoid(difference)
        values.append(softplus(difference).mean(1))
        slopes.append(slope.mean(1))
        higher.append(difference.sign().mean(1))
        sums += slope.sum(0)
    reduce.all_reduce(sums)
    return Pairs(
        reduce.mean(torch.cat(values)),
        torch.cat(slopes),
        reduce.share(sums) / (len(first) * reduce.world_size()),
        0.5 * (1.0 + reduce.mean(torch.cat(higher))),
    )


def _full(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _in_full_precision(energies: Energies) -> Energies:
    """Return the energies in float32 if they are narrower: differences of bfloat16 numbers have few digits left."""
    return Energies(*(values.to(_full(values.dtype)) for values in energies))
