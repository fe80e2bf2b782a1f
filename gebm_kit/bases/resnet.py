"""The residual generator of SNGAN, the larger of the two image bases in the GEBM paper.

References:
    Generalized Energy Based Models. M. Arbel, L. Zhou, A. Gretton, ICLR 2021. https://arxiv.org/abs/2003.05033
    (appendix on image generation: SNGAN ResNet, 100 latent normals)
    Spectral Normalization for Generative Adversarial Networks. T. Miyato et al., ICLR 2018.
    https://arxiv.org/abs/1802.05957 (Tables 4 to 6 and Figure 8; 128 latent normals)
    cGANs with Projection Discriminator. T. Miyato, M. Koyama, ICLR 2018. https://arxiv.org/abs/1802.05637
    (64 x 64; details follow the authors' implementation, https://github.com/pfnet-research/sngan_projection)
"""

from __future__ import annotations

import itertools
import math
from typing import Annotated

from torch import Tensor, nn

from gebm_kit.core.classes import checked_classes, own_labels
from gebm_kit.core.components import Injected, Range, check_arguments
from gebm_kit.core.interfaces import Base
from gebm_kit.core.layers import check_doublings, crop_to, in_turn, normalisation, to_range
from gebm_kit.core.priors import PRIORS, Prior, PriorName

SMALL_SIDE = 32
"""Largest side of images that have the same number of channels in every map. For larger images each doubling halves the
channels. Table 4 of the SNGAN paper has the first form at 32 pixels, Table 5 the second at 48."""


class ResnetBase(Base):
    """A linear layer to a small feature map, then doublings by residual blocks, then batch norm, ReLU and a 3x3 convolution.

    (B, Z) -> (B, channels, height, width). The channels for the default ``width`` of 256 are, from the linear layer on:

    - 28 and 32 pixels: 256 everywhere, from 7 x 7 with two blocks and from 4 x 4 with three (Table 4);
    - 48: 512, 256, 128, 64 from 6 x 6 (Table 5); 64: 1,024, 512, 256, 128, 64 from 4 x 4;
    - 128: 1,024, 1,024, 512, 256, 128, 64 from 4 x 4 (Table 6).

    Other sides follow the same rule; where one is not a multiple of 4, the network makes a slightly larger image and
    returns its centre. At 32 x 32 x 3 there are 4,275,971 parameters
    with 128 latent coordinates and 4,161,283 with 100. The published network has 4,276,739: 528,384 in the linear
    layer, 1,246,976 in each of three blocks and 7,427 after them. The 768 biases in front of batch norms, which
    subtract them again, are left out here.

    Args:
        latent_dim: Z.
        width: channels for images up to 32 x 32; for larger images the last map has a quarter of that.
        prior: distribution of z: ``normal``, ``uniform`` on [-1, 1]^Z or ``sphere`` of radius sqrt(Z).
        conditional: whether the base makes draws of a class, for data with labels. Each batch norm then has a gain and a
            shift for each class.
        data_shape: (channels, height, width).
        value_range: range of the data, to which a final tanh is rescaled; None leaves the output linear.
        num_classes: number of classes of the data, or None.

    Raises:
        DataError: the data are not images.
        UsageError: an argument is outside its range; ``conditional`` is set for data without labels.
    """

    def __init__(
        self,
        latent_dim: Annotated[int, Range(1, None)] = 100,
        width: Annotated[int, Range(1, None)] = 256,
        prior: PriorName = "normal",
        conditional: bool = False,
        *,
        data_shape: Annotated[tuple[int, ...], Injected],
        value_range: Annotated[tuple[float, float] | None, Injected] = None,
        num_classes: Annotated[int | None, Injected] = None,
    ) -> None:
        super().__init__()
        check_arguments(self, latent_dim=latent_dim, width=width, prior=prior)
        channels, rows, columns, count = check_doublings("the resnet base", data_shape)
        self.latent_dim = latent_dim
        self.data_shape = tuple(data_shape)
        self.value_range = value_range
        self._prior = PRIORS[prior](latent_dim)
        self.conditional = conditional
        self.num_classes = classes = checked_classes("the resnet base", num_classes, conditional)
        sizes = _sizes(width, count, max(rows, columns))
        self.first_map = (sizes[0], rows >> count, columns >> count)
        self.project = nn.Linear(latent_dim, sizes[0] * self.first_map[1] * self.first_map[2])
        blocks = [_Doubling(size, out, classes) for size, out in itertools.pairwise(sizes)]
        last = nn.Conv2d(sizes[-1], channels, 3, padding=1)
        self.layers = nn.Sequential(*blocks, normalisation("batch", sizes[-1], classes), nn.ReLU(), last)
        for layer in (self.project, last):
            _initialise(layer)

    @property
    def prior(self) -> Prior:
        return self._prior

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        labels = own_labels("base", self, labels)
        images = in_turn(self.layers, self.project(z).unflatten(1, self.first_map), labels)
        return to_range(crop_to(images, *self.data_shape[1:]), self.value_range)


class _Doubling(nn.Module):
    """A residual block ``conv(a(norm(conv(up(a(norm(x))))))) + up(conv1x1(x))``, a = ReLU, up = nearest neighbour.

    The published shortcut convolves after doubling. A 1x1 convolution commutes with doubling and costs a quarter before it.
    """

    takes_labels = True

    def __init__(self, size: int, out: int, num_classes: int | None) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            normalisation("batch", size, num_classes),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(size, out, 3, padding=1, bias=False),
            normalisation("batch", out, num_classes),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, padding=1),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(size, out, 1), nn.Upsample(scale_factor=2))
        for layer in self.residual:
            _initialise(layer, math.sqrt(2.0))
        _initialise(self.shortcut[0])

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        doubled: Tensor = in_turn(self.residual, x, labels) + self.shortcut(x)
        return doubled


def _sizes(width: int, count: int, side: int) -> list[int]:
    """Return the channels of the ``count + 1`` maps."""
    if side <= SMALL_SIDE:
        return [width] * (count + 1)
    return [max(1, min(width * 2**left // 4, 4 * width)) for left in range(count, -1, -1)]


def _initialise(layer: nn.Module, gain: float = 1.0) -> None:
    """Draw uniform weights after Glorot and Bengio; the authors use ``gain`` sqrt(2) in residual branches."""
    if isinstance(layer, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(layer.weight, gain)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
