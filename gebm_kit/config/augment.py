"""Kinds of augmentation that ``train.augment`` may list, with their parameters. This file does not import torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

from gebm_kit.config.yaml_values import Key
from gebm_kit.core.components import Range

Probability = Annotated[float, Range(0, 1)]
Share = Annotated[float, Range(0, 1, low_open=True)]

AUGMENT_LISTS: tuple[Key, ...] = (("train", "augment"), ("train", "final", "augment"))
"""Keys that hold a list of augmentations."""


@dataclass(frozen=True, slots=True)
class FlipSection:
    """Mirror left to right.

    Attributes:
        probability: of each image.
    """

    probability: Probability = 0.5


@dataclass(frozen=True, slots=True)
class TranslationSection:
    """Shift by up to a share of each side, in whole pixels; what comes in repeats the edge.

    Attributes:
        share: of the side.
        probability: of each image.
    """

    share: Share = 0.125
    probability: Probability = 0.5


@dataclass(frozen=True, slots=True)
class CutoutSection:
    """Cover a box around a random pixel with the middle of the value range.

    Attributes:
        share: of the image's sides that the box has.
        probability: of each image.
    """

    share: Share = 0.5
    probability: Probability = 0.5


@dataclass(frozen=True, slots=True)
class ColourSection:
    """Move an image with three channels towards white or black, towards its greys, and towards its mean.

    Attributes:
        brightness: largest share of the way to white or black.
        saturation: largest share of the way to the mean of the channels at each pixel.
        contrast: largest share of the way to the mean of the image.
        probability: of each image.
    """

    brightness: Probability = 0.25
    saturation: Probability = 0.5
    contrast: Probability = 0.5
    probability: Probability = 0.5


AUGMENTATIONS: dict[str, type] = {
    "flip": FlipSection,
    "translation": TranslationSection,
    "cutout": CutoutSection,
    "colour": ColourSection,
}
"""The kinds of augmentation by name, and the parameters of each."""


def parameters_of(section: Any) -> dict[str, Any]:
    """Return the parameters of one of `AUGMENTATIONS` as a mapping."""
    return dataclasses.asdict(section)
