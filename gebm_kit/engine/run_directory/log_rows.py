"""The log of a run, metrics.jsonl, read line by line: its length, the length of a line and the memory are bounded."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from gebm_kit.core.errors import CheckpointError
from gebm_kit.core.reading import amount, open_regular
from gebm_kit.engine.run_directory.values import is_count, is_number

LOG = "metrics.jsonl"
"""Name of the log in a run directory."""

MAX_LOG = 4 * 2**30
"""Largest log that is read, in bytes: some ten million rows."""

MAX_LINE = 2**20
"""Longest line that is read, in bytes; longer ones are left out, as damaged."""

DRAWN_ROWS = 20_000
"""Rows that a picture needs at most. Longer logs are thinned evenly; a picture is some hundred pixels wide."""

_LOOK = b'"eval.'
"""Beginning of the names that evaluations during training log."""

Row = dict[str, Any]
"""A row: the step, and numbers by name; None where a number was not finite."""


def open_log(run: Path) -> BinaryIO:
    """Open the log of the run directory ``run``.

    Raises:
        CheckpointError: it is not a regular file, can't be read, or is too large.
    """
    path = run / LOG
    file = open_regular(path, error=CheckpointError)
    size = os.fstat(file.fileno()).st_size
    if size > MAX_LOG:
        file.close()
        raise CheckpointError(f"{path} has {amount(size)}; at most {amount(MAX_LOG)} are read")
    return file


def log_problem(run: Path) -> str:
    """Return what is wrong with the log as a whole; "" if nothing is, or if there is none."""
    if not os.path.lexists(run / LOG):
        return ""
    try:
        open_log(run).close()
    except CheckpointError as error:
        return error.message
    return ""


def read_rows(run: Path, containing: str = "", most: int | None = None) -> list[Row]:
    """Read the rows that contain a text. Damaged lines, and one cut off by a kill, are left out.

    Args:
        most: number of rows from which on the log is thinned evenly; None: never.

    Raises:
        CheckpointError: the log is not a regular file, can't be read, or is too large.
    """
    if not os.path.lexists(run / LOG):
        return []
    return [row for line in _chosen(run, containing.encode(), most) if (row := parsed(line)) is not None]


def read_series(run: Path, names: Iterable[str]) -> dict[str, tuple[array[float], array[float]]]:
    """Read steps and values of the ``names``, at most about `DRAWN_ROWS` of each; None is NaN.

    Raises:
        CheckpointError: see `read_rows`.
    """
    found = {name: (array("d"), array("d")) for name in names}
    if not os.path.lexists(run / LOG):
        return found
    for line in _chosen(run, b"", DRAWN_ROWS):
        row = parsed(line)
        for name, (steps, values) in found.items():
            if row is not None and name in row:
                steps.append(row["step"])
                values.append(float("nan") if row[name] is None else row[name])
    return found


def parsed(line: bytes) -> Row | None:
    """Return the row in a line, without values that are not numbers; None if the line is damaged."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not is_count(row.get("step")):
        return None
    if not all(type(value) is float or value is None or is_number(value) for value in row.values()):
        row = {name: value for name, value in row.items() if value is None or is_number(value)}
    return row


def lines_of(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a log; of one longer than `MAX_LINE`, only the beginning."""
    while line := file.readline(MAX_LINE):
        yield line
        while len(line) == MAX_LINE and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE)


def _chosen(run: Path, containing: bytes, most: int | None) -> Iterator[bytes]:
    """Yield the lines that contain a text, thinned evenly to about ``most``.

    The last line, and up to ``most`` lines of evaluations, are always among them.
    """
    every, looks = 1, 0
    with open_log(run) as file:
        if most is not None:
            count = sum(containing in line for line in lines_of(file)) if containing else _count_lines(file)
            every = -(-count // most) or 1
            file.seek(0)
        number, last = 0, b""
        for line in lines_of(file):
            if containing in line:
                is_look = every > 1 and not containing and _LOOK in line
                looks += is_look
                last = b"" if number % every == 0 or (is_look and looks <= (most or 0)) else line
                if not last:
                    yield line
                number += 1
        if last:
            yield last


def _count_lines(file: BinaryIO) -> int:
    count = 0
    while block := file.read(2**20):
        count += block.count(b"\n")
    return count
