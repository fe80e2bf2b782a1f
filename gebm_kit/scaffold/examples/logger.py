"""Table of every logged value, as CSV."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from gebm_kit.core.components import Injected
from gebm_kit.core.interfaces import Logger


class Example(Logger):
    """Table of every logged value, as CSV: one line ``step, name, value`` each, in ``example.csv`` of the run.

    A resumed run adds to the table. Nothing stays open between two calls, so a killed run loses nothing.

    Args:
        delimiter: character between the columns.
        run_directory: where the run is.
    """

    def __init__(self, delimiter: Literal[",", ";", "\t"] = ",", *, run_directory: Annotated[Path, Injected]) -> None:
        self.path, self.delimiter = run_directory / "example.csv", delimiter
        if not self.path.exists():
            self._write([["step", "name", "value"]])

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write the values; a step may come twice, from training and from an evaluation."""
        self._write([[step, name, value] for name, value in scalars.items()])

    def _write(self, rows: list[list[object]]) -> None:
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter=self.delimiter, lineterminator="\n").writerows(rows)
