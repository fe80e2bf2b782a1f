"""Objectives of the base alone: pretraining, and the reference that a tilted model is held against.

References:
    Auto-Encoding Variational Bayes. D. P. Kingma, M. Welling, ICLR 2014. https://arxiv.org/abs/1312.6114 (the ELBO)
"""

from __future__ import annotations

from torch import Tensor

from gebm_kit.core import reduce
from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Batch, HasDensity, HasEncoder, HasPretraining, Loss, LossTerms
from gebm_kit.core.model import GEBM


class _BaseAlone(Loss):
    """No energy loss; the base loss reads data. What an untrained energy says is no log density ratio."""

    needs = frozenset()
    base_needs = frozenset({"x"})
    parts = frozenset({"base"})
    log_ratio = False

    def energy_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        raise UsageError(
            "this loss trains the base alone and has none for the energy",
            hint="Set train.part=base, or use a loss such as kale.",
        )


class MaximumLikelihood(_BaseAlone):
    """Base loss ``-E_P[log b(x)]``, for bases that know their density (`HasDensity`), in nats; no energy loss.

    Minimising it is minimising KL(P||B). ``train.part`` must be ``base``.

    Metrics of the base step: ``log_likelihood`` (minus the loss).

    Raises:
        UsageError: (`check`, `base_loss`) the base has no density; the batch has no data.
    """

    def check(self, model: GEBM) -> None:
        if not isinstance(model.base, HasDensity):
            raise UsageError(
                f"loss 'ml' needs a base with a density (log_prob), which {type(model.base).__name__} has not",
                hint="Use a normalizing flow as the base, or a loss that needs draws of it only, such as kale.",
            )

    def base_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        self.check(model)
        assert isinstance(model.base, HasDensity)
        log_likelihood = reduce.mean(model.base.log_prob(_data(batch)))
        return LossTerms(-log_likelihood, {"log_likelihood": log_likelihood.detach()})


class Elbo(_BaseAlone):
    """Base loss ``-E_P[ELBO(x)]``, for bases with an encoder and a loss of their own (`HasEncoder`, `HasPretraining`).

    ``ELBO(x) = E_{z ~ q(z|x)}[log p(x|z)] - KL(q(z|x) || eta) <= log b(x)``. What q is, is the base's own affair: the value
    is its `pretraining_loss`, averaged over ranks. There is no energy loss; ``train.part`` must be ``base``.

    Metrics of the base step: ``elbo`` (minus the loss).

    Raises:
        UsageError: (`check`, `base_loss`) the base has no encoder or no such loss; the batch has no data.
    """

    def check(self, model: GEBM) -> None:
        if not (isinstance(model.base, HasEncoder) and isinstance(model.base, HasPretraining)):
            raise UsageError(
                f"loss 'elbo' needs a base with an encoder (encode) and a negative ELBO (pretraining_loss), which "
                f"{type(model.base).__name__} has not",
                hint="Use a variational autoencoder as the base, or a loss that needs draws of it only, such as kale.",
            )

    def base_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        self.check(model)
        assert isinstance(model.base, HasPretraining)
        elbo = -reduce.mean(model.base.pretraining_loss(_data(batch)).reshape(1))
        return LossTerms(-elbo, {"elbo": elbo.detach()})


def _data(batch: Batch) -> Tensor:
    if batch.x is None:
        raise UsageError("this loss needs data, and the batch has none")
    return batch.x
