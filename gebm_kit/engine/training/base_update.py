"""The ways to train the base: its own loss, the recipe's loss, or maximum likelihood on draws of the model.

Maximum likelihood takes no derivative of the draws. With the energy fixed, KALE(P||B_theta) = -E_P[E] - log E_B[exp(-E)]
has the gradient

    E_q[grad_x E(G(z)) dG/dtheta] = -E_q[grad_theta log b_theta(x)],     q(x) = b(x) exp(-E(x)) / Z,

The first form differentiates the draws. The second differentiates the density; it is the gradient of the forward KL
divergence KL(q || b_theta). Both hold at the base whose draws are weighted. The second can hold q fixed while theta moves.
Its minimum is then the model itself, which is the data's law if E is the log-ratio of base and data. A base that follows the
first under an energy that lags behind overshoots it. q belongs to a slowly moving copy of the base: the moving average that
sampling uses. The base draws that the energy learns from come from the same copy.

References:
    Generalized Energy Based Models. M. Arbel, L. Zhou, A. Gretton, ICLR 2021. https://arxiv.org/abs/2003.05033
    Cooperative Training of Descriptor and Generator Networks. J. Xie et al., TPAMI 2018. https://arxiv.org/abs/1609.09408
    (a generator that learns from what chains on the energy make of its draws)
    Reweighted Wake-Sleep. J. Bornschein, Y. Bengio, ICLR 2015. https://arxiv.org/abs/1406.2751
"""

from __future__ import annotations

import copy
from dataclasses import fields
from typing import ClassVar, Protocol, cast

import torch
from torch import Tensor, nn

from gebm_kit.config.schema import Recipe, TrainSection
from gebm_kit.core import reduce
from gebm_kit.core.classes import own_loss
from gebm_kit.core.errors import UsageError, nearest
from gebm_kit.core.estimators import effective_sample_size, largest
from gebm_kit.core.interfaces import Base, Batch, HasDensity, HasPretraining, HasSource, Loss, LossTerms, OnCodes
from gebm_kit.core.model import GEBM
from gebm_kit.engine.training.class_labels import ClassLabels
from gebm_kit.engine.training.ema import EMA
from gebm_kit.engine.training.latent_codes import data, energy_side


class BaseInputs(Protocol):
    """The inputs that a base update may ask for. Each call draws anew, so an update calls only what it needs.

    Attributes:
        classes: the labels of the rows that `data` gave last, where the model has classes.
    """

    classes: ClassLabels

    def data(self) -> Tensor:
        """Return this rank's part of the next batch of data, (B, *D)."""
        ...

    def latents(self) -> Tensor:
        """Draw this rank's part of a batch of latent codes, (B, Z)."""
        ...

    def chain_ends(self) -> Tensor:
        """Return the last states of the loss's chains, as the energy saw them in its last update."""
        ...

    def base_batch(self, needs: frozenset[str]) -> Batch:
        """Fill the named fields of a `Batch`, ``x_base`` with its gradient in the base."""
        ...


class BaseUpdate(Protocol):
    """One way to train the base; `base_update` chooses it once, before training."""

    def terms(self, base: Base, inputs: BaseInputs) -> LossTerms:
        """Compute the loss of one update of ``base``, and its metrics."""
        ...


class OwnLoss:
    """The base's own loss on a batch of data (`HasPretraining`), with its labels where the base is conditional."""

    def terms(self, base: Base, inputs: BaseInputs) -> LossTerms:
        """Compute the mean of the base's loss over all ranks."""
        x = inputs.data()
        return LossTerms(reduce.mean(own_loss(cast(HasPretraining, base), x, inputs.classes.of_data()).reshape(1)))


class LossOnBatch:
    """The recipe's loss, on the fields of the batch that its ``base_needs`` names.

    Args:
        loss: the recipe's.
        model: the model as the steps evaluate it, compiled where the recipe asks for that.
    """

    def __init__(self, loss: Loss, model: GEBM) -> None:
        self._loss, self._model = loss, model

    def terms(self, base: Base, inputs: BaseInputs) -> LossTerms:
        """Compute ``loss.base_loss``."""
        return self._loss.base_loss(self._model, inputs.base_batch(self._loss.base_needs))


SMALLEST_POWER = 1e-6
"""Smallest power of the weights that is tried. Weights to this power are nearly equal, so no smaller one is needed."""


