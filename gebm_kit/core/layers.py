"""Layers and checks that several bases and energies share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from gebm_kit.core.classes import checked_labels
from gebm_kit.core.errors import DataError, RecipeError, UsageError, nearest

Activation = Literal["relu", "leaky-relu", "silu", "gelu", "elu", "softplus", "tanh"]


def activation_layer(name: str) -> nn.Module:
    """Return the activation called ``name``; ``leaky-relu`` has slope 0.2, as in DCGAN.

    Raises:
        UsageError: there is no such activation.
    """
    match name:
        case "relu":
            return nn.ReLU()
        case "leaky-relu":
            return nn.LeakyReLU(0.2)
        case "silu":
            return nn.SiLU()
        case "gelu":
            return nn.GELU()
        case "elu":
            return nn.ELU()
        case "softplus":
            return nn.Softplus()
        case "tanh":
            return nn.Tanh()
    raise UsageError(f"activation {name!r} is unknown; {nearest(name, get_args(Activation))}")


def check_sizes(name: str, sizes: Sequence[int]) -> None:
    """Raise RecipeError unless all ``sizes`` (the parameter ``name``) are whole numbers of at least 1."""
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise RecipeError(f"{name} must hold whole numbers of at least 1, got {list(sizes)}")


def check_image(component: str, data_shape: Sequence[int]) -> tuple[int, int, int]:
    """Return ``data_shape`` as (channels, height, width).

    Raises:
        DataError: it is not the shape of an image.
    """
    if len(data_shape) != 3 or min(data_shape) < 1:
        raise DataError(
            f"{component} works on images, of shape (channels, height, width), but the data has shape {tuple(data_shape)}",
            hint="Use the mlp base and the mlp energy for data that are not images.",
        )
    channels, height, width = data_shape
    return channels, height, width


SMALLEST_FIRST_MAP = 4
"""Side of the first feature map in DCGAN and SNGAN. More than two doublings are made only while it stays this large."""


def doublings(height: int, width: int) -> int:
    """Return how often the first feature map is doubled: twice, and more while its sides stay whole and at least 4."""
    count = 2
    while all(side % 2 ** (count + 1) == 0 and side >> (count + 1) >= SMALLEST_FIRST_MAP for side in (height, width)):
        count += 1
    return count


LARGEST_MARGIN = 0.125
"""Largest share of a side that is added to it for one more doubling, where a side is not a multiple of 4."""


def check_doublings(component: str, data_shape: Sequence[int]) -> tuple[int, int, int, int]:
    """Return (channels, height, width) of the last feature map, and the number of `doublings` from the first map to it.

    The last map has the image's sides if these are multiples of 4. It is larger otherwise: each side is rounded up to a
    multiple of 2^k, for k doublings. A generator then cuts its output down (`crop_to`), an energy pads its input (`pad_to`).

    Raises:
        DataError: it is not the shape of an image.
    """
    channels, height, width = check_image(component, data_shape)
    if not (height % 4 or width % 4):
        return channels, height, width, doublings(height, width)
    count = 2
    while all(
        _rounded_up(side, count + 1) >= SMALLEST_FIRST_MAP << (count + 1)
        and _rounded_up(side, count + 1) - side <= LARGEST_MARGIN * side
        for side in (height, width)
    ):
        count += 1
    return channels, _rounded_up(height, count), _rounded_up(width, count), count


def _rounded_up(side: int, count: int) -> int:
    """Return the smallest multiple of ``2^count`` that is not below ``side``."""
    return -(-side >> count) << count


def crop_to(images: Tensor, height: int, width: int) -> Tensor:
    """Return the central part of that size, or the images themselves if they have it; (B, C, H, W) -> (B, C, h, w)."""
    above, left = (images.shape[2] - height) // 2, (images.shape[3] - width) // 2
    if images.shape[2:] == (height, width):
        return images
    return images[:, :, above : above + height, left : left + width]


def pad_to(images: Tensor, height: int, width: int) -> Tensor:
    """Return the images inside a border of zeros, or themselves if they have that size; (B, C, h, w) -> (B, C, H, W)."""
    down, right = height - images.shape[2], width - images.shape[3]
    if not (down or right):
        return images
    return nn.functional.pad(images, (right // 2, right - right // 2, down // 2, down - down // 2))


class PadTo(nn.Module):
    """A layer that does `pad_to`."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, images: Tensor) -> Tensor:
        return pad_to(images, self.height, self.width)


def to_range(output: Tensor, value_range: tuple[float, float] | None) -> Tensor:
    """Return ``tanh(output)`` rescaled to (low, high), or ``output`` itself if the data are unbounded."""
    if value_range is None:
        return output
    low, high = value_range
    squashed = torch.tanh(output)
    if (low, high) == (-1.0, 1.0):
        return squashed
    return 0.5 * (low + high) + 0.5 * (high - low) * squashed


