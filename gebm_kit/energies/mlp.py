"""A fully connected energy, for points and small images."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor, nn

from gebm_kit.core.classes import checked_classes, own_labels
from gebm_kit.core.components import Injected, Range, check_arguments
from gebm_kit.core.interfaces import Energy
from gebm_kit.core.layers import (
    EMBEDDING_SIZE,
    Activation,
    ClassEmbedding,
    Readout,
    activation_layer,
    check_sizes,
    spectrally_normalised,
)


class MlpEnergy(Energy):
    """A fully connected energy ``E(x) = w . a(W_k ... a(W_1 x / s + b_1) ...)``, without output bias; (B, *D) -> (B,).

    Args:
        hidden: widths of the hidden layers; empty for a linear energy.
        activation: activation of the hidden layers. SiLU, the default, gives samplers a smooth gradient.
        spectral_norm: divide each weight by its largest singular value. E is then Lipschitz with a constant of about
            ``1 / data_scale`` (SiLU's own slope reaches 1.1), so a ``data_scale`` smaller than the data makes E steeper.
        data_scale: s, the rough size of the data's coordinates, which are divided by it.
        fourier_features: F, the number of random features ``sin(W x / s), cos(W x / s)`` added to the coordinates. W, of
            shape (F, prod D), is drawn once with entries N(0, fourier_scale^2). The features are for narrow modes, which a
            plain MLP is slow to learn.
        fourier_scale: typical frequency of the features.
        conditional: whether the energy scores a point as one of a class, for data with labels. The first layer then takes a
            learned vector of the class beside x.
        data_shape: ``*D``.
        num_classes: number of classes of the data, or None.

    Raises:
        RecipeError: a width is below 1.
        UsageError: another argument is outside its range; ``conditional`` is set for data without labels.

    References:
        Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional Domains. M. Tancik et al., NeurIPS
        2020. https://arxiv.org/abs/2006.10739
    """

    frequencies: Tensor

    def __init__(
        self,
        hidden: list[int] = [256, 256],  # noqa: B006  (read only)
        activation: Activation = "silu",
        spectral_norm: bool = False,
        data_scale: Annotated[float, Range(0, None, low_open=True)] = 1.0,
        fourier_features: Annotated[int, Range(0, None)] = 0,
        fourier_scale: Annotated[float, Range(0, None, low_open=True)] = 2.0,
        conditional: bool = False,
        *,
        data_shape: Annotated[tuple[int, ...], Injected],
        num_classes: Annotated[int | None, Injected] = None,
    ) -> None:
        super().__init__()
        check_arguments(
            self,
            activation=activation,
            data_scale=data_scale,
            fourier_features=fourier_features,
            fourier_scale=fourier_scale,
        )
        check_sizes("hidden", hidden)
        self.data_scale = float(data_scale)
        layers: list[nn.Module] = []
        size = math.prod(data_shape)
        self.register_buffer("frequencies", fourier_scale * torch.randn(fourier_features, size))
        size += 2 * fourier_features
        self.conditional = conditional
        self.num_classes = checked_classes("the mlp energy", num_classes, conditional)
        if self.num_classes is not None:
            self.embedding = ClassEmbedding(self.num_classes, EMBEDDING_SIZE)
            size += EMBEDDING_SIZE
        for width in hidden:
            layers += [spectrally_normalised(nn.Linear(size, width), spectral_norm), activation_layer(activation)]
            size = width
        self.layers = nn.Sequential(*layers)
        self.readout = Readout(size, spectral_norm=spectral_norm)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        labels = own_labels("energy", self, labels)
        x = x.flatten(1)
        if self.data_scale != 1.0:
            x = x / self.data_scale
        if len(self.frequencies):
            angles = x @ self.frequencies.T
            x = torch.cat([x, angles.sin(), angles.cos()], dim=1)
        if labels is not None:
            x = torch.cat([x, self.embedding(labels).to(x.dtype)], dim=1)
        energy: Tensor = self.readout(self.layers(x))
        return energy
