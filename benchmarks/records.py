"""Records of a study on disk, one JSON a job, so that an interrupted study resumes where it stopped."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any


class Recorded(ABC):
    """A job whose record is kept in a folder and reused while its settings are the same."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return what a cached record must agree with to be reused."""

    @abstractmethod
    def path(self, folder: Path) -> Path:
        """Return the record's file."""

    def record(self, folder: Path) -> dict[str, Any] | None:
        """Return the record, if it was made with the same settings."""
        path = self.path(folder)
        if not path.exists():
            return None
        found: dict[str, Any] = json.loads(path.read_text())
        return found if found["settings"] == self.settings else None

    def save(self, folder: Path, record: dict[str, Any]) -> None:
        """Write the record atomically."""
        folder.mkdir(parents=True, exist_ok=True)
        path = self.path(folder)
        path.with_suffix(".partial").write_text(json.dumps(record, indent=1))
        path.with_suffix(".partial").replace(path)
