"""Decoding one image file to the shape of a dataset: transparency, modes, orientation, and how large an image may be."""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError
from torch import Tensor

from gebm_kit.core.errors import DataError, UsageError
from gebm_kit.core.reading import open_regular

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Formats of Pillow that are tried; JPEG includes MPO. Some of the others start programs (EPS)."""

IMAGE_SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
)
"""Suffixes of the files that are read, in lower case."""

DEEP_MODES = ("I", "F")
"""First letters of Pillow's modes with more than 8 bits a channel, which Pillow's conversions clip instead of scaling."""

ALPHA_MODES = ("RGBA", "RGBa", "LA", "La", "PA")
"""Pillow's modes with a channel of transparency. Files of other modes may name one colour that is transparent."""

MAX_PIXELS = 89_478_485
"""Most pixels of an image: 256 MiB of colour. Pillow warns beyond this number, as a small file can claim any size."""

warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such images are refused, see `refuse`

MAX_SIDE = 8192
"""Largest side of a dataset's images, so that one of them takes at most 192 MiB."""

ORIENTATION = 0x0112
"""EXIF tag of the orientation; 5 to 8 exchange the sides."""


class CorruptImageError(Exception):
    """A file that is not an image, or only part of one."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Steps that bring an image to its shape.

    Transparent pixels are laid over ``background``. The image is turned upright (EXIF), cut to its central ``crop`` x
    ``crop`` square when ``crop`` is given, resized with an antialiasing bicubic filter so that its shorter side is
    ``size``, and cut to the central ``size`` x ``size`` square.

    Attributes:
        size: side of the result; None keeps the size.
        crop: side of a central square that is cut out first.
        channels: 3 for colour, 1 for grey.
        background: (red, green, blue) behind transparent pixels.
    """

    size: int | None
    crop: int | None = None
    channels: int = 3
    background: tuple[int, int, int] = (255, 255, 255)

    def decode(self, file: Path | BinaryIO, name: object = None) -> Tensor:
        """Decode the image, (C, H, W) uint8; messages call it ``name``, by default its path.

        Raises:
            CorruptImageError: the image can't be decoded, or is animated.
            DataError: the image has more than 8 bits a channel, is smaller than ``crop``, or is larger than `MAX_PIXELS`.
        """
        name = file if name is None else name
        try:
            with Opened(file, name) as opened:
                refuse(opened, name)
                ImageOps.exif_transpose(opened, in_place=True)  # otherwise it copies an upright image too
                pixels = np.array(self._fitted(self._flat(opened), name))
        except (DataError, CorruptImageError):
            raise
        except Exception as error:  # Pillow raises many types on damaged files, some of them undocumented
            raise CorruptImageError(str(error) or type(error).__name__) from error
        return torch.from_numpy(pixels).reshape(*pixels.shape[:2], self.channels).permute(2, 0, 1)

    def _flat(self, image: Image.Image) -> Image.Image:
        """Return the image in grey or colour, with transparent pixels laid over the background."""
        mode = "L" if self.channels == 1 else "RGB"
        above = None
        if is_transparent(image):
            above = image if image.mode == "RGBA" else image.convert("RGBA")
        if above is None or above.getchannel("A").getextrema() == (255, 255):
            source = above if above is not None and mode == "RGB" else image
            return source if source.mode == mode else source.convert(mode)  # a large image takes memory once
        return Image.alpha_composite(Image.new("RGBA", image.size, (*self.background, 255)), above).convert(mode)

    def _fitted(self, image: Image.Image, name: object) -> Image.Image:
        if self.crop is not None:
            if min(image.size) < self.crop:
                raise DataError(f"image {name} is {image.width}x{image.height}, smaller than crop {self.crop}")
            image = _central_square(image, self.crop)
        if self.size is None:
            return image
        scale = self.size / min(image.size)
        width, height = (max(self.size, round(side * scale)) for side in image.size)
        if width * height > MAX_PIXELS:
            raise DataError(
                f"image {name} is {image.width}x{image.height}, too long and thin: with a shorter side of {self.size} it "
                f"would have {width * height:,} pixels, more than {MAX_PIXELS:,}",
                hint="Remove it, or cut it first.",
            )
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        return _central_square(image, self.size)


