"""Augmentation of the images that the energy sees in training: of data, base draws and negatives alike.

With a random transformation T, independent of the image, the energy is trained on the laws of T(x), x data, and of T(G(z)).
Its optimum is the log ratio of these two laws. At an image y it is

    r(y) = log E_{x ~ B | T(x) = y}[p(x) / b(x)],

the plain ratio averaged over the images that T may have made y from. The base learns through T, which is differentiable in
the image. If each kind leaves more than half of the images as they are, equal augmented laws mean equal laws, so nothing of
T leaks into the base. `flip` at 1/2 can't tell an image from its mirror image.

Sampling and evaluation show the energy plain images, so these must occur in training: every kind has a probability below 1.
A hole of `cutout` can be told from an image without one, so at images without a hole cutout does not change the optimum.
`translation` and `colour` smooth it. A final phase without augmentation (``train.final.augment: []``) fits the plain ratio.

Instance noise is added first. Chains in data space then walk where plain data with noise lie, and their ends are augmented
as those data are.

References:
    Differentiable Augmentation for Data-Efficient GAN Training. S. Zhao, Z. Liu, J. Lin, J.-Y. Zhu, S. Han, NeurIPS 2020.
    https://arxiv.org/abs/2006.10738
    Training Generative Adversarial Networks with Limited Data. T. Karras et al., NeurIPS 2020.
    https://arxiv.org/abs/2006.06676 (Section 2.2: a transformation that is sometimes left out does not leak)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gebm_kit.config.schema import ComponentNode, Recipe
from gebm_kit.core import reduce
from gebm_kit.core.errors import RecipeError, UsageError
from gebm_kit.core.interfaces import Dataset, Energy, OnCodes
from gebm_kit.core.model import GEBM
from gebm_kit.engine.training.final_phase import FinalParts

ValueRange = tuple[float, float] | None


class Augmentation:
    """The augmentations of a phase, one after another in the recipe's order; without any it returns its images as they are.

    Every row draws its own random numbers, as a single process would over several ranks. Pixels stay in the value range,
    since each change replaces a pixel by another one, or averages it with a value inside the range. None clips a pixel,
    which would cut the base's gradient there.

    Args:
        nodes: names and parameters, as in the recipe.
        value_range: range of the data; None if unbounded.
    """

    def __init__(self, nodes: Sequence[ComponentNode], value_range: ValueRange) -> None:
        self._nodes = tuple(nodes)
        self._range = value_range

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the images changed at random; (B, C, H, W) -> (B, C, H, W)."""
        for node in self._nodes:
            parameters = dict(node.parameters)
            chosen = reduce.rand_rows(images, generator) < parameters.pop("probability")
            images = torch.where(chosen, KINDS[node.name](images, generator, self._range, **parameters), images)
        return images


def flip(images: Tensor, generator: torch.Generator, value_range: ValueRange) -> Tensor:
    """Mirror left to right."""
    return images.flip(-1)


def translate(images: Tensor, generator: torch.Generator, value_range: ValueRange, share: float) -> Tensor:
    """Shift by whole pixels, uniform up to ``share`` of each side in both directions.

    What comes in repeats the edge. The published method fills in zeros, the middle grey of [-1, 1]: the energy would learn
    seams that no plain image has. Repeated edges look like the image's own background, whatever its colour.
    """
    for axis in (2, 3):
        side = images.shape[axis]
        most = max(round(share * side), 1)
        shift = torch.floor(reduce.rand_rows(images, generator) * (2 * most + 1)) - most
        shape = [1, 1, 1, 1]
        shape[axis] = side
        places = torch.arange(side, device=images.device).view(shape) + shift.long()
        images = images.gather(axis, places.clamp(0, side - 1).expand(images.shape))
    return images


