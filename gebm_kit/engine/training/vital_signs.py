"""Warnings about known ways in which training goes wrong, computed from the logged scalars, at log steps only."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gebm_kit.core.classes import joined
from gebm_kit.core.interfaces import Batch, Loss
from gebm_kit.core.model import GEBM

FLAT_ENERGY_STD = 1e-2
"""Standard deviation of the energy, in nats, below which the energy distinguishes no points."""


FEW_EFFECTIVE_DRAWS = 2.0
"""Effective number of base draws at or below which the importance weights rest on one or two draws."""


LOG_PARTITION_DRIFT = 3.0
"""Difference between A and its estimate on a batch, in nats, too large for sampling error: a factor of 20."""


LARGEST_LOG_PARTITION = 1e3
"""Absolute value of A, in nats, beyond what the density ratio of a useful model needs."""


NARROW_BASE_SPREAD = 0.2
"""Ratio of the spread of base draws to the spread of data, below which the base misses most of the data's variation."""


LOG_LINES_BEFORE_WARNING = 2
"""Number of consecutive log lines that must show a failure before its warning: a single line may be a bad batch."""


@torch.no_grad()
def vital_signs(model: GEBM, loss: Loss, batch: Batch, plain: Batch, noise: float) -> dict[str, Tensor]:
    """Return scalars that the loss's own metrics do not include, on the rows of an energy step.

    - ``energy_std``: standard deviation of E over data and base draws together;
    - ``base_spread``: square root of the ratio of the total variance of base draws to the total variance of the data, both
      without the instance noise and the augmentation;
    - ``log_mean_weight``: log mean exp(-E) - A over base draws, for losses that estimate A.

    The result is empty if the step has no data. The training state does not change.

    Args:
        batch: rows as the energy saw them.
        plain: the same rows before they were augmented.
        noise: standard deviation of the instance noise in both.
    """
    if batch.x is None or plain.x is None:
        return {}
    training = [part for part in model.energy.modules() if part.training]
    model.energy.eval()
    rows = torch.cat([batch.x, batch.x_base.to(batch.x.dtype)])
    energies = model.energy_at(rows, joined(batch.labels, batch.base_labels)).float()
    for part in training:
        part.training = True
    signs = {
        "energy_std": energies.std(),
        "base_spread": (_variance(plain.x_base, noise) / _variance(plain.x, noise)).sqrt(),
    }
    log_partition = loss.log_partition_estimate()
    if log_partition is not None and loss.log_ratio:
        base = energies[len(batch.x) :]
        signs["log_mean_weight"] = (
            torch.logsumexp(-base, 0) - torch.log(torch.full_like(base[0], len(base))) - log_partition
        )
    return signs


def _variance(rows: Tensor, noise: float) -> Tensor:
    """Return the total variance of the rows minus that of the noise, clamped to 1e-12 or more against rounding."""
    flat = rows.flatten(1).float()
    return (flat.var(0).sum() - flat.shape[1] * noise**2).clamp_min(1e-12)


class VitalSignWarnings:
    """A memory of failures seen in the log, which warns about each one once until it clears up.

    Args:
        start: number of cycles at the start without warnings.
    """

    def __init__(self, start: int) -> None:
        self._start = max(start, 1)
        self._seen: dict[str, int] = {}

    def say(self, step: int, scalars: Mapping[str, float], batch_size: int) -> list[str]:
        """Return the warnings to give at a log step.

        Args:
            step: number of cycles done.
            scalars: scalars of the log line.
            batch_size: number of base draws in an energy step, over all ranks.
        """
        if step <= self._start:
            return []
        found = findings(scalars, batch_size)
        self._seen = {name: self._seen.get(name, 0) + 1 for name in found}
        return [f"step {step}: {text}" for name, text in found.items() if self._seen[name] == LOG_LINES_BEFORE_WARNING]


def findings(scalars: Mapping[str, float], batch_size: int) -> dict[str, str]:
    """Return the failures that a log line shows, by name: a text with the number seen and what to try."""
    found: dict[str, str] = {}
    std = scalars.get("energy_std")
    if std is not None and std < FLAT_ENERGY_STD:
        found["energy collapse"] = (
            f"the energy is flat (its standard deviation over data and base draws is {std:.1e} nats): it neither refines "
            "the base nor teaches it. Unless base draws already look like the data, lower the weight of train.penalty, or "
            "raise optim.energy.lr or train.energy_steps."
        )
    share = scalars.get("weight_ess")
    if share is not None and share * batch_size <= FEW_EFFECTIVE_DRAWS:
        found["one draw"] = (
            f"the importance weights rest on {share * batch_size:.1f} of {batch_size} base draws: the energy is too sharp "
            "for this base, whose gradients now come from single draws. Raise the weight of train.penalty, lower "
            "optim.energy.lr, add train.noise, or use loss=logistic."
        )
    off = scalars.get("log_mean_weight")
    if off is not None and abs(off) > LOG_PARTITION_DRIFT:
        side = "low" if off > 0 else "high"
        found["log-partition off"] = (
            f"the log-partition A drifts: it is {abs(off):.1f} nats too {side} for the base draws of this step. The "
            "energy moves faster than A follows: lower optim.energy.lr, or use loss={name: kale, update: log-ratio}."
        )
    size = scalars.get("log_partition")
    if size is not None and abs(size) > LARGEST_LOG_PARTITION:
        found["log-partition far"] = (
            f"the log-partition A has run away to {size:.3g} nats: the energy's values have no bounds. Raise the weight of "
            "train.penalty, use spectral_norm in the energy, or lower optim.energy.lr."
        )
    spread = scalars.get("base_spread")
    if spread is not None and spread < NARROW_BASE_SPREAD:
        found["base collapse"] = (
            f"base draws vary {spread:.2f} times as much as the data: the base has collapsed to a part of it, and no energy "
            "can put back what the base leaves out. Lower optim.base.lr, raise train.energy_steps or train.batch_size, or "
            "add train.noise."
        )
    return found