class BaseLikelihood:
    """The parts that both likelihood updates share: the averaged base, and the model on it as the energy sees it.

    Args:
        model: whose base is trained; it must have a density.
        loss: its energy must be a log density ratio.
        average: moving average of the base.

    Attributes:
        reference: the base with its averaged weights, in eval mode.
        side: the model with draws of the averaged base, in codes where the energy is on them (`energy_side`).

    Raises:
        UsageError: the base has no density, or the loss's energy is no log density ratio.
    """

    name: ClassVar[str]

    def __init__(self, model: GEBM, loss: Loss, average: EMA) -> None:
        if not isinstance(model.base, HasDensity):
            raise UsageError(
                f"train.base_update={self.name} needs a base with a density (log_prob), which "
                f"{type(model.base).__name__} has not",
                hint="Use a normalizing flow as the base, or train.base_update=pathwise.",
            )
        if not loss.log_ratio:
            raise UsageError(
                f"train.base_update={self.name} takes exp(-E) for a density ratio of model and base, and the energy of "
                f"{type(loss).__name__} is no log density ratio",
                hint="Use a loss such as kale, kale-dv or logistic, or train.base_update=pathwise.",
            )
        self.reference: Base = copy.deepcopy(model.base).eval()
        self.side = energy_side(model, self.reference)
        self.follow(average)

    def follow(self, average: EMA) -> None:
        """Copy the average's weights into the reference."""
        average.copy_to(self.reference)


class WeightedLikelihood(BaseLikelihood):
    """Loss of the base ``-sum_i w_i log b_theta(x_i)`` with x_i from its moving average, ``w = softmax(-t E(x))``.

    A control variate is subtracted from its gradient: the gradient of the average's own mean likelihood,
    ``-(1/N) sum_i grad_a log b_a(x_i)``. Its expectation is zero. Where the base is near its average and the weights are
    near 1/N, it is all of the noise.

    The power t is the largest up to 1 at which the effective sample size (sum w)² / sum w² of the global batch is at least
    ``least_ess`` of the batch's size. Below 1 the base moves only part of the way to the model's law: b exp(-t E) lies
    between the base and q.

    Args:
        model, loss, average: as in `BaseLikelihood`.
        least_ess: share of a batch, in (0, 1).
    """

    name = "weighted-likelihood"

    def __init__(self, model: GEBM, loss: Loss, average: EMA, least_ess: float) -> None:
        super().__init__(model, loss, average)
        self.least_ess = least_ess

    def terms(self, base: Base, inputs: BaseInputs) -> LossTerms:
        """Compute `loss` on new latent codes."""
        return self.loss(base, inputs.latents())

    def loss(self, base: Base, z: Tensor) -> LossTerms:
        """Compute the loss on draws of the codes z, (B, Z); its metric ``weight_power`` is t."""
        with torch.no_grad():
            seen = self.side.base(z)
            x = data(self.side, seen)
            log_weights = -self.side.energy(seen)
            power = tempering(reduce.gather(log_weights), self.least_ess).to(log_weights.dtype)
            weights = reduce.softmax_weights(power * log_weights)
        assert isinstance(base, HasDensity)
        number = len(x) * reduce.world_size()
        value = -number * reduce.mean(weights * base.log_prob(x))
        return LossTerms(value - self._control_variate(base, x), {"weight_power": power})

    def _control_variate(self, base: nn.Module, x: Tensor) -> Tensor:
        """Return zero, (), with the gradient of the average's ``-mean log b_a(x)``, carried over to the base's weights."""
        assert isinstance(self.reference, HasDensity)
        both = zip(base.parameters(), self.reference.parameters(), strict=True)
        pairs = [(own, averaged) for own, averaged in both if own.requires_grad]
        with torch.enable_grad():
            slopes = torch.autograd.grad(-self.reference.log_prob(x).mean(), [averaged for _, averaged in pairs])
        terms = [torch.sum((own - own.detach()) * slope) for (own, _), slope in zip(pairs, slopes, strict=True)]
        return torch.stack(terms).sum()


class McmcTeaching(BaseLikelihood):
    """Loss of the base ``-mean log b_theta(x_i)``, ``x_i = G_a(z_i)``, z_i the ends of the loss's chains in latent space.

    Weights of base draws need good draws to begin with; chains do not. Where KL(q || b) is several nats, hardly a draw of a
    batch lies where the model has its mass.

    Args:
        model, loss, average: as in `BaseLikelihood`; the loss has chains in latent space (``pcd``, ``cd``), and the base
            learns from those of its last energy update.

    Raises:
        UsageError: the loss has no such chains.
    """

    name = "mcmc-teaching"

    def __init__(self, model: GEBM, loss: Loss, average: EMA) -> None:
        super().__init__(model, loss, average)
        if loss.negatives is None or loss.negatives.space != "latent":
            raise UsageError(
                f"train.base_update={self.name} learns from the chains of the loss, and {type(loss).__name__} has none in "
                "latent space",
                hint="Use loss=pcd, or train.base_update=weighted-likelihood.",
            )

    def terms(self, base: Base, inputs: BaseInputs) -> LossTerms:
        """Compute `loss` on the chains of the last energy update."""
        return self.loss(base, inputs.chain_ends())

    def loss(self, base: Base, negatives: Tensor) -> LossTerms:
        """Compute the loss on the chains' last states as the energy sees them: (B, *D), or (B, Z) for one on codes."""
        assert isinstance(base, HasDensity)
        with torch.no_grad():
            x = data(self.side, negatives)
        return LossTerms(-reduce.mean(base.log_prob(x)))


