"""A convolutional energy for images of any size and number of channels.

References:
    Spectral Normalization for Generative Adversarial Networks. T. Miyato et al., ICLR 2018.
    https://arxiv.org/abs/1802.05957 (Table 3: this energy follows the discriminator there)
"""

from __future__ import annotations

from typing import Annotated

from torch import Tensor, nn

from gebm_kit.core.classes import checked_classes, own_labels
from gebm_kit.core.components import Injected, Range, check_arguments
from gebm_kit.core.interfaces import Energy
from gebm_kit.core.layers import Activation, Projection, Readout, activation_layer, check_image, spectrally_normalised

FINAL_SIDE = 4
"""Longest side of the last feature map, as in the paper at 32 x 32. Halving continues until no side is longer."""

WIDEST = 8
"""Largest number of channels of a feature map, in units of ``width``: 512 for ``width`` 64, as in the paper."""


class ConvEnergy(Energy):
    """A 3x3 convolution, then strided ones until the map is at most 4 x 4, then a linear functional without bias.

    (B, channels, height, width) -> (B,). Channels double with each halving, up to ``8 * width``. There is no norm that
    couples the rows of a batch, so one chain's energy never depends on the others. A side of even length is halved by a
    4-tap kernel, which covers every pixel equally often. A side of odd length is halved by a 3-tap kernel. A side of
    length 1 or 2 is kept.

    Args:
        width: channels of the first convolution.
        activation: activation after each convolution. SiLU, the default, gives samplers a smooth gradient; DCGAN uses
            ``leaky-relu``.
        spectral_norm: divide each weight, as an (out, in * k * k) matrix, by its largest singular value.
        data_scale: rough size of the pixel values, which are divided by it.
        conditional: whether the energy scores a point as one of a class, for data with labels. A linear functional of the
            class is then added to that of all classes (a projection energy).
        data_shape: (channels, height, width).
        num_classes: number of classes of the data, or None.

    Raises:
        DataError: the data are not images.
        UsageError: an argument is outside its range; ``conditional`` is set for data without labels.
    """

    def __init__(
        self,
        width: Annotated[int, Range(1, None)] = 64,
        activation: Activation = "silu",
        spectral_norm: bool = False,
        data_scale: Annotated[float, Range(0, None, low_open=True)] = 1.0,
        conditional: bool = False,
        *,
        data_shape: Annotated[tuple[int, ...], Injected],
        num_classes: Annotated[int | None, Injected] = None,
    ) -> None:
        super().__init__()
        check_arguments(self, width=width, activation=activation, data_scale=data_scale)
        channels, *sides = check_image("the conv energy", data_shape)
        self.data_scale = float(data_scale)
        first = nn.Conv2d(channels, width, (_taps(sides[0]), _taps(sides[1])), padding="same")
        layers: list[nn.Module] = [spectrally_normalised(first, spectral_norm), activation_layer(activation)]
        size = width
        while max(sides) > FINAL_SIDE:
            wider = min(2 * size, WIDEST * width)
            halving = [_halving(side) for side in sides]
            kernel, stride, padding = zip(*halving, strict=True)
            conv = nn.Conv2d(size, wider, kernel, stride, padding)
            layers += [spectrally_normalised(conv, spectral_norm), activation_layer(activation)]
            sides = [(n + 2 * p - k) // s + 1 for n, (k, s, p) in zip(sides, halving, strict=True)]
            size = wider
        self.layers = nn.Sequential(*layers)
        self.readout = Readout(size * sides[0] * sides[1], spectral_norm=spectral_norm)
        self.conditional = conditional
        self.num_classes = checked_classes("the conv energy", num_classes, conditional)
        if self.num_classes is not None:
            self.projection = Projection(self.num_classes, size * sides[0] * sides[1], spectral_norm=spectral_norm)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        labels = own_labels("energy", self, labels)
        if self.data_scale != 1.0:
            x = x / self.data_scale
        features = self.layers(x).flatten(1)
        energy: Tensor = self.readout(features)
        return energy if labels is None else energy + self.projection(features, labels)


def _taps(side: int) -> int:
    """Return the kernel size along a side that is not halved."""
    return 1 if side == 1 else 3


def _halving(side: int) -> tuple[int, int, int]:
    """Return (kernel, stride, padding) along a side of length ``side``."""
    if side <= 2:
        return _taps(side), 1, _taps(side) // 2
    return (4, 2, 1) if side % 2 == 0 else (3, 2, 1)
