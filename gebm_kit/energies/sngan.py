"""The convolutional discriminator of SNGAN as an energy, the smaller of the two image energies in the GEBM paper.

References:
    Generalized Energy Based Models. M. Arbel, L. Zhou, A. Gretton, ICLR 2021. https://arxiv.org/abs/2003.05033
    (appendix on image generation: SNGAN ConvNet)
    Spectral Normalization for Generative Adversarial Networks. T. Miyato et al., ICLR 2018.
    https://arxiv.org/abs/1802.05957 (Table 3b)
"""

from __future__ import annotations

from typing import Annotated

from torch import Tensor, nn

from gebm_kit.core.classes import checked_classes, own_labels
from gebm_kit.core.components import Injected, Range, check_arguments
from gebm_kit.core.interfaces import Energy
from gebm_kit.core.layers import (
    Activation,
    Projection,
    Readout,
    activation_layer,
    check_doublings,
    pad_to,
    spectrally_normalised,
)

LEAKY_SLOPE = 0.1
"""Slope of leaky ReLU below zero, as published for SNGAN; DCGAN has 0.2."""

WIDEST = 8
"""Largest number of channels of a feature map, in units of ``width``: 512 for ``width`` 64, the published maximum."""


class SnganEnergy(Energy):
    """A 3x3 convolution before and after each halving by a 4x4 one of stride 2, then a linear functional without bias.

    (B, channels, height, width) -> (B,). The channels start at ``width`` and double after each halving, up to
    ``8 * width``: 64, 64, 128, 128, 256, 256, 512 for the default at 32 x 32 and 48 x 48, as published. There are as many
    halvings as the ``sngan`` base has doublings, down to a map of 4 x 4, 6 x 6 or 7 x 7. No norm couples the rows of a
    batch.

    At 32 x 32 x 3 there are 2,935,872 parameters: those of the published table without the bias of its last layer. (The
    authors' implementations of SNGAN and of GEBM double the channels already in the halving convolutions: 64, 128, 128,
    256, 256, 512, 512. This energy follows the table.)

    Args:
        width: channels of the first convolution.
        activation: activation after each convolution. ``leaky-relu``, with slope 0.1, is the published one; a smooth one
            (``silu``) gives samplers a smooth gradient.
        spectral_norm: divide each weight, as an (out, in * k * k) matrix, by its largest singular value.
        conditional: whether the energy scores a point as one of a class, for data with labels. A linear functional of the
            class is then added to that of all classes (a projection energy).
        data_shape: (channels, height, width). An image with a side that is not a multiple of 4 gets a border of zeros.
        num_classes: number of classes of the data, or None.

    Raises:
        DataError: the data are not images.
        UsageError: an argument is outside its range; ``conditional`` is set for data without labels.
    """

    def __init__(
        self,
        width: Annotated[int, Range(1, None)] = 64,
        activation: Activation = "leaky-relu",
        spectral_norm: bool = True,
        conditional: bool = False,
        *,
        data_shape: Annotated[tuple[int, ...], Injected],
        num_classes: Annotated[int | None, Injected] = None,
    ) -> None:
        super().__init__()
        check_arguments(self, width=width, activation=activation)
        channels, rows, columns, count = check_doublings("the sngan energy", data_shape)
        self._sides = (rows, columns)
        layers: list[nn.Module] = []
        size = channels
        for halving in range(count + 1):
            wide = width * min(2**halving, WIDEST)
            convolutions = [nn.Conv2d(size, wide, 3, padding=1)]
            if halving < count:
                convolutions.append(nn.Conv2d(wide, wide, 4, stride=2, padding=1))
            for convolution in convolutions:
                _initialise(convolution)
                layers += [spectrally_normalised(convolution, spectral_norm), _activation(activation)]
            size = wide
        self.layers = nn.Sequential(*layers)
        size *= (rows >> count) * (columns >> count)
        self.readout = Readout(size, spectral_norm=spectral_norm)
        self.conditional = conditional
        self.num_classes = checked_classes("the sngan energy", num_classes, conditional)
        if self.num_classes is not None:
            self.projection = Projection(self.num_classes, size, spectral_norm=spectral_norm)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        labels = own_labels("energy", self, labels)
        features = self.layers(pad_to(x, *self._sides)).flatten(1)
        energy: Tensor = self.readout(features)
        return energy if labels is None else energy + self.projection(features, labels)


def _activation(name: Activation) -> nn.Module:
    return nn.LeakyReLU(LEAKY_SLOPE) if name == "leaky-relu" else activation_layer(name)


def _initialise(layer: nn.Conv2d) -> None:
    """Draw uniform weights after Glorot and Bengio, as in the GEBM authors' implementation."""
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
