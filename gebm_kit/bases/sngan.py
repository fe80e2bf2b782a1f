"""The convolutional generator of SNGAN, the smaller of the two image bases in the GEBM paper.

References:
    Generalized Energy Based Models. M. Arbel, L. Zhou, A. Gretton, ICLR 2021. https://arxiv.org/abs/2003.05033
    (appendix on image generation: SNGAN ConvNet, 100 latent normals)
    Spectral Normalization for Generative Adversarial Networks. T. Miyato et al., ICLR 2018.
    https://arxiv.org/abs/1802.05957 (Table 3a; 128 latent normals)
"""

from __future__ import annotations

import itertools
from typing import Annotated

from torch import Tensor, nn

from gebm_kit.core.classes import checked_classes, own_labels
from gebm_kit.core.components import Injected, Range, check_arguments
from gebm_kit.core.interfaces import Base
from gebm_kit.core.layers import check_doublings, crop_to, in_turn, normalisation, to_range
from gebm_kit.core.priors import PRIORS, Prior, PriorName

WIDEST = 16
"""Largest number of channels of a feature map, in units of ``width``: 1,024 channels for ``width`` 64. The published tables
end at 512; the bound acts on images larger than 64 x 64."""


class SnganBase(Base):
    """A linear layer to a small feature map, then doublings by 4x4 transposed convolutions, then a 3x3 one to the image.

    (B, Z) -> (B, channels, height, width). Every map except the image is followed by a batch norm and a ReLU. Each doubling
    halves the channels, down to ``width`` in the last map. Images of 32 x 32 start from 4 x 4 x 512 and those of 48 x 48
    from 6 x 6 x 512, as published. Images of 28 x 28 start from 7 x 7 x 256, those of 64 x 64 and 128 x 128 from
    4 x 4 x 1,024.

    At 32 x 32 x 3 there are 3,804,739 parameters with 128 latent coordinates and 3,575,363 with 100. These are the
    parameters of the published table and of a batch norm after the linear layer, as in the authors' implementations.
    Biases in front of a batch norm, which subtracts them again, are left out.

    Args:
        latent_dim: Z.
        width: channels of the last map.
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
        width: Annotated[int, Range(1, None)] = 64,
        prior: PriorName = "normal",
        conditional: bool = False,
        *,
        data_shape: Annotated[tuple[int, ...], Injected],
        value_range: Annotated[tuple[float, float] | None, Injected] = None,
        num_classes: Annotated[int | None, Injected] = None,
    ) -> None:
        super().__init__()
        check_arguments(self, latent_dim=latent_dim, width=width, prior=prior)
        channels, rows, columns, count = check_doublings("the sngan base", data_shape)
        self.latent_dim = latent_dim
        self.data_shape = tuple(data_shape)
        self.value_range = value_range
        self._prior = PRIORS[prior](latent_dim)
        self.conditional = conditional
        self.num_classes = classes = checked_classes("the sngan base", num_classes, conditional)
        sizes = [width * min(2**left, WIDEST) for left in range(count, -1, -1)]
        self.first_map = (sizes[0], rows >> count, columns >> count)
        self.project = nn.Linear(latent_dim, sizes[0] * self.first_map[1] * self.first_map[2], bias=False)
        layers: list[nn.Module] = [normalisation("batch", sizes[0], classes), nn.ReLU()]
        for size, out in itertools.pairwise(sizes):
            layers += [
                nn.ConvTranspose2d(size, out, 4, stride=2, padding=1, bias=False),
                normalisation("batch", out, classes),
                nn.ReLU(),
            ]
        layers.append(nn.Conv2d(width, channels, 3, padding=1))
        self.layers = nn.Sequential(*layers)
        self.apply(_initialise)

    @property
    def prior(self) -> Prior:
        return self._prior

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        labels = own_labels("base", self, labels)
        images = in_turn(self.layers, self.project(z).unflatten(1, self.first_map), labels)
        return to_range(crop_to(images, *self.data_shape[1:]), self.value_range)


def _initialise(module: nn.Module) -> None:
    """Draw weights from N(0, 0.02²), as in the authors' implementation of SNGAN (after DCGAN)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
