"""The file that a base was read from: whether it can be trained, and the copy that a run keeps."""

from __future__ import annotations

import hashlib
from pathlib import Path

from gebm_kit.config.schema import Recipe
from gebm_kit.core.errors import RunFailed, UsageError
from gebm_kit.core.files import make_directory, write_atomic
from gebm_kit.core.interfaces import Base, HasSource

FOLDER = "base"
"""Of a run directory."""


def check_trainable(base: Base, recipe: Recipe) -> None:
    """Refuse to train a base that has no parameters.

    Raises:
        UsageError: ``train.part`` asks for it.
    """
    part = recipe.train.part
    if part != "energy" and next(base.parameters(), None) is None:
        what = base.source_file if isinstance(base, HasSource) else f"the base {recipe.base.name!r}"
        raise UsageError(
            f"train.part={part} trains the base, and {what} has no weights to train: a program is never changed",
            hint="Set train.part=energy, which trains an energy on top of it.",
        )


def keep_source(run: Path, base: Base) -> None:
    """Copy the file that ``base`` was read from to ``run``/base, its sha256 beside it, so that the run needs nothing else.

    Raises:
        RunFailed: the file has changed since it was read, or the disk is full.
    """
    if not isinstance(base, HasSource):
        return
    folder = run / FOLDER
    place = folder / base.source_file.name
    noted = place.with_name(f"{place.name}.sha256")
    if noted.is_file() and place.is_file():
        return
    content = base.source_file.read_bytes()
    if hashlib.sha256(content).hexdigest() != base.source_sha256:
        raise RunFailed(f"{base.source_file} was changed while it was being read", hint="Start again.")
    make_directory(folder)
    write_atomic(place, content)
    write_atomic(noted, f"{base.source_sha256}  {place.name}\n".encode())
