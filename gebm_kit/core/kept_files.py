"""Files that a base or an energy is read from: the user's own, or the copy that a run keeps with its sha256."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gebm_kit.core.errors import CheckpointError, DataError, GebmKitError
from gebm_kit.core.paths import user_path
from gebm_kit.core.program_files import Role
from gebm_kit.core.reading import read_file, read_text

MAX_NOTE = 2**16
"""Largest file of a sum that is read, in bytes; it has one line."""


@dataclass(frozen=True, slots=True)
class Source:
    """How a kind of file is read and kept.

    Attributes:
        folder: folder of a run directory that holds the copies.
        role: what the file is to be, for messages.
        key: key of the recipe that names the file, for messages.
        folder_error: makes the error for a folder in place of a file, from its path and the path as given.
        keyed: whether a copy's name begins with a digest of the path as given, so that two files of one name can be kept.
    """

    folder: str
    role: Role
    key: str
    folder_error: Callable[[Path, str], GebmKitError]
    keyed: bool = False

    def copy_name(self, path: str) -> str:
        """Return the name of the copy of the file that was given as ``path``."""
        name = user_path(path, error=DataError).name
        return f"{hashlib.sha256(path.encode()).hexdigest()[:8]}-{name}" if self.keyed else name


def read_source(path: str, directory: Path, run_directory: Path | None, source: Source) -> tuple[Path, bytes]:
    """Return the path and the bytes of the file, or of a run's copy if there is one.

    Raises:
        DataError: the file is missing or can't be read; as ``source.folder_error`` for a folder.
        CheckpointError: the copy is not the file that it was.
    """
    place = directory / user_path(path, error=DataError)
    kept = None if run_directory is None else run_directory / source.folder / source.copy_name(path)
    if kept is not None and kept.is_file():
        place = kept
    if place.is_dir():
        raise source.folder_error(place, path)
    content = read_file(place, error=functools.partial(_file_error, source))
    if place is kept:
        noted = kept.with_name(f"{kept.name}.sha256")
        words = read_text(noted, limit=MAX_NOTE, error=CheckpointError).split() if noted.is_file() else []
        if not words or words[0] != hashlib.sha256(content).hexdigest():
            raise CheckpointError(
                f"{kept} is damaged: its sha256 is not the one in {noted.name}",
                hint=f"Replace it by the {source.role.noun}'s file, which was {path} when the run began.",
            )
    return place, content


def _file_error(source: Source, message: str) -> DataError:
    return DataError(f"the {source.role.noun}'s file {message}", hint=f"{source.key} must name the right file.")
