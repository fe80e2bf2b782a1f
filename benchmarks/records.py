"""Records of a study on disk, one JSON a job, so that a study that was cut off goes on where it stopped."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any


class Recorded(ABC):
    """A job whose record is kept in a folder, and is used again while its settings are the same."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What a cached record must agree with to be used again."""

    @abstractmethod
    def path(self, folder: Path) -> Path:
        """The record's file."""

    def record(self, folder: Path) -> dict[str, Any] | None:
        """The record, if it was made with the same settings."""
        path = self.path(folder)
        if not path.exists():
            return None
        found: dict[str, Any] = json.loads(path.read_text())
        return found if found["settings"] == self.settings else None

    def save(self, folder: Path, record: dict[str, Any]) -> None:
        """Write the record in one piece."""
        folder.mkdir(parents=True, exist_ok=True)
        path = self.path(folder)
        path.with_suffix(".partial").write_text(json.dumps(record, indent=1))
        path.with_suffix(".partial").replace(path)