def cut_out(images: Tensor, generator: torch.Generator, value_range: ValueRange, share: float) -> Tensor:
    """Cover a box, ``share`` of each side long, around a uniform pixel with the middle of the range, or 0 without one.

    The box may reach over the edge, as in the published method.
    """
    inside = torch.ones_like(images[:, :1], dtype=torch.bool)
    for axis in (2, 3):
        side = images.shape[axis]
        length = max(round(share * side), 1)
        start = torch.floor(reduce.rand_rows(images, generator) * side) - length // 2
        shape = [1, 1, 1, 1]
        shape[axis] = side
        place = torch.arange(side, device=images.device).view(shape)
        inside = inside & (place >= start) & (place < start + length)
    middle = 0.0 if value_range is None else 0.5 * (value_range[0] + value_range[1])
    return images.masked_fill(inside, middle)


def recolour(
    images: Tensor,
    generator: torch.Generator,
    value_range: ValueRange,
    brightness: float,
    saturation: float,
    contrast: float,
) -> Tensor:
    """Average each image with white or black, each pixel with its grey, and each image with its mean, by random shares.

    The share for brightness is uniform on [-brightness, brightness], a negative one being towards black. The other two are
    uniform on [0, saturation] and [0, contrast].
    """
    assert value_range is not None
    low, high = value_range
    towards = brightness * (2.0 * reduce.rand_rows(images, generator) - 1.0)
    end = torch.where(towards < 0, torch.full_like(towards, low), torch.full_like(towards, high))
    images = torch.lerp(images, end, towards.abs())
    images = torch.lerp(images, images.mean(1, keepdim=True), saturation * reduce.rand_rows(images, generator))
    return torch.lerp(images, images.mean((1, 2, 3), keepdim=True), contrast * reduce.rand_rows(images, generator))


KINDS: dict[str, Callable[..., Tensor]] = {
    "flip": flip,
    "translation": translate,
    "cutout": cut_out,
    "colour": recolour,
}
"""The function behind each of `gebm_kit.config.augment.AUGMENTATIONS`."""


class Augmentations(NamedTuple):
    """The augmentations of the main phase and of the final one."""

    main: Augmentation
    final: Augmentation


def augmentations(recipe: Recipe, model: GEBM, final: FinalParts | None, dataset: Dataset) -> Augmentations:
    """Build the augmentations of both phases.

    Args:
        model: the model of the main phase.
        final: the final phase's own loss and energy, if it has any.
        dataset: the data.

    Raises:
        RecipeError: the data are not images, or not images in colour with a value range where `colour` is listed.
        UsageError: the energy is on the base's codes.
    """
    last: Energy = model.energy if final is None or final.energy is None else final.energy
    shape, bounds = tuple(dataset.data_shape), dataset.value_range
    _check("train.augment", recipe.train.augment, model.energy, shape, bounds)
    if recipe.train.final.steps:
        _check("train.final.augment", recipe.final_augment, last, shape, bounds)
    return Augmentations(Augmentation(recipe.train.augment, bounds), Augmentation(recipe.final_augment, bounds))


def _check(
    key: str, nodes: Sequence[ComponentNode], energy: Energy, shape: tuple[int, ...], value_range: ValueRange
) -> None:
    if not nodes:
        return
    if len(shape) != 3:
        raise RecipeError(
            f"{key} changes images, of shape (channels, height, width), but the data has shape {shape}",
            hint=f"Set {key}=[].",
        )
    if isinstance(energy, OnCodes):
        raise UsageError(
            f"{key} changes images, and the energy {type(energy).__name__} sees the base's codes instead",
            hint=f"Set {key}=[], or use an energy on the data.",
        )
    if any(node.name == "colour" for node in nodes):
        if shape[0] != 3:
            raise RecipeError(
                f"{key}: colour changes images with 3 channels, but the data has {shape[0]}",
                hint="Use flip, translation and cutout alone.",
            )
        if value_range is None:
            raise RecipeError(
                f"{key}: colour moves pixels towards black and white, but the data has no value range",
                hint="Use flip, translation and cutout alone.",
            )
