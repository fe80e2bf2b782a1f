"""Images inside a page: grids as PNG with transparent gaps, which suit a light and a dark page."""

from __future__ import annotations

import base64

import numpy as np
from markupsafe import Markup
from PIL.Image import fromarray
from torch import Tensor

from gebm_kit.core.mosaic import png_of
from gebm_kit.engine.reporting.words import plain

COLUMNS = 8
"""Images in a row: on a phone each is still some forty pixels wide."""

LARGEST_SIDE = 96
"""Images with longer sides are shown smaller, which bounds the size of the page."""


def grid(
    images: Tensor, value_range: tuple[float, float], alternative: str, columns: int = COLUMNS, pairs: int = 1
) -> Markup:
    """Return images (N, C, H, W) as one ``<img>``, with a gap between them.

    Args:
        value_range: (low, high), drawn black and white. Of one channel or three, all are drawn; else the first.
        alternative: what the images are, for readers who don't see them.
        columns: images in a row.
        pairs: rows that belong together; a wider gap follows them.
    """
    bytes_of = _bytes(images, value_range)
    num, _, height, width = bytes_of.shape
    columns = max(min(columns, num), 1)
    lines = -(-num // columns)
    gap = max(1, min(height, width) // 24)
    tops = [line * (height + gap) + (line // pairs) * (3 * gap if pairs > 1 else 0) for line in range(lines)]
    sheet = np.zeros((tops[-1] + height, columns * (width + gap) - gap, 4), dtype=np.uint8)
    for place, image in enumerate(bytes_of):
        top, left = tops[place // columns], (place % columns) * (width + gap)
        sheet[top : top + height, left : left + width, :3] = image.transpose(1, 2, 0)
        sheet[top : top + height, left : left + width, 3] = 255
    picture = fromarray(sheet)
    return img(png_of(picture), alternative, *picture.size)


def img(png: bytes, alternative: str, width: int, height: int) -> Markup:
    """Return a PNG as an ``<img>`` of the page."""
    source = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    template = Markup('<img src="{}" alt="{}" width="{}" height="{}">')
    return template.format(source, plain(alternative, 4000), int(width), int(height))


def span_of(images: list[Tensor], value_range: tuple[float, float] | None) -> tuple[float, float]:
    """Return the range that is drawn black to white: the data's, or the central 99 % of all values."""
    if value_range is not None:
        return value_range
    values = np.concatenate([part.detach().float().cpu().numpy().ravel() for part in images])
    finite = values[np.isfinite(values)]
    low, high = (float(q) for q in np.quantile(finite, [0.005, 0.995])) if finite.size else (0.0, 1.0)
    return low, max(high, low + 1e-6)


def _bytes(images: Tensor, value_range: tuple[float, float]) -> np.ndarray:
    """Return images as bytes (N, 3, H, W), smaller where they are large."""
    low, high = value_range
    x = images.detach().float().cpu()
    x = x if x.shape[1] == 3 else x[:, :1].expand(-1, 3, -1, -1)
    x = x.sub(low).div(max(high - low, 1e-12)).nan_to_num(nan=0.5, posinf=1.0, neginf=0.0).clamp(0, 1)
    step = -(-max(x.shape[2:]) // LARGEST_SIDE)
    if step > 1:
        import torch.nn.functional as F

        x = F.avg_pool2d(x, step)
    return np.asarray(x.mul(255).round().byte().numpy())
