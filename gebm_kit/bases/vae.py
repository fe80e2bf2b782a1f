"""A variational autoencoder as a base: its decoder is G, and its encoder maps a data point to its latent code.

References:
    Auto-Encoding Variational Bayes. D. P. Kingma, M. Welling, ICLR 2014. https://arxiv.org/abs/1312.6114
    Importance Weighted Autoencoders. Y. Burda, R. Grosse, R. Salakhutdinov, ICLR 2016. https://arxiv.org/abs/1509.00519
    Ladder Variational Autoencoders. C. K. Sonderby et al., NeurIPS 2016. https://arxiv.org/abs/1602.02282 (warm-up of the
    KL term)
    Simple and Effective VAE Training with Calibrated Decoders. O. Rybkin, K. Daniilidis, S. Levine, ICML 2021.
    https://arxiv.org/abs/2006.13202 (a learned scale of the observation noise)
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from gebm_kit.bases.dcgan import DcganBase
from gebm_kit.bases.mlp import MlpBase
from gebm_kit.core.classes import checked_classes, decoded, own_labels
from gebm_kit.core.components import Injected, Range, check_arguments
from gebm_kit.core.interfaces import Base
from gebm_kit.core.layers import (
    EMBEDDING_SIZE,
    Activation,
    ClassEmbedding,
    PadTo,
    activation_layer,
    check_doublings,
    check_sizes,
    in_turn,
    normalisation,
)

INITIAL_NOISE = 0.3
"""Standard deviation at which a learned observation noise starts, in data units. A smaller one makes the
reconstruction term dominate the first steps, a larger one the KL term."""

LOG_STD_LIMIT = 10.0
"""Bound of the encoder's log standard deviations, which approach it smoothly. exp(2 * 10) is safe in single precision."""


class Posterior(NamedTuple):
    """The approximate posterior ``q(z|x) = N(mean, diag(exp(log_std))^2)``, (B, Z) each."""

    mean: Tensor
    log_std: Tensor


