"""The residual discriminator of SNGAN as an energy, the larger of the two image energies in the GEBM paper.

References:
    Generalized Energy Based Models. M. Arbel, L. Zhou, A. Gretton, ICLR 2021. https://arxiv.org/abs/2003.05033
    (appendix on image generation: SNGAN ResNet)
    Spectral Normalization for Generative Adversarial Networks. T. Miyato et al., ICLR 2018.
    https://arxiv.org/abs/1802.05957 (Tables 4 to 6 and Figure 8)
    cGANs with Projection Discriminator. T. Miyato, M. Koyama, ICLR 2018. https://arxiv.org/abs/1802.05637
    (64 x 64; details follow the authors' implementation, https://github.com/pfnet-research/sngan_projection)
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
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

SMALL_SIDE = 32
"""Largest side of images that have the same number of channels in every map. For larger images each halving doubles the
channels. Table 4 of the SNGAN paper has the first form at 32 pixels, Table 5 the second at 48."""

MOST_HALVINGS = 5
"""Largest number of blocks that halve, as published for 128 x 128 (Table 6)."""

SMALLEST_MAP = 2
"""Smallest side to which a map is halved. A last map with a longer side gets one more block, which does not halve."""

WIDEST = 8
"""Largest number of channels of a feature map, in units of ``width``: 1,024 for ``width`` 128, the published maximum."""


class ResnetEnergy(Energy):
    """Residual blocks with average pooling, then an activation, a sum over all pixels and a linear functional without bias.

    (B, channels, height, width) -> (B,). The channels of the blocks for the default ``width`` of 128 are:

    - 28 and 32 pixels: 128, 128 halving, then 128, 128 at the same size (Table 4);
    - 48: 64, 128, 256, 512 halving, then 1,024 (Table 5); 64: 64, 128, 256, 512, 1,024 halving;
    - 128: 64, 128, 256, 512, 1,024 halving, then 1,024 (Table 6).

    Other sides follow the same rule. No norm couples the rows of a batch. The sum over pixels is
    taken at least in single precision, even in a bfloat16 run.

    At 32 x 32 x 3 there are 1,053,824 parameters, as published: 151,680 in the first block, 311,680 in the second, 295,168
    in each of the others and 128 in the functional.

    Args:
        width: channels for images up to 32 x 32; for larger images the first block has half of that.
        activation: activation of the blocks. ``relu`` is the published one; a smooth one (``silu``) gives samplers a
            smooth gradient.
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
        width: Annotated[int, Range(1, None)] = 128,
        activation: Activation = "relu",
        spectral_norm: bool = True,
        conditional: bool = False,
        *,
        data_shape: Annotated[tuple[int, ...], Injected],
        num_classes: Annotated[int | None, Injected] = None,
    ) -> None:
        super().__init__()
        check_arguments(self, width=width, activation=activation)
        channels, rows, columns, _ = check_doublings("the resnet energy", data_shape)
        self._sides = (rows, columns)
        blocks: list[nn.Module] = []
        size = channels
        for wide, halving in _blocks(width, rows, columns):
            blocks.append(
                _Block(size, wide, activation, halving=halving, first=not blocks, spectral_norm=spectral_norm)
            )
            size = wide
        self.layers = nn.Sequential(*blocks, activation_layer(activation))
        self.readout = Readout(size, spectral_norm=spectral_norm)
        self.conditional = conditional
        self.num_classes = checked_classes("the resnet energy", num_classes, conditional)
        if self.num_classes is not None:
            self.projection = Projection(self.num_classes, size, spectral_norm=spectral_norm)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        labels = own_labels("energy", self, labels)
        features = self.layers(pad_to(x, *self._sides))
        # this sums many pixels, and bfloat16 would round each addition to eight bits
        pooled = features.sum((2, 3), dtype=torch.promote_types(features.dtype, torch.float32))
        energy: Tensor = self.readout(pooled)
        return energy if labels is None else energy + self.projection(pooled, labels)


class _Block(nn.Module):
    """A residual block ``pool(conv(a(conv(a(x))))) + conv1x1(pool(x))``, without the pool unless ``halving``.

    The first block has no activation in front, because its input is the image. In the other blocks the published shortcut
    pools after the convolution. A 1x1 convolution commutes with the pool and costs a quarter after it. The shortcut is the
    identity where neither size nor channels change.
    """

    def __init__(
        self, size: int, out: int, activation: Activation, *, halving: bool, first: bool, spectral_norm: bool
    ) -> None:
        super().__init__()
        hidden = out if first else size
        convolutions = [nn.Conv2d(size, hidden, 3, padding=1), nn.Conv2d(hidden, out, 3, padding=1)]
        shortcut = nn.Conv2d(size, out, 1)
        for convolution in convolutions:
            _initialise(convolution, math.sqrt(2.0))
        _initialise(shortcut)
        before, behind = (spectrally_normalised(convolution, spectral_norm) for convolution in convolutions)
        pool: list[nn.Module] = [nn.AvgPool2d(2)] if halving else []
        residual = [before, activation_layer(activation), behind, *pool]
        self.residual = nn.Sequential(*residual) if first else nn.Sequential(activation_layer(activation), *residual)
        self.shortcut: nn.Module = nn.Identity()
        if halving or size != out:
            self.shortcut = nn.Sequential(*pool, spectrally_normalised(shortcut, spectral_norm))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.residual(x) + self.shortcut(x)
        return out


def _blocks(width: int, rows: int, columns: int) -> list[tuple[int, bool]]:
    """Return the channels of each block and whether it halves."""
    if max(rows, columns) <= SMALL_SIDE:
        return [(width, True), (width, True), (width, False), (width, False)]
    halvings = 0
    while halvings < MOST_HALVINGS and all(
        side % 2 ** (halvings + 1) == 0 and side >> (halvings + 1) >= SMALLEST_MAP for side in (rows, columns)
    ):
        halvings += 1
    plain = 1 if max(rows, columns) >> halvings > SMALLEST_MAP else 0
    return [(max(1, width * min(2**k, 2 * WIDEST) // 2), k < halvings) for k in range(halvings + plain)]


def _initialise(layer: nn.Conv2d, gain: float = 1.0) -> None:
    """Draw uniform weights after Glorot and Bengio; the authors use ``gain`` sqrt(2) in residual branches."""
    nn.init.xavier_uniform_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