def spectrally_normalised(layer: nn.Module, active: bool = True) -> nn.Module:
    """Return ``layer`` with its weight divided by an estimate of its largest singular value; unchanged unless ``active``.

    The estimate takes one power iteration at each evaluation in training mode and none in eval mode. A convolution's
    weight is normalised as the (out, in * k * k) matrix, as in the paper; this bounds the operator only up to a factor.

    References:
        Spectral Normalization for Generative Adversarial Networks. T. Miyato et al., ICLR 2018.
        https://arxiv.org/abs/1802.05957
    """
    return parametrizations.spectral_norm(layer) if active else layer


EMBEDDING_SIZE = 16
"""Size of the learned vector of a class that fully connected networks take beside their input."""


class ClassEmbedding(nn.Embedding):
    """A learned vector for each class; (B,) -> (B, F).

    Raises:
        UsageError: a label is not one of a class. On a GPU torch itself stops the program instead.
    """

    def forward(self, labels: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return super().forward(labels)
        try:
            return super().forward(labels)
        except IndexError:
            checked_labels(labels, self.num_embeddings)
            raise


class Projection(nn.Module):
    """The class's part of a projection energy, ``v_y . features``, added to the readout's ``w . features``; (B, F) -> (B,).

    With ``spectral_norm`` the matrix of all v_y is divided by its largest singular value, so that no v_y is longer than 1.
    Sums are in the precision of the weights, as in `Readout`.

    References:
        cGANs with Projection Discriminator. T. Miyato, M. Koyama, ICLR 2018. https://arxiv.org/abs/1802.05637
    """

    def __init__(self, num_classes: int, features: int, *, spectral_norm: bool = False) -> None:
        super().__init__()
        embedding = ClassEmbedding(num_classes, features)
        nn.init.normal_(embedding.weight, std=features**-0.5)
        self.embedding = spectrally_normalised(embedding, spectral_norm)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            vectors: Tensor = self.embedding(labels)
            return (vectors * features.to(vectors.dtype)).sum(1)


class ClassNorm(nn.Module):
    """Class-conditional normalisation: a norm, then a gain and a shift of the class; (B, C, H, W), (B,) -> (B, C, H, W).

    All gains start at 1 and all shifts at 0, so the classes are alike at the start.

    Args:
        norm: ``batch``, or ``layer`` over channels and pixels.
        channels: C.
        num_classes: K.

    References:
        Modulating early visual processing by language. H. de Vries et al., NeurIPS 2017.
        https://arxiv.org/abs/1707.00683
    """

    takes_labels = True

    def __init__(self, norm: Literal["batch", "layer"], channels: int, num_classes: int) -> None:
        super().__init__()
        batch = norm == "batch"
        self.norm = nn.BatchNorm2d(channels, affine=False) if batch else nn.GroupNorm(1, channels, affine=False)
        self.gain, self.shift = ClassEmbedding(num_classes, channels), ClassEmbedding(num_classes, channels)
        nn.init.ones_(self.gain.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        gain, shift = (part(labels)[:, :, None, None] for part in (self.gain, self.shift))
        return torch.addcmul(shift, self.norm(images), gain)


def normalisation(name: Literal["none", "batch", "layer"], channels: int, num_classes: int | None = None) -> nn.Module:
    """Return a norm of feature maps: of batches, of layers (over channels and pixels), or none.

    Args:
        num_classes: number of classes that each get a gain and a shift (`ClassNorm`); None: one gain and shift.
    """
    if name == "none":
        return nn.Identity()
    if num_classes is not None:
        return ClassNorm(name, channels, num_classes)
    return nn.BatchNorm2d(channels) if name == "batch" else nn.GroupNorm(1, channels)


def in_turn(layers: nn.Sequential, x: Tensor, labels: Tensor | None) -> Tensor:
    """Apply layers one after the other; those with an attribute ``takes_labels`` also get the labels, if there are any."""
    if labels is None:
        found: Tensor = layers(x)
        return found
    for layer in layers:
        x = layer(x, labels) if getattr(layer, "takes_labels", False) else layer(x)
    return x


class Readout(nn.Module):
    """A linear functional without bias, ``w . features``; (B, F) -> (B,).

    It switches autocast off, so that energies are summed in the precision of the weights (float32) even in a bfloat16
    run: samplers compare energies, and bfloat16 keeps only eight bits of them.
    """

    def __init__(self, features: int, *, spectral_norm: bool = False) -> None:
        super().__init__()
        self.linear = spectrally_normalised(nn.Linear(features, 1, bias=False), spectral_norm)

    def forward(self, features: Tensor) -> Tensor:
        device = features.device.type
        if not torch.is_autocast_enabled(device):
            return self.linear(features).squeeze(1)
        with torch.autocast(device, enabled=False):
            return self.linear(features.float()).squeeze(1)