class Vae(Base):
    """A variational autoencoder ``x = G(z) + s xi``, z and xi standard normal. The base's map is the decoder G alone.

    ``pretraining_loss`` is the mean over a batch of ``-E_q[log N(x; G(z), s^2)] + w KL(q(z|x) || N(0, I))`` in nats, with
    one z for each x. w rises from 0 to 1 over the first ``kl_warmup`` updates; at w = 1 the loss is minus the ELBO.
    ``encode`` returns the mean of q(z|x). Only bounds of the density of x are known (`elbo`, `importance_weighted_bound`).
    G without noise has no density.

    A conditional autoencoder is one of each class: its decoder, its encoder and all that follows from them take labels.

    Args:
        latent_dim: Z.
        network: ``mlp``; or ``conv``, the dcgan generator with layer norm, and its mirror image as the encoder.
        hidden: widths of the mlp's hidden layers, in this order for the encoder and in reverse for the decoder.
        width: channels of the largest feature maps (conv).
        activation: activation of the mlps and of the convolutional encoder.
        noise: s, in data units; None: learned, one number for all coordinates of the data.
        kl_warmup: updates over which the KL term grows to its full weight; 0: full weight from the start.
        conditional: whether the base makes draws of a class, for data with labels. The mlps then take a learned vector of
            the class beside their input; in the convolutional networks each norm has a gain and a shift for each class.
        data_shape: ``*D``.
        value_range: range of the data; the decoder ends in a tanh rescaled to it.
        num_classes: number of classes of the data, or None.

    Raises:
        DataError: the network is ``conv`` and the data are not images.
        RecipeError: a width is below 1.
        UsageError: another argument is outside its range; ``conditional`` is set for data without labels.
    """

    kl_updates: Tensor

    def __init__(
        self,
        latent_dim: Annotated[int, Range(1, None)] = 16,
        network: Literal["mlp", "conv"] = "mlp",
        hidden: list[int] = [256, 256],  # noqa: B006  (read only)
        width: Annotated[int, Range(1, None)] = 32,
        activation: Activation = "silu",
        noise: Annotated[float | None, Range(0, None, low_open=True)] = None,
        kl_warmup: Annotated[int, Range(0, None)] = 0,
        conditional: bool = False,
        *,
        data_shape: Annotated[tuple[int, ...], Injected],
        value_range: Annotated[tuple[float, float] | None, Injected] = None,
        num_classes: Annotated[int | None, Injected] = None,
    ) -> None:
        super().__init__()
        check_arguments(
            self, latent_dim=latent_dim, network=network, width=width, activation=activation, kl_warmup=kl_warmup
        )
        if noise is not None:
            check_arguments(self, noise=noise)
        check_sizes("hidden", hidden)
        self.latent_dim, self.data_shape = latent_dim, tuple(data_shape)
        self.kl_warmup = kl_warmup
        self.conditional = conditional
        self.num_classes = checked_classes("the vae base", num_classes, conditional)
        facts: dict[str, Any] = {"data_shape": self.data_shape, "value_range": value_range, "num_classes": num_classes}
        self.decoder: Base
        if network == "mlp":
            self.decoder = MlpBase(latent_dim, hidden[::-1], activation, conditional=conditional, **facts)
            size = math.prod(self.data_shape)
            if self.num_classes is not None:
                self.embedding = ClassEmbedding(self.num_classes, EMBEDDING_SIZE)
                size += EMBEDDING_SIZE
            self.encoder = _mlp_encoder(size, hidden, activation, 2 * latent_dim)
        else:
            self.decoder = DcganBase(latent_dim, width, norm="layer", conditional=conditional, **facts)
            self.encoder = _conv_encoder(self.data_shape, width, activation, 2 * latent_dim, self.num_classes)
        self._network = network
        log_noise = torch.tensor(math.log(INITIAL_NOISE if noise is None else noise))
        if noise is None:
            self.log_noise = nn.Parameter(log_noise)
        else:
            self.register_buffer("log_noise", log_noise)
        self.register_buffer("kl_updates", torch.zeros((), dtype=torch.float64))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Decode z: (B, Z), (B,) -> (B, *D)."""
        return decoded(self.decoder, z, own_labels("base", self, labels))

    def encode(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the mean of q(z|x): (B, *D), (B,) -> (B, Z)."""
        return self.posterior(x, labels).mean

    def posterior(self, x: Tensor, labels: Tensor | None = None) -> Posterior:
        """Return q(z|x): (B, *D), (B,) -> (B, Z) twice."""
        labels = own_labels("base", self, labels)
        if labels is not None and self._network == "mlp":
            x = torch.cat([x.flatten(1), self.embedding(labels).to(x.dtype)], dim=1)
            labels = None
        mean, log_std = in_turn(self.encoder, x, labels).chunk(2, dim=1)
        return Posterior(mean, LOG_STD_LIMIT * torch.tanh(log_std / LOG_STD_LIMIT))

    def pretraining_loss(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the mean of -ELBO(x) in nats; (B, *D), (B,) -> ().

        In train mode a call counts as an update of the KL weight.
        """
        weight = torch.ones((), dtype=x.dtype, device=x.device)
        if self.kl_warmup and self.training:
            self.kl_updates += 1
            weight = (self.kl_updates / self.kl_warmup).clamp(max=1.0).to(x.dtype)
        fit, divergence = self.terms(x, None, labels)
        return (weight * divergence - fit).mean()

    def elbo(self, x: Tensor, generator: torch.Generator | None = None, *, labels: Tensor | None = None) -> Tensor:
        """Return ``log p(x|z) - KL(q(z|x) || N(0, I))`` at one z ~ q(z|x), in nats; (B, *D), (B,) -> (B,).

        Its mean is a lower bound of log p(x).
        """
        fit, divergence = self.terms(x, generator, labels)
        return fit - divergence

    def importance_weighted_bound(
        self, x: Tensor, num: int, generator: torch.Generator | None = None, *, labels: Tensor | None = None
    ) -> Tensor:
        """Return ``log mean_k p(x, z_k) / q(z_k|x)`` over ``num`` draws, in nats; (B, *D), (B,) -> (B,).

        Its mean is a lower bound of log p(x), tighter than the ELBO.
        """
        q = self.posterior(x, labels)
        terms = []
        for _ in range(num):
            noise = _normal_like(q.mean, generator)
            z = q.mean + noise * q.log_std.exp()
            ratio = -0.5 * (z.square() - noise.square()).sum(1) + q.log_std.sum(1)  # log N(z; 0, I) - log q(z|x)
            terms.append(self._log_likelihood(x, z, labels) + ratio)
        return torch.logsumexp(torch.stack(terms), dim=0) - math.log(num)

    def terms(
        self, x: Tensor, generator: torch.Generator | None, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return log p(x|z) at one z ~ q(z|x), and KL(q(z|x) || N(0, I)); (B,) each."""
        q = self.posterior(x, labels)
        z = q.mean + _normal_like(q.mean, generator) * q.log_std.exp()
        divergence = 0.5 * (q.mean.square() + torch.exp(2 * q.log_std) - 1.0).sum(1) - q.log_std.sum(1)
        return self._log_likelihood(x, z, labels), divergence

    def _log_likelihood(self, x: Tensor, z: Tensor, labels: Tensor | None) -> Tensor:
        """Return ``log N(x; G(z), s^2 I)``; (B,)."""
        error = (x - decoded(self.decoder, z, labels)).flatten(1) * torch.exp(-self.log_noise)
        return -0.5 * error.square().sum(1) - error.shape[1] * (self.log_noise + 0.5 * math.log(2 * math.pi))


def _normal_like(mean: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)


def _mlp_encoder(size: int, hidden: list[int], activation: str, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for width in hidden:
        layers += [nn.Linear(size, width), activation_layer(activation)]
        size = width
    return nn.Sequential(*layers, nn.Linear(size, outputs))


def _conv_encoder(
    data_shape: tuple[int, ...], width: int, activation: str, outputs: int, num_classes: int | None
) -> nn.Sequential:
    """Build an encoder with as many halvings as the decoder has doublings, down to the same small feature map."""
    channels, height, across, count = check_doublings("the vae base", data_shape)
    border = [] if (height, across) == tuple(data_shape[1:]) else [PadTo(height, across)]
    layers: list[nn.Module] = [*border, nn.Conv2d(channels, width, 4, 2, 1), activation_layer(activation)]
    size = width
    for _ in range(count - 1):
        layers += [nn.Conv2d(size, 2 * size, 4, 2, 1), normalisation("layer", 2 * size, num_classes)]
        layers.append(activation_layer(activation))
        size *= 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(size * (height >> count) * (across >> count), outputs))
