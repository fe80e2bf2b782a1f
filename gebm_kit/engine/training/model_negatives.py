"""Negatives from the model itself in the energy's updates of any density-ratio loss (``train.negatives``).

The gradient of the log-partition is ``-grad log E_B[exp(-E)] = E_q[grad E]``, q the model's law. The losses estimate it with
weighted base draws. Where base draws never come, a dip of the energy costs them nothing, and chains later end there.
Persistent latent chains do find such dips. With a share s of them, an energy update minimises

    (1 - s) L(E) + s C(E),      C(E) = E_P[E] - E_neg[E],

with the negatives held fixed. So the gradient is ``(1 - s) grad L + s (E_P[grad E] - E_neg[grad E])``.

*The fixed point stays.* Let ``E* = -log dP/dB + const``. For a loss whose critic is a log density ratio, E* (with its A,
where A is learned) minimises L over all functions, so ``grad L(E*) = 0`` in any parameters that can represent it. The
model's law at E* is ``q(dx) ∝ exp(-E*) B(dx) = P(dx)``. With negatives from q then
``grad C(E*) = E_P[grad E*] - E_q[grad E*] = 0``. Both terms vanish at E* for every s, and A's own condition does not
contain C.

*No other one comes.* With negatives from q, grad C is at every E the gradient of ``D(E) = E_P[E] + log E_B[exp(-E)]``,
the loss ``kale-dv``, which is convex in E. ``kale``, ``logistic`` and ``relativistic`` are convex too. So the updates
follow the gradient of the convex ``(1 - s) L + s D``, whose minima are those that both terms have: E* up to a constant.
(``smile`` clips its weights. Its own fixed point is E* where the log-ratio stays within the clip.)

*For L = kale-dv nothing is mixed but two estimates:* one gradient, by importance weights and by chains.

Chains that have not converged bias C, not L: the smaller s, the smaller the bias of the energy.

References:
    Training Restricted Boltzmann Machines using Approximations to the Likelihood Gradient. T. Tieleman, ICML 2008.
    https://doi.org/10.1145/1390156.1390290 (persistent chains)
    Generalized Energy Based Models. M. Arbel, L. Zhou, A. Gretton, ICLR 2021. https://arxiv.org/abs/2003.05033
    (the gradient of the log-partition, and its estimate from base draws)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gebm_kit.config.schema import TrainSection
from gebm_kit.core import reduce
from gebm_kit.core.contracts import check_energy_output
from gebm_kit.core.errors import RecipeError, UsageError
from gebm_kit.core.interfaces import Batch, Loss, LossTerms, NegativeSettings, Penalty
from gebm_kit.core.model import GEBM
from gebm_kit.engine.training.negatives import ChainKeys, NegativeChains

CHAINS_PER_ROW = 8
"""Number of chains for each row of a batch where the recipe names none: each is then moved in every eighth update."""


def mixed(terms: LossTerms, model: GEBM, batch: Batch, chains: NegativeChains | None) -> LossTerms:
    """Mix the terms of a loss with those of the chains: ``(1 - s) L + s (E_P[E] - E_neg[E])``, over the global batch.

    Data and negatives pass through the energy together. The metrics of the loss stay; ``energy_negatives`` joins them.
    Without chains, and with chains that the loss itself reads, the terms are returned as they are.

    Raises:
        UsageError: the batch has no data, or no negatives.
        PluginError: the energy does not return one number per row.
    """
    if chains is None or not chains.share:
        return terms
    if batch.x is None or batch.negatives is None:
        raise UsageError("train.negatives compares data with chains, and the batch lacks one of them")
    rows = torch.cat([batch.x, batch.negatives.detach().to(batch.x.dtype)])
    joint: Tensor = model.energy(rows)
    check_energy_output(model.energy, joint, len(rows))
    energies = joint.to(torch.promote_types(joint.dtype, torch.float32))
    data, negatives = (reduce.mean(part) for part in energies.split([len(batch.x), len(batch.negatives)]))
    metrics = {**terms.metrics, "energy_negatives": negatives.detach()}
    return LossTerms((1.0 - chains.share) * terms.loss + chains.share * (data - negatives), metrics)


def chains_of(
    loss: Loss,
    settings: TrainSection,
    model: GEBM,
    value_range: tuple[float, float] | None,
    device: torch.device,
    dtype: torch.dtype,
    *,
    final: bool = False,
) -> NegativeChains | None:
    """Make the chains of a phase, None if it has none: those that the loss asks for, or those of ``train.negatives``.

    Args:
        final: whether the phase is the final one, which may have settings of its own.

    Raises:
        RecipeError: the share of the negatives is above 0, and the loss has chains of its own or no log density ratio for
            its energy; or as for `NegativeChains`.
        UsageError: as for `NegativeChains.check`.
    """
    section = settings.final_negatives if final else settings.negatives
    largest = max(settings.batch_size, settings.final.batch_size or 0)
    if not section.share:
        if loss.negatives is None:
            return None
        made = NegativeChains(loss.negatives, largest, value_range, settings.seed, device, dtype)
        made.check(model)
        return made
    key = "train.final.negatives" if final else "train.negatives"
    seen, name = f"{key}.share is {section.share}", type(loss).__name__
    if loss.negatives is not None:
        raise RecipeError(f"{seen}, and the loss {name} has chains of its own; allowed: 0")
    if not loss.log_ratio:
        raise RecipeError(
            f"{seen}, and the energy of the loss {name} is not a log density ratio, so its minimum would move; allowed: 0",
            hint="Use a loss such as kale, kale-dv, smile, logistic or relativistic.",
        )
    asked = NegativeSettings(
        "latent",
        section.sampler,
        section.step_size,
        section.steps,
        buffer_size=CHAINS_PER_ROW * largest if section.chains is None else section.chains,
        restart=section.restart,
        adapt=section.adapt,
    )
    keys = ChainKeys(key, f"{key}.chains")
    return NegativeChains(asked, largest, value_range, settings.seed, device, dtype, keys, section.share)


def check_penalties(key: str, penalties: Sequence[Penalty], chains: NegativeChains | None) -> None:
    """Refuse penalties on the chains' states in a phase that has no chains.

    Args:
        key: the recipe key of the phase's penalties.

    Raises:
        RecipeError: there is such a penalty; the message names it.
    """
    for penalty in penalties:
        if chains is None and "negatives" in penalty.needs:
            raise RecipeError(
                f"{key}: the penalty {type(penalty).__name__} acts on negatives, and this phase draws none",
                hint=f"Set {key.replace('penalty', 'negatives')}.share above 0, use a loss with chains such as pcd, or let "
                "the penalty act on base draws.",
            )
