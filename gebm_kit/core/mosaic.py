"""Many images as one picture."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

Array = NDArray[np.floating[Any]]

COLUMNS = 8
"""Images in a row of a mosaic."""


def mosaic(images: Array, value_range: tuple[float, float], columns: int = COLUMNS) -> Array:
    """Join images (N, C, H, W) into one picture (rows, columns[, 3]) in [0, 1], with one white pixel between them."""
    low, high = value_range
    scaled = np.nan_to_num((images - low) / max(high - low, 1e-12), nan=0.5, posinf=1.0, neginf=0.0).clip(0.0, 1.0)
    if scaled.shape[1] != 3:
        scaled = scaled[:, :1]
    num, channels, height, width = scaled.shape
    columns = min(columns, max(num, 1))
    lines = max(math.ceil(num / columns), 1)
    picture = np.ones((lines * (height + 1) - 1, columns * (width + 1) - 1, channels), dtype=scaled.dtype)
    for i, image in enumerate(scaled):
        top, left = (i // columns) * (height + 1), (i % columns) * (width + 1)
        picture[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    return picture[..., 0] if channels == 1 else picture


def are_images(shape: tuple[int, ...]) -> bool:
    """Return whether data of this shape can be drawn as images: (C, H, W), or (H, W)."""
    return len(shape) in (2, 3) and min(shape) > 0


def image_of(
    x: Tensor, value_range: tuple[float, float] | None, columns: int = COLUMNS, scale: int | None = None
) -> Image:
    """Return images (N, C, H, W) or (N, H, W) as one picture.

    Args:
        value_range: (low, high), drawn black and white; None: the central 99 % of all values.
        columns: images in a row.
        scale: pixels for each pixel of an image; None: as many as bring an image to about 48 pixels, 1 to 8.
    """
    from PIL.Image import Resampling, fromarray

    images = x.detach().float().cpu().numpy()
    images = images[:, None] if images.ndim == 3 else images
    if value_range is None:
        finite = images[np.isfinite(images)]
        low, high = (float(q) for q in np.quantile(finite, [0.005, 0.995])) if finite.size else (0.0, 1.0)
        value_range = (low, high)
    picture = fromarray((mosaic(images, value_range, columns) * 255).round().astype(np.uint8))
    times = scale or min(max(48 // max(images.shape[2:]), 1), 8)
    size = (picture.width * times, picture.height * times)
    return picture if times == 1 else picture.resize(size, Resampling.NEAREST)


def png_of(picture: Image) -> bytes:
    """Return a picture as the content of a PNG file."""
    content = io.BytesIO()
    picture.save(content, format="PNG")
    return content.getvalue()
