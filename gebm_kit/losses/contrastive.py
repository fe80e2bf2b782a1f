"""Contrastive divergence, with chains that start afresh (cd) or persist in a replay buffer (pcd).

References:
    Training Products of Experts by Minimizing Contrastive Divergence. G. E. Hinton, Neural Computation 2002.
    https://doi.org/10.1162/089976602760128018
    Training Restricted Boltzmann Machines using Approximations to the Likelihood Gradient. T. Tieleman, ICML 2008.
    https://doi.org/10.1145/1390156.1390290 (persistent chains)
    Implicit Generation and Modeling with Energy-Based Models. Y. Du, I. Mordatch, NeurIPS 2019.
    https://arxiv.org/abs/1903.08689 (the replay buffer, with 5 % of fresh starts)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from torch import Tensor

from gebm_kit.core import reduce
from gebm_kit.core.components import Range, check_arguments
from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Batch, Loss, LossTerms, NegativeSettings
from gebm_kit.core.model import GEBM
from gebm_kit.losses.density_ratio import (
    Energies,
    batch_energies,
    energy_metrics,
    kale_base_loss,
    unknown,
    weights,
    with_gradient,
)

Space = Literal["latent", "data"]
Steps = Annotated[int, Range(1, None)]
StepSize = Annotated[float, Range(0, None, low_open=True)]


class ContrastiveDivergence(Loss):
    """Energy loss ``E_P[E] - E_neg[E]``, negatives from short MCMC chains; base loss ``-log mean exp(-E(G(z)))``.

    The negatives are constants, so the gradient is ``E_P[grad E] - E_neg[grad E]``. It would be that of the log-likelihood
    if the chains had converged.

    ``space: latent``. Chains move on ``U(z) = -log eta(z) + E(G(z))``, and the negatives are G(z), draws of the model q
    itself. Because ``-E_q[grad E]`` is ``grad log E_B[exp(-E)]``, this loss is kale-dv with MCMC in place of importance
    weights. At the optimum the pushforward of the latent posterior is the data's law, q = P. Hence
    ``-(E + A) = log dP/dB``, a log density ratio relative to the base (``log_ratio`` is True). The chains of ``cd`` start
    from fresh prior draws. Starting at the data, as contrastive divergence does, would need G's inverse; and for E = 0
    the prior is the law that the chains should have. Short chains stay near the base. The energy then tilts too much, by
    as much as the chains fall short.

    ``space: data``. Chains move on E(x) alone, in data space, and start at the batch's data, as in published contrastive
    divergence. The base plays no part. At the optimum ``exp(-E)`` is proportional to the data's own density, so E is not
    a log-ratio to the base (``log_ratio`` is False). Drawing from ``exp(-E) B``, as the kit does, then gives a warning.

    Args:
        space: where the chains move.
        sampler: name of a registered kernel, such as ``mala`` or ``ula``; in data space one with a step size.
        step_size: step size of that kernel. For mala and ula it is a squared length, in units of the prior's variance in
            latent space and of the data's variance in data space. With mala it fits when ``negatives_acceptance`` in the
            log is 0.5 to 0.9.
        steps: steps of each chain at every energy step. Each costs a gradient of the energy, in latent space also of the
            base.

    Metrics of the energy step: ``energy_data``, ``energy_negatives``, ``contrast`` (the loss). In latent space also
    ``energy_base``, ``kale``, ``log_partition`` and ``weight_ess``, from importance weights of base draws. From the chains
    the shares ``negatives_acceptance``, ``negatives_diverged`` and ``negatives_replaced``.

    Raises:
        UsageError: an argument is outside its range.
    """

    log_partition: Tensor

    def __init__(
        self,
        space: Space = "latent",
        sampler: str = "mala",
        step_size: StepSize = 0.05,
        steps: Steps = 10,
    ) -> None:
        super().__init__()
        check_arguments(self, space=space, step_size=step_size, steps=steps)
        self._set_up(NegativeSettings(space, sampler, float(step_size), steps))

    def _set_up(self, settings: NegativeSettings) -> None:
        self.negatives = settings
        self.log_ratio = settings.space == "latent"
        needs = {"x", "negatives"}
        self.needs = frozenset(needs | {"x_base"} if self.log_ratio else needs)
        self.register_buffer("log_partition", unknown())

    def energy_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        if batch.negatives is None:
            raise UsageError("contrastive divergence needs negatives, and the batch has none")
        energies = batch_energies(model, batch, others=batch.negatives)
        with torch.no_grad():
            means = {"energy_data": reduce.mean(energies.data), "energy_negatives": reduce.mean(energies.base)}
            metrics = means | {"contrast": means["energy_data"] - means["energy_negatives"]}
            if self.log_ratio:
                on_base = model.energy(batch.x_base.detach())
                log_mean, relative = weights(-on_base)
                metrics |= energy_metrics(Energies(energies.joint, energies.data, on_base), relative)
                metrics |= {"log_partition": log_mean, "kale": -means["energy_data"] - log_mean}
            ones = torch.ones_like(energies.data), torch.ones_like(energies.base)
        return LossTerms(with_gradient(metrics["contrast"], energies, ones[0], -ones[1]), metrics)

    def base_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        return LossTerms(kale_base_loss(model, batch))

    def log_partition_estimate(self) -> Tensor | None:
        return self.log_partition if self.log_ratio else None

    @torch.no_grad()
    def initialise(self, energy_base: Tensor) -> None:
        self.log_partition.copy_(reduce.log_mean_exp(-energy_base))

    @torch.no_grad()
    def after_energy_step(self, metrics: Mapping[str, Tensor]) -> None:
        if self.log_ratio:
            self.log_partition.copy_(metrics["log_partition"])


class PersistentContrastiveDivergence(ContrastiveDivergence):
    """``cd`` with persistent chains: their states are kept in a replay buffer from one energy step to the next.

    Each energy step takes as many states from the buffer as the batch has rows, at random and without repetition. It
    restarts a share ``restart`` of them, moves all of them and puts them back. When the energy changes slowly, the chains
    follow its law without the bias of short chains.

    Chains restart at the base: at prior draws in latent space, at base draws in data space. With ``restart_at: data`` they
    restart at the batch's data, in latent space at the data's codes ``G^-1(x)``. Once the model has converged, data are
    draws of it and do not change the chains' law; prior draws leave that law as it is only where E = 0. Before that,
    restarts at data show the chains at once where the energy is low, even in places that no chain would find. They also
    pull the negatives toward the data. That pull is stronger for a larger ``restart`` and fewer steps; its limit is
    contrastive divergence as published.

    The buffer is filled from the base before training and again before the final phase. States with a non-finite position
    or energy never return to the buffer; fresh ones replace them. Under torchrun all ranks share one buffer.

    Losses, spaces, metrics and the meaning of the energy are those of ``cd``.

    Args:
        space: where the chains move.
        sampler: name of a registered kernel; in data space one with a step size.
        step_size: step size of that kernel, as in ``cd``.
        steps: steps of each chain at every energy step.
        buffer_size: number of states in the buffer, at least as many as a batch has rows.
        restart: share of the chains that restart at each energy step.
        restart_at: where they restart; ``data`` in latent space needs a base with an inverse and a standard normal prior.

    Raises:
        UsageError: an argument is outside its range.
    """

    def __init__(
        self,
        space: Space = "latent",
        sampler: str = "mala",
        step_size: StepSize = 0.05,
        steps: Steps = 5,
        buffer_size: Annotated[int, Range(1, None)] = 5000,
        restart: Annotated[float, Range(0, 1)] = 0.05,
        restart_at: Literal["base", "data"] = "base",
    ) -> None:
        Loss.__init__(self)
        check_arguments(
            self,
            space=space,
            step_size=step_size,
            steps=steps,
            buffer_size=buffer_size,
            restart=restart,
            restart_at=restart_at,
        )
        self._set_up(NegativeSettings(space, sampler, float(step_size), steps, buffer_size, float(restart), restart_at))
