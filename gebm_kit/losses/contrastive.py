"""Contrastive divergence, with chains that start afresh (cd) or persist in a replay buffer (pcd).

References:
    Training Products of Experts by Minimizing Contrastive Divergence. G. E. Hinton, Neural Computation 2002.
    https://doi.org/10.1162/089976602760128018
    Training Restricted Boltzmann Machines using Approximations to the Likelihood Gradient. T. Tieleman, ICML 2008.
    https://doi.org/10.1145/1390156.1390290 (persistent chains)
    Implicit Generation and Modeling with Energy-Based Models. Y. Du, I. Mordatch, NeurIPS 2019.
    https://arxiv.org/abs/1903.08689 (the replay buffer, and its share of 5 % fresh starts)
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

    Negatives are constants here, so the gradient is ``E_P[grad E] - E_neg[grad E]``: that of the log-likelihood, if
    the chains had reached their law.

    ``space: latent``. Chains walk on ``U(z) = -log eta(z) + E(G(z))`` and the negatives are G(z), draws of the model q
    itself. ``-E_q[grad E]`` is ``grad log E_B[exp(-E)]``, so that this is kale-dv with its importance weights replaced by
    MCMC: at the optimum the pushforward of the latent posterior is the data's law, q = P, that is ``-(E + A) = log dP/dB``,
    a log density ratio relative to the base (``log_ratio`` is True). The chains of ``cd`` start from fresh prior draws:
    to start at the data, as contrastive divergence does, would take G's inverse, and for E = 0 the prior is the law that
    the chains should have. Short chains stay near the base: the energy then tilts too much, by as much as they fall
    short.

    ``space: data``. Chains walk on E(x) alone, in data space, and start at the batch's data (contrastive divergence as it
    was published). The base plays no part: at the optimum ``exp(-E)`` is proportional to the data's own density, and E is
    no log-ratio to the base (``log_ratio`` is False). Drawing from such a model, ``exp(-E) B``, is warned of.

    Args:
        space: where the chains walk.
        sampler: name of a registered kernel, ``mala``, ``ula`` or another that has a step size.
        step_size: of that kernel; with mala and ula a squared length, in units of the prior's variance in latent space and
            of the data's in data space. ``negatives_acceptance`` in the log says whether it fits: 0.5 to 0.9 with mala.
        steps: of each chain, at every energy step; each costs a gradient of the energy (and of the base in latent space).

    Metrics of the energy step: ``energy_data``, ``energy_negatives``, ``contrast`` (the loss); in latent space also
    ``energy_base``, ``kale``, ``log_partition`` and ``weight_ess``, from importance weights of base draws; from the chains
    ``negatives_acceptance``, ``negatives_diverged``, ``negatives_replaced`` (shares).

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
    """`cd` whose chains go on where they were: their states wait in a replay buffer from one energy step to the next.

    Each energy step takes as many states from the buffer as the batch has rows, at random and without repetition, starts a
    share ``restart`` of them afresh, moves all of them, and puts them back. With a slowly changing energy they follow its
    law without the bias of chains that are short.

    Those that start afresh do so at the base (prior draws in latent space, base draws in data space), or with
    ``restart_at: data`` at the batch's data, in latent space at their codes ``G^-1(x)``. Data are draws of the model where
    it has arrived, and then leave the chains' law as it is, which prior draws do only where E = 0. Before that they
    show the chains at once where the energy is low, if that is a place that no chain would find, and pull negatives
    towards the data: the more, the larger ``restart`` is and the fewer the steps are, down to contrastive divergence as
    it was published.

    The buffer is filled from the base before training and again before the final phase. States with a
    non-finite position or energy never return to it: fresh ones take their place. Under torchrun all ranks share
    one buffer.

    Losses, spaces, metrics and what the energy means are those of ``cd``.

    Args:
        space: where the chains walk.
        sampler: name of a registered kernel with a step size.
        step_size: of that kernel, as in ``cd``.
        steps: of each chain, at every energy step.
        buffer_size: states in the buffer, at least as many as a batch has rows.
        restart: share of the chains that start afresh at each energy step.
        restart_at: where they do; ``data`` in latent space needs a base with an inverse and a standard normal prior.

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
