"""The convolutional generator of DCGAN, for images of any size.

References:
    Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks. A. Radford, L. Metz,
    S. Chintala, ICLR 2016. https://arxiv.org/abs/1511.06434
    Deconvolution and Checkerboard Artifacts. A. Odena, V. Dumoulin, C. Olah, Distill 2016.
    https://distill.pub/2016/deconv-checkerboard (on upsampling before the convolution)
"""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor, nn

from gebm_kit.core.classes import checked_classes, own_labels
from gebm_kit.core.components import Injected, Range, check_arguments
from gebm_kit.core.errors import RecipeError
from gebm_kit.core.interfaces import Base
from gebm_kit.core.layers import check_doublings, crop_to, in_turn, normalisation, to_range
from gebm_kit.core.priors import PRIORS, Prior, PriorName


class DcganBase(Base):
    """A linear layer to a small feature map, then doublings (convolution, norm, ReLU). The last one gives the image.

    (B, Z) -> (B, channels, height, width). A 64 x 64 image starts from 4 x 4 and is doubled four times; a 28 x 28 image
    starts from 7 x 7 and is doubled twice. Feature maps have ``width * 2^k`` channels. Each doubling halves them, down to
    ``width`` before the last one. Where a side is not a multiple of 4, the network makes a slightly larger image and
    returns its centre.

    Args:
        latent_dim: Z.
        width: channels before the last doubling (64 in the paper).
        upsample: ``transpose``: a transposed 4x4 convolution of stride 2, as in the paper; ``nearest``: nearest-neighbour
            upsampling, then a 3x3 convolution, which leaves no checkerboard.
        norm: normalisation before each ReLU. Batch norm, used in the paper, takes running statistics in eval mode. Layer
            norm (over channels and pixels) is the same map in training and in sampling.
        prior: distribution of z: ``normal``, ``uniform`` on [-1, 1]^Z or ``sphere`` of radius sqrt(Z).
        conditional: whether the base makes draws of a class, for data with labels. Each norm then has a gain and a shift
            for each class, so ``norm`` must be ``batch`` or ``layer``.
        data_shape: (channels, height, width).
        value_range: range of the data, to which a final tanh is rescaled; None leaves the output linear.
        num_classes: number of classes of the data, or None.

    Raises:
        DataError: the data are not images.
        RecipeError: ``conditional`` is set without a norm.
        UsageError: an argument is outside its range; ``conditional`` is set for data without labels.
    """

    def __init__(
        self,
        latent_dim: Annotated[int, Range(1, None)] = 100,
        width: Annotated[int, Range(1, None)] = 64,
        upsample: Literal["transpose", "nearest"] = "transpose",
        norm: Literal["none", "batch", "layer"] = "batch",
        prior: PriorName = "normal",
        conditional: bool = False,
        *,
        data_shape: Annotated[tuple[int, ...], Injected],
        value_range: Annotated[tuple[float, float] | None, Injected] = None,
        num_classes: Annotated[int | None, Injected] = None,
    ) -> None:
        super().__init__()
        check_arguments(self, latent_dim=latent_dim, width=width, upsample=upsample, norm=norm, prior=prior)
        channels, rows, columns, count = check_doublings("the dcgan base", data_shape)
        self.latent_dim = latent_dim
        self.data_shape = tuple(data_shape)
        self.value_range = value_range
        self._prior = PRIORS[prior](latent_dim)
        size = width * 2 ** (count - 1)
        self.first_map = (size, rows >> count, columns >> count)
        self.project = nn.Linear(latent_dim, size * self.first_map[1] * self.first_map[2], bias=False)
        self.conditional = conditional
        self.num_classes = classes = checked_classes("the dcgan base", num_classes, conditional)
        if conditional and norm == "none":
            raise RecipeError("conditional gives each norm a gain and a shift for each class, and norm is none")
        layers: list[nn.Module] = [normalisation(norm, size, classes), nn.ReLU()]
        for _ in range(count - 1):
            layers.append(_doubling(upsample, size, size // 2, bias=norm == "none"))
            layers += [normalisation(norm, size // 2, classes), nn.ReLU()]
            size //= 2
        layers.append(_doubling(upsample, size, channels, bias=True))
        self.layers = nn.Sequential(*layers)
        self.apply(_initialise)

    @property
    def prior(self) -> Prior:
        return self._prior

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        labels = own_labels("base", self, labels)
        images = in_turn(self.layers, self.project(z).unflatten(1, self.first_map), labels)
        return to_range(crop_to(images, *self.data_shape[1:]), self.value_range)


def _doubling(upsample: str, channels: int, out: int, *, bias: bool) -> nn.Module:
    if upsample == "transpose":
        return nn.ConvTranspose2d(channels, out, 4, stride=2, padding=1, bias=bias)
    return nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(channels, out, 3, padding=1, bias=bias))


def _initialise(module: nn.Module) -> None:
    """Draw convolution weights from N(0, 0.02²), as in the paper. The projection keeps torch's default, for every norm."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
