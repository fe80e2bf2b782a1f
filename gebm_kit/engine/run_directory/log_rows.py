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

BLOCK = 2**20
"""Bytes read at a time."""

SAMPLED_LINE = 2**14
"""Longest line, in bytes, of a log that is thinned. Rows take some hundred bytes."""

DRAWN_ROWS = 10_000
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
        most: number of lines from which on the log is thinned evenly to about so many, and as many rows of evaluations;
            None: never.

    Raises:
        CheckpointError: the log is not a regular file, can't be read, or is too large.
    """
    if not os.path.lexists(run / LOG):
        return []
    with open_log(run) as file:
        thin = most is not None and _count_lines(file) > most
        if not thin or most is None:
            return _rows(_lines_with(file, containing.encode()))
        looks = _rows(_every(file, containing.encode() or _LOOK, most))
        if containing:
            return looks
        rows = _rows(line for line in _sampled(file, most) if _LOOK not in line)
        return sorted([*rows, *looks], key=lambda row: row["step"])


def read_series(run: Path, names: Iterable[str]) -> dict[str, tuple[array[float], array[float]]]:
    """Read steps and values of the ``names``, at most about `DRAWN_ROWS` of each; None is NaN.

    Raises:
        CheckpointError: see `read_rows`.
    """
    found = {name: (array("d"), array("d")) for name in names}
    if not os.path.lexists(run / LOG):
        return found
    with open_log(run) as file:
        lines = _sampled(file, DRAWN_ROWS) if _count_lines(file) > DRAWN_ROWS else _lines_with(file, b"")
        for row in filter(None, map(parsed, lines)):
            for name, (steps, values) in found.items():
                if name in row:
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


def _rows(lines: Iterable[bytes]) -> list[Row]:
    return [row for line in lines if (row := parsed(line)) is not None]


def _every(file: BinaryIO, text: bytes, most: int) -> Iterator[bytes]:
    """Yield the lines that contain a text, thinned evenly to about ``most``; the last one stays."""
    count = sum(1 for _ in _lines_with(file, text))
    step = -(-count // most) or 1
    return (line for index, line in enumerate(_lines_with(file, text)) if index % step == 0 or index == count - 1)


def _count_lines(file: BinaryIO) -> int:
    file.seek(0)
    count = 0
    while block := file.read(BLOCK):
        count += block.count(b"\n")
    return count


def _lines_with(file: BinaryIO, text: bytes) -> Iterator[bytes]:
    """Yield the lines that contain a text; blocks without it are passed over quickly, and long lines are cut."""
    file.seek(0)
    rest = b""
    while block := file.read(BLOCK):
        block = rest + block
        if text in block:
            *lines, rest = block.split(b"\n")
            yield from (line for line in lines if text in line)
        else:
            rest = block[block.rfind(b"\n") + 1 :]
        rest = rest[:MAX_LINE]
    if rest and text in rest:
        yield rest


def _sampled(file: BinaryIO, most: int) -> Iterator[bytes]:
    """Yield about ``most`` lines, evenly spaced in the file, and the last one, without reading the rest."""
    size = file.seek(0, os.SEEK_END)
    before = -1
    for place in [size * index // most for index in range(most)] + [max(0, size - SAMPLED_LINE)]:
        file.seek(place)
        if place:
            file.readline(SAMPLED_LINE)
        here = file.tell()
        if here > before:
            before = here
            yield file.readline(SAMPLED_LINE)
    yield from file.read(SAMPLED_LINE).splitlines()[-1:]
