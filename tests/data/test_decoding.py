"""Decoding one image: transparency, modes, orientation, size, and files that are no images."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gebm_kit.core.errors import DataError, UsageError
from gebm_kit.data.decoding import MAX_PIXELS, CorruptImageError, Fit, background_colour

HIDDEN, SEEN = (7, 99, 200), (250, 5, 60)
"""The colour of the transparent pixels, which no viewer shows, and of the opaque ones."""


def picture() -> Image.Image:
    """Return a picture of 16 x 16 pixels, the upper half transparent."""
    pixels = np.zeros((16, 16, 4), dtype=np.uint8)
    pixels[:8], pixels[8:] = (*HIDDEN, 0), (*SEEN, 255)
    return Image.fromarray(pixels)


def png(colour_type: int, bits: int, pixels: np.ndarray, transparent: bytes = b"", sides: Any = None) -> bytes:
    """Write a PNG file of any type, claiming other sides if they are given; pixels are (H, W, channels)."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = sides or pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2" if bits == 16 else "u1").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    middle = chunk(b"tRNS", transparent) if transparent else b""
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + middle
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def decode(content: bytes, **arguments: Any) -> torch.Tensor:
    return Fit(None, **arguments).decode(io.BytesIO(content), "it")


def saved(image: Image.Image, kind: str, **arguments: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **arguments)
    return stream.getvalue()


def with_transparent_colour(kind: str, mode: str) -> bytes:
    opaque = picture().convert("RGB")
    opaque = opaque.quantize(8) if mode == "P" else opaque.convert(mode)
    return saved(opaque, kind, transparency=opaque.getpixel((0, 0)))


TRANSPARENT = {
    "RGBA PNG": lambda: saved(picture(), "png"),
    "LA PNG": lambda: saved(picture().convert("LA"), "png"),
    "RGB PNG with a transparent colour": lambda: with_transparent_colour("png", "RGB"),
    "L PNG with a transparent colour": lambda: with_transparent_colour("png", "L"),
    "palette PNG with a transparent entry": lambda: with_transparent_colour("png", "P"),
    "palette PNG with alpha": lambda: saved(picture().quantize(8, method=Image.Quantize.FASTOCTREE), "png"),
    "1-bit PNG with a transparent colour": lambda: with_transparent_colour("png", "1"),
    "16-bit RGBA PNG": lambda: png(6, 16, np.asarray(picture()).astype(np.int64) * 257),
    "16-bit LA PNG": lambda: png(4, 16, np.asarray(picture().convert("LA")).astype(np.int64) * 257),
    "GIF": lambda: with_transparent_colour("gif", "P"),
    "WebP": lambda: saved(picture(), "webp", lossless=True, exact=True),
    "TIFF": lambda: saved(picture(), "tiff"),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("colour", ["white", "black", "#102030"])
@pytest.mark.parametrize("kind", TRANSPARENT)
def test_transparent_pixels_become_the_background(kind: str, colour: str, channels: int) -> None:
    background = background_colour(colour)
    pixels = decode(TRANSPARENT[kind](), background=background, channels=channels)
    expected = Image.new("RGB", (1, 1), background).convert("L" if channels == 1 else "RGB").getpixel((0, 0))
    assert pixels[:, 3, 3].tolist() == ([expected] if channels == 1 else list(expected))
    if "1-bit" not in kind:  # one of the two colours of such a picture is transparent, here all of it
        seen = Image.new("RGB", (1, 1), SEEN)
        seen = seen.convert("L") if channels == 1 or "LA" in kind.split() or kind.startswith("L ") else seen
        wanted = np.broadcast_to(seen.getpixel((0, 0)), (channels,))
        assert pixels[:, 12, 12].tolist() == pytest.approx(wanted.tolist(), abs=1)


def test_half_transparent_pixels_are_mixed_with_the_background() -> None:
    half = Image.new("RGBA", (4, 4), (200, 0, 100, 128))
    assert decode(saved(half, "png"), background=(0, 0, 0))[:, 0, 0].tolist() == pytest.approx([100, 0, 50], abs=1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_opaque_images_with_alpha_are_read_as_without(mode: str, channels: int) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    if mode == "P":
        plain = noise.quantize(16)
        content = saved(plain, "png", transparency=b"\xff" * 16)
    else:
        plain = noise.convert(mode[:-1])
        content = saved(plain.convert(mode), "png")
    expected = np.asarray(plain.convert("L" if channels == 1 else "RGB")).reshape(16, 16, channels)
    assert torch.equal(decode(content, channels=channels), torch.from_numpy(expected.copy()).permute(2, 0, 1))


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr"])
def test_other_modes_are_converted(mode: str) -> None:
    image = picture().convert("RGB").convert(mode)
    expected = np.asarray(image.convert("RGB"))
    content = saved(image, "tiff")
    try:
        Image.open(io.BytesIO(content)).load()
    except OSError as error:  # Pillow 12.3, of what it wrote itself
        pytest.skip(f"this Pillow can't read a TIFF of mode {mode}: {error}")
    assert torch.equal(decode(content), torch.from_numpy(expected.copy()).permute(2, 0, 1))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "webp", "tiff"])
