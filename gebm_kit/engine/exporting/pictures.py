"""Pictures of a model card: the run's own figures, as small PNG without whatever else the files hold."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from gebm_kit.core.progress import warn
from gebm_kit.core.reading import read_file

FIGURES = {
    "samples.png": "Data, draws of the base and draws of the GEBM, side by side",
    "clouds.png": "Points of the data, the base and the GEBM, over the energy",
    "marginals.png": "Histograms of each column: data, base and GEBM",
    "pairs.png": "Pairs of columns: data, base and GEBM",
    "energies.png": "Histograms of the energy of data, base and GEBM",
    "curves.png": "Curves of the training",
}
"""Figures of a run that a card shows, with what each one shows, in this order."""

WIDEST = 900
"""Width of a picture in pixels, at most."""

COLOURS = 128
"""Colours of a picture, at most."""

LARGEST = 32 * 2**20
"""Largest figure that is read, in bytes."""

MOST_PIXELS = 10**8
"""Most pixels of a figure."""


def small_pictures(folder: Path) -> dict[str, bytes]:
    """Return a run's figures as small PNG, by name; one that can't be read is left out with a warning."""
    found = {}
    for name in FIGURES:
        if not (folder / name).is_file():
            continue
        try:
            found[name] = _small(read_file(folder / name, limit=LARGEST, follow=False))
        except Exception as error:  # Pillow raises many types for damaged files
            warn(f"{folder / name} is left out: {error}")
    return found


def _small(content: bytes) -> bytes:
    with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
        if picture.width * picture.height > MOST_PIXELS:
            raise ValueError(f"it has {picture.width} x {picture.height} pixels")
        picture.load()
        flat = Image.new("RGB", picture.size, "white")
        flat.paste(picture, mask=picture.convert("RGBA").getchannel("A"))
    if flat.width > WIDEST:
        flat = flat.resize((WIDEST, max(1, round(flat.height * WIDEST / flat.width))), Image.Resampling.LANCZOS)
    written = io.BytesIO()
    flat.quantize(COLOURS).save(written, "PNG", optimize=True)
    return written.getvalue()
