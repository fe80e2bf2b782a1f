"""What a run looks like in a notebook: its last evaluation, and the pictures in its directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from gebm_kit.core.errors import DataError, GebmKitError
from gebm_kit.core.html import heading, picture
from gebm_kit.core.reading import read_file
from gebm_kit.engine.run_directory.evaluation_html import evaluation_sections
from gebm_kit.engine.run_directory.run_files import EVALUATION, read_evaluation

PICTURES = (
    "samples.png",
    "clouds.png",
    "reconstructions.png",
    "classes.png",
    "pairs.png",
    "energies.png",
    "curves.png",
)
"""Pictures of a run that are shown first, in this order."""

MOST_PICTURES = 4
"""Most pictures that are shown."""

LARGEST_PICTURE = 4 * 2**20
"""Largest picture that is shown, in bytes."""


def run_sections(path: Path) -> Iterator[str]:
    """Yield the tables of the last evaluation, and the first pictures; what can't be read is said, or left out."""
    if os.path.lexists(path / EVALUATION):
        try:
            yield from evaluation_sections(read_evaluation(path))
        except (GebmKitError, KeyError, TypeError, AttributeError) as error:
            yield heading(f"the evaluation can't be read: {error}")
    shown = 0
    for file in _pictures(path / "figures"):
        try:
            content = read_file(file, limit=LARGEST_PICTURE, error=DataError)
        except GebmKitError:
            continue
        if content.startswith(b"\x89PNG") and shown < MOST_PICTURES:
            shown += 1
            yield picture(content, file.name, width=420)


def _pictures(folder: Path) -> list[Path]:
    try:
        names = [name for name in os.listdir(folder) if name.endswith(".png")]
    except OSError:
        return []
    return [folder / name for name in sorted(names, key=lambda name: (_rank(name), name))]


def _rank(name: str) -> int:
    return PICTURES.index(name) if name in PICTURES else len(PICTURES)