def test_every_orientation_is_turned_upright(kind: str, orientation: int) -> None:
    upright = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    turns = {2: (0,), 3: (3,), 4: (1,), 5: (5,), 6: (2,), 7: (6,), 8: (4,)}  # Image.Transpose, inverse to the tag
    image = Image.fromarray(upright)
    for turn in turns.get(orientation, ()):
        image = image.transpose(Image.Transpose(turn))
    exif = Image.Exif()
    exif[0x0112] = orientation
    arguments = {"lossless": True} if kind == "webp" else {}
    pixels = decode(saved(image, kind, exif=exif, **arguments))
    assert torch.equal(pixels, torch.from_numpy(upright.copy()).permute(2, 0, 1))


def test_sixteen_bits_of_grey_are_refused_and_of_colour_reduced() -> None:
    deep = np.full((4, 4, 3), 40_000)
    with pytest.raises(DataError, match="it has more than 8 bits"):
        decode(png(0, 16, deep[..., :1]))
    assert decode(png(2, 16, deep)).unique().tolist() == [40_000 >> 8]
    with pytest.raises(DataError, match="a transparent colour"):  # which of the 16-bit colours was meant is lost
        decode(png(2, 16, deep, transparent=struct.pack(">HHH", 40_000, 40_000, 40_000)))


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "tiff"])
def test_animated_files_and_pages_are_refused(kind: str) -> None:
    frames = [Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8)) for value in (10, 200)]
    with pytest.raises(CorruptImageError, match="more than one frame"):
        decode(saved(frames[0], kind, save_all=True, append_images=frames[1:]))


def test_photographs_with_a_preview_are_one_image() -> None:
    frames = [Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8)) for value in (10, 200)]
    content = saved(frames[0], "mpo", save_all=True, append_images=frames[1:])
    assert float(decode(content).float().mean()) == pytest.approx(10, abs=2)


@pytest.mark.parametrize("sides", [(13_000, 13_000), (40_000, 40_000), (1, MAX_PIXELS + 1)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_images_that_claim_too_many_pixels_are_refused_by_their_header(sides: tuple[int, int]) -> None:
    content = png(0, 8, np.zeros((2, 2, 1)), sides=sides)
    with pytest.raises(DataError, match=r"it is too large: .*at most 89,478,485 are decoded") as caught:
        decode(content)
    assert caught.value.exit_code == 2


def test_thin_images_are_not_blown_up() -> None:
    with pytest.raises(DataError, match="1x200000, too long and thin"):
        Fit(64).decode(io.BytesIO(png(0, 8, np.zeros((200_000, 1, 1)))), "it")


def test_formats_that_start_programs_are_not_tried() -> None:
    with pytest.raises(CorruptImageError, match="known format"):
        decode(saved(picture().convert("RGB"), "eps"))


def test_what_is_not_a_regular_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "circle.png").symlink_to(tmp_path / "circle.png")
    for name, message in (
        ("pipe.png", "is a named pipe"),
        ("folder.png", "is a directory"),
        ("circle.png", "can't be read"),
        ("gone.png", "does not exist"),
    ):
        with pytest.raises(CorruptImageError, match=message):
            Fit(8).decode(tmp_path / name)
    with pytest.raises(CorruptImageError, match="is a device"):
        Fit(8).decode(Path("/dev/zero"))


@pytest.mark.parametrize("colour", ["", "whitish", "#12345", "rgba(1, 2, 3, 4)", 7, None])
def test_backgrounds_that_are_not_colours(colour: Any) -> None:
    with pytest.raises(UsageError, match="background is a colour such as white"):
        background_colour(colour)


def test_damaged_files_raise_one_of_two_errors() -> None:
    """Flip, cut and repeat bytes of every kind: whatever Pillow says becomes one of the kit's two errors."""
    rng = np.random.default_rng(0)
    for make in TRANSPARENT.values():
        content = make()
        for _ in range(25):
            damaged = bytearray(content)
            for place in rng.integers(0, len(damaged), rng.integers(1, 8)):
                damaged[place] = int(rng.integers(0, 256))
            damaged = damaged[: int(rng.integers(1, len(damaged) + 1))] if rng.random() < 0.3 else damaged
            with contextlib.suppress(CorruptImageError, DataError):
                assert decode(bytes(damaged)).dtype == torch.uint8
