"""Draws as image files, one PNG for each draw."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from gebm_kit.core.errors import UsageError
from gebm_kit.core.files import make_directory, umask, writing


def check_images(directory: Path, data_shape: tuple[int, ...], value_range: tuple[float, float] | None) -> None:
    """Check, before drawing, that images can be written to ``directory``.

    Raises:
        UsageError: the data is not an image with 1 or 3 channels or has no value range, or ``directory`` is a file or is not
            empty.
    """
    if len(data_shape) != 3 or data_shape[0] not in (1, 3):
        raise UsageError(f"only images with 1 or 3 channels are written as PNG; this data has shape {data_shape}")
    if value_range is None:
        raise UsageError("the data has no value range, so its images have no black and white")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError(f"{directory} is not an empty directory", hint="Choose another one.")


def save_images(
    parts: Iterable[Tensor],
    num_images: int,
    directory: Path,
    value_range: tuple[float, float],
    labels: Tensor | None = None,
) -> list[Path]:
    """Write images as ``directory/00000.png`` and so on, all of them or none; with labels, as ``00000-class7.png``.

    Values are scaled from ``value_range`` to 0..255 and clipped.

    Args:
        parts: batches of images (N, C, H, W) with C 1 or 3.
        num_images: number of images in all batches.
        labels: class of each image, (N,), or None.

    Raises:
        UsageError: see `check_images`; or the directory can't be written.
        RunFailed: the disk is full.
    """
    width = max(5, len(str(num_images - 1)))
    ends = [""] * num_images if labels is None else [f"-class{label}" for label in labels.tolist()]
    names = [f"{index:0{width}d}{end}.png" for index, end in enumerate(ends)]
    left = iter(names)
    make_directory(directory.parent)
    with writing(directory):
        temporary = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}-"))
        try:
            for part in parts:
                check_images(directory, tuple(part.shape[1:]), value_range)
                for image in _pixels(part, value_range):
                    content = image[0] if image.shape[0] == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
                    Image.fromarray(content).save(temporary / next(left))
            os.chmod(temporary, 0o777 & ~umask())  # mkdtemp makes directories private
            os.replace(temporary, directory)  # replaces an empty directory
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return [directory / name for name in names]


def _pixels(x: Tensor, value_range: tuple[float, float]) -> NDArray[np.uint8]:
    """Scale images to bytes."""
    low, high = value_range
    scaled = ((x.double() - low) / (high - low)).clamp(0, 1).mul(255).round()
    return scaled.to("cpu").numpy().astype(np.uint8)
