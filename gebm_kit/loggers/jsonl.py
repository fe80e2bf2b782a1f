"""Numbers as JSON lines, the log that every run keeps."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from gebm_kit.core.components import Injected
from gebm_kit.core.errors import RunFailed
from gebm_kit.core.files import finite_or_none, open_own
from gebm_kit.core.interfaces import Logger


class Jsonl(Logger):
    """Logger that appends ``{"step": n, "name": value, ...}`` to ``metrics.jsonl`` in the run directory, one line per call.

    Each line is written immediately, and either whole or not at all, so that a reader of the live file sees only whole
    lines. Numbers that are not finite are written as null, since JSON has no NaN or infinity.

    Args:
        run_directory: directory of the run.

    Raises:
        RunFailed: the file can't be opened or written to, for example because the disk is full.
        UsageError: it is a symbolic link, a pipe or a device: a run from somebody else could lead anywhere.
    """

    def __init__(self, *, run_directory: Annotated[Path, Injected]) -> None:
        self.path = Path(run_directory) / "metrics.jsonl"
        try:
            handle = open_own(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            self._file = os.fdopen(handle, "ab", buffering=0)  # a buffered row would wait for the next one, or be lost
        except OSError as error:
            raise RunFailed(f"{self.path} can't be opened: {error.strerror or error}") from error

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        row: dict[str, float | int | None] = {"step": step}
        for name, value in scalars.items():
            row[name] = finite_or_none(value)
        line = memoryview((json.dumps(row, allow_nan=False) + "\n").encode())
        before = os.fstat(self._file.fileno()).st_size
        try:
            while line:  # a nearly full disk takes only a part
                line = line[self._file.write(line) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file.fileno(), before)
            raise RunFailed(f"{self.path} can't be written to: {error.strerror or error}") from error

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            raise RunFailed(f"{self.path} can't be written to: {error.strerror or error}") from error
