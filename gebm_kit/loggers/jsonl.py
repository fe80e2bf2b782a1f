"""Numbers as JSON lines, the log that every run keeps."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from gebm_kit.core.components import Injected
from gebm_kit.core.errors import RunFailed
from gebm_kit.core.interfaces import Logger


class Jsonl(Logger):
    """Appends ``{"step": n, "name": value, ...}`` to ``metrics.jsonl`` in the run directory, one line a call.

    Each line is written whole and flushed, so that a reader of the live file sees whole lines only. Numbers that are not
    finite are written as null, which JSON can hold.

    Args:
        run_directory: directory of the run.

    Raises:
        RunFailed: the file can't be opened or written to (a full disk).
    """

    def __init__(self, *, run_directory: Annotated[Path, Injected]) -> None:
        self.path = Path(run_directory) / "metrics.jsonl"
        try:
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise RunFailed(f"{self.path} can't be opened: {error.strerror or error}") from error

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        row: dict[str, float | int | None] = {"step": step}
        for name, value in scalars.items():
            row[name] = value if math.isfinite(value) else None
        try:
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise RunFailed(f"{self.path} can't be written to: {error.strerror or error}") from error

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            raise RunFailed(f"{self.path} can't be written to: {error.strerror or error}") from error