class Opened:
    """A context with an image whose header has been read, and its pixels have not.

    Only regular files are opened: a named pipe would block, and a device may never end.

    Args:
        file: the file.
        name: what messages call it.

    Raises:
        CorruptImageError: it is not a regular file, or not an image in one of `FORMATS`.
    """

    def __init__(self, file: Path | BinaryIO, name: object = None) -> None:
        self._file, self._name = file, file if name is None else name

    def __enter__(self) -> Image.Image:
        self._stream = _stream(self._file) if isinstance(self._file, Path) else self._file
        try:
            self._image = Image.open(self._stream, "r", FORMATS)
        except Image.DecompressionBombError as error:  # beyond twice `MAX_PIXELS`
            self._close()
            raise too_large(self._name, str(error).partition(",")[0]) from error
        except UnidentifiedImageError as error:
            self._close()
            raise CorruptImageError("it is not an image in a known format") from error
        except Exception as error:
            self._close()
            raise CorruptImageError(str(error) or type(error).__name__) from error
        return self._image

    def __exit__(self, *error: object) -> None:
        self._image.close()
        self._close()

    def _close(self) -> None:
        if isinstance(self._file, Path):
            self._stream.close()


def _stream(path: Path) -> BinaryIO:
    try:
        return open_regular(path)
    except DataError as error:
        raise CorruptImageError(str(error).removeprefix(f"{path} ")) from error


def refuse(image: Image.Image, name: object) -> None:
    """Raise if an opened image, by its header, can't be read as one image with 8 bits a channel.

    Raises:
        CorruptImageError: the image is animated, or has several pages.
        DataError: the image has more than 8 bits a channel and would be clipped, or is larger than `MAX_PIXELS`.
    """
    if image.mode.startswith(DEEP_MODES):
        raise DataError(f"image {name} has more than 8 bits a channel (mode {image.mode}); convert it first")
    if is_deep(image) and "transparency" in image.info:
        raise DataError(f"image {name} has 16 bits a channel and a transparent colour; convert it first")
    if image.width * image.height > MAX_PIXELS:
        raise too_large(name, f"it has {image.width:,}x{image.height:,} pixels")
    if image.format != "MPO" and getattr(image, "is_animated", False):  # MPO: a photograph and its previews
        raise CorruptImageError("it has more than one frame; save the one that is meant as a file of its own")


def too_large(name: object, found: str) -> DataError:
    """Return the error about an image of too many pixels."""
    return DataError(
        f"image {name} is too large: {found[:1].lower()}{found[1:]}; at most {MAX_PIXELS:,} are decoded",
        hint="Remove it, or make it smaller.",
    )


def is_transparent(image: Image.Image) -> bool:
    """Return whether pixels of the image can be transparent, by its mode or a colour that its file names."""
    return image.mode in ALPHA_MODES or "transparency" in image.info


def is_deep(image: Image.Image) -> bool:
    """Return whether the file has 16 bits a channel, of which Pillow keeps the upper eight."""
    return any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def upright_sides(image: Image.Image) -> tuple[int, int]:
    """Return the (height, width) that the image has once it is turned upright."""
    return image.size if image.getexif().get(ORIENTATION) in (5, 6, 7, 8) else image.size[::-1]


def background_colour(background: str) -> tuple[int, int, int]:
    """Return (red, green, blue) of a colour, such as ``white`` or ``#808080``.

    Raises:
        UsageError: it is not an opaque colour.
    """
    colour: tuple[int, ...] = ()
    with contextlib.suppress(ValueError, AttributeError, TypeError):
        colour = ImageColor.getrgb(background)
    if len(colour) != 3:
        raise UsageError(f"background is a colour such as white, black or '#808080', got {background!r}")
    return colour[0], colour[1], colour[2]


def _central_square(image: Image.Image, side: int) -> Image.Image:
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