def base_likelihood(
    settings: TrainSection, model: GEBM, loss: Loss, average: EMA | None
) -> WeightedLikelihood | McmcTeaching | None:
    """Build the likelihood update that ``train.base_update`` asks for; None means the gradient through base draws.

    Raises:
        UsageError: model or loss can't be used with it.
    """
    check_spaces(model, loss)
    if settings.base_update == "pathwise" or average is None:
        if isinstance(model.energy, OnCodes) and settings.main_part == "both":
            raise UsageError(
                f"{type(model.energy).__name__} sees the base's codes alone: it has no slope for the base to learn by",
                hint="Set train.base_update to mcmc-teaching or weighted-likelihood, or train.part to energy.",
            )
        return None
    if settings.base_update == "mcmc-teaching":
        return McmcTeaching(model, loss, average)
    return WeightedLikelihood(model, loss, average, settings.base_update_ess)


def base_update(
    settings: TrainSection, base: Base, loss: Loss, model: GEBM, likelihood: WeightedLikelihood | McmcTeaching | None
) -> BaseUpdate:
    """Choose the base update of the main phase.

    Args:
        settings: the recipe's.
        base: the part that learns.
        loss: the recipe's.
        model: the model as the steps evaluate it.
        likelihood: the choice of `base_likelihood`.
    """
    if likelihood is not None:  # first: `model` then draws from the averaged base, which no loss on it could train
        return likelihood
    if settings.part == "base" and isinstance(base, HasPretraining) and "x" not in loss.base_needs:
        return OwnLoss()
    return LossOnBatch(loss, model)


def check_needs(loss: Loss, settings: TrainSection) -> None:
    """Refuse a loss whose ``needs`` or ``base_needs`` can't be filled.

    Raises:
        UsageError: `Batch` has no such field; or negatives that the loss does not declare, or that no energy update draws.
    """
    known = frozenset(field.name for field in fields(Batch))
    for name in ("needs", "base_needs"):
        asked = frozenset(getattr(loss, name))
        if unknown := sorted(asked - known):
            raise UsageError(
                f"{name} of the loss {type(loss).__name__} names {', '.join(map(repr, unknown))}, which a batch does not "
                f"have; {nearest(unknown[0], known)}",
                hint=f"A batch has {', '.join(sorted(known))}.",
            )
        if "negatives" in asked and loss.negatives is None:
            raise UsageError(
                f"{name} of the loss {type(loss).__name__} names 'negatives', and the loss does not say how to draw them",
                hint="Set its attribute `negatives` to NegativeSettings.",
            )
    if "negatives" in loss.base_needs and settings.part == "base":
        raise UsageError(
            f"the base loss of {type(loss).__name__} needs 'negatives', which energy updates draw, and train.part=base has "
            "none",
            hint="Set train.part=both.",
        )


def check_spaces(model: GEBM, loss: Loss) -> None:
    """Refuse chains in data space for an energy on the base's codes.

    Raises:
        UsageError: the loss has such chains, and the model such an energy.
    """
    if isinstance(model.energy, OnCodes) and loss.negatives is not None and loss.negatives.space == "data":
        raise UsageError(
            f"{type(model.energy).__name__} is on the base's codes, and the loss's chains walk in data space",
            hint="Set loss.space to latent.",
        )


def tempering(log_weights: Tensor, least_ess: float) -> Tensor:
    """Find the largest t <= 1 for which ``exp(t log_weights)`` has an effective share of ``least_ess``; (N,) -> ()."""
    values, wanted = log_weights.double(), least_ess * len(log_weights)
    whole = values.new_ones(())

    def enough(power: Tensor) -> Tensor:
        return effective_sample_size(power * values) >= wanted

    return torch.where(enough(whole), whole, largest(enough, whole, SMALLEST_POWER))


def check_trainable(model: GEBM, recipe: Recipe) -> None:
    """Refuse to train a base that has no parameters or a frozen energy, and to pretrain a base without a loss of its own.

    Raises:
        UsageError: ``train.part`` asks for it.
    """
    base, part = model.base, recipe.train.part
    if part != "base" and getattr(model.energy, "frozen", False):
        raise UsageError(
            f"train.part={part} trains the energy, and energy {recipe.energy.title!r} has nothing to train: a scorer is "
            "never changed",
            hint="`gebm-kit tilt GENERATOR SCORER` draws without training. Set train.part=base to train the base against "
            "it, or add a part that learns: energy='{name: sum, parts: [...]}'.",
        )
    if part != "energy" and next(base.parameters(), None) is None:
        what = base.source_file if isinstance(base, HasSource) else f"the base {recipe.base.title!r}"
        raise UsageError(
            f"train.part={part} trains the base, and {what} has no weights to train: a program is never changed",
            hint="Set train.part=energy, which trains an energy on top of it.",
        )
    if recipe.train.pretrain_steps and not isinstance(base, HasPretraining):
        raise UsageError(
            f"train.part={part} needs a base with a loss of its own, and {recipe.base.title!r} has none",
            hint="Use a normalizing flow or a variational autoencoder as the base, or train.part=both.",
        )
