"""Objectives of the base alone: for pretraining, and as the reference with which a tilted model is compared.

References:
    Auto-Encoding Variational Bayes. D. P. Kingma, M. Welling, ICLR 2014. https://arxiv.org/abs/1312.6114 (the ELBO)
"""

from __future__ import annotations

from torch import Tensor

from gebm_kit.core import reduce
from gebm_kit.core.classes import log_density, own_loss
from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Batch, HasDensity, HasEncoder, HasPretraining, Loss, LossTerms
from gebm_kit.core.model import GEBM


class _BaseAlone(Loss):
    """A loss without an energy loss, whose base loss reads data. The untrained energy is not a log density ratio."""

    needs = frozenset()
    base_needs = frozenset({"x"})
    parts = frozenset({"base"})
    log_ratio = False
    serves_classes = True

    def energy_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        raise UsageError(
            "this loss trains only the base and has no loss for the energy",
            hint="Set train.part=base, or use a loss such as kale.",
        )


class MaximumLikelihood(_BaseAlone):
    """Base loss ``-E_P[log b(x)]`` in nats, for bases with a density (`HasDensity`); no energy loss.

    Minimising it minimises KL(P||B). A conditional base is trained by ``-E_P[log b(x | y)]``. ``train.part`` must be
    ``base``.

    Metrics of the base step: ``log_likelihood`` (minus the loss).

    Raises:
        UsageError: the base has no density (`check`, `base_loss`); the batch has no data (`base_loss`).
    """

    def check(self, model: GEBM) -> None:
        if not isinstance(model.base, HasDensity):
            raise UsageError(
                f"loss 'ml' needs a base with a density (log_prob), but {type(model.base).__name__} has none",
                hint="Use a normalizing flow as the base, or a loss such as kale, which needs only base draws.",
            )

    def base_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        self.check(model)
        assert isinstance(model.base, HasDensity)
        log_likelihood = reduce.mean(log_density(model.base, _data(batch), batch.labels))
        return LossTerms(-log_likelihood, {"log_likelihood": log_likelihood.detach()})


class Elbo(_BaseAlone):
    """Base loss ``-E_P[ELBO(x)]``, for bases with an encoder and a loss of their own (`HasEncoder`, `HasPretraining`).

    ``ELBO(x) = E_{z ~ q(z|x)}[log p(x|z)] - KL(q(z|x) || eta) <= log b(x)``. The base defines q: the value is its
    `pretraining_loss`, averaged over ranks. There is no energy loss; ``train.part`` must be ``base``.

    Metrics of the base step: ``elbo`` (minus the loss).

    Raises:
        UsageError: the base has no encoder or no loss of its own (`check`, `base_loss`); the batch has no data
            (`base_loss`).
    """

    def check(self, model: GEBM) -> None:
        if not (isinstance(model.base, HasEncoder) and isinstance(model.base, HasPretraining)):
            raise UsageError(
                f"loss 'elbo' needs a base with an encoder (encode) and a negative ELBO (pretraining_loss), but "
                f"{type(model.base).__name__} does not have both",
                hint="Use a variational autoencoder as the base, or a loss such as kale, which needs only base draws.",
            )

    def base_loss(self, model: GEBM, batch: Batch) -> LossTerms:
        self.check(model)
        assert isinstance(model.base, HasPretraining)
        elbo = -reduce.mean(own_loss(model.base, _data(batch), batch.labels).reshape(1))
        return LossTerms(-elbo, {"elbo": elbo.detach()})


def _data(batch: Batch) -> Tensor:
    """Return the batch's data.

    Raises:
        UsageError: the batch has none.
    """
    if batch.x is None:
        raise UsageError("this loss needs data, and the batch has none")
    return batch.x
