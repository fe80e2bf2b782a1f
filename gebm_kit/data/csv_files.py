"""Text files of rows: how fields are separated, whether the first line holds names, and what each field says.

Whatever could be read in two ways is refused with both readings: a number must be written as Python and C write it, so that
``2024_07``, ``1,5``, ``0x10`` and dates stay text.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from gebm_kit.core.errors import DataError
from gebm_kit.core.frames import is_index_name
from gebm_kit.core.reading import amount, open_regular

MISSING = frozenset(
    ["", "NA", "N/A", "n/a", "<NA>", "#N/A", "NaN", "nan", "NAN", "-nan", "-NaN", "NULL", "null", "None", "none", "?"]
)
"""Fields that stand for a missing value: what pandas, R and SQL write, and the question mark of the UCI tables."""

MARKS = "\t;,"
"""What may separate fields. A mark is taken if it divides the first lines evenly; earlier ones are rarer in text."""

SAMPLE_LINES = 20
"""Lines from which the mark is judged."""

LONGEST_LINE = 2**24
"""Most characters of a line."""

BLOCK_ROWS = 4096
"""Rows that are read at a time."""

_ENCODINGS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Marks at the start of a file that say how it is encoded; without one it is UTF-8."""

_LOOKS_LIKE = (
    (re.compile(r"\d{4}[-/.]\d{1,2}([-/.]\d{1,2})?([T ].*)?|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}( .*)?"), "is a date, not"),
    (re.compile(r"\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?"), "is a time, not"),
    (re.compile(r"[+-]?0[xXbBoO][0-9a-fA-F]+"), "is not written in base ten, so it is not"),
    (re.compile(r"[-+0-9.eE]*\d_[-+0-9._eE]*"), "has an underscore, so it is not"),
    (re.compile(r"[+-]?\d[\d.' ]*,[\d.,' ]*"), "has a comma (write 1234.5), so it is not"),
    (re.compile(r"[+-]?\d+(\.\d+){2,}|[+-]?\d{1,3}('\d{3})+.*"), "has separators in it (write 1234.5), so it is not"),
    (re.compile(r"[-+\d.eE]+(\s+[-+\d.eE]+)+"), "is several numbers (put commas between them), not"),
)
"""Text that a person may take for a number, and what to call it."""


def as_number(field: str) -> float | None:
    """Return the number that a field holds, infinite ones too; None if it holds something else."""
    if "_" in field or not field.isascii():  # Python takes 1_000 and digits of any script
        return None
    try:
        return float(field)
    except ValueError:
        return None


def problem_of(field: str) -> str:
    """Say what is wrong with a field that should hold a finite number."""
    if field == "":
        return "is empty"
    if field in MISSING:
        return f"holds {field!r}, a missing value"
    value = as_number(field)
    if value is not None and math.isfinite(value):
        return f"holds {field}, which has more digits than double precision holds"
    kind = next((kind for pattern, kind in _LOOKS_LIKE if pattern.fullmatch(field)), "is not")
    shown = field if len(field) <= 40 else f"{field[:37]}..."
    return f"holds {shown!r}, which {kind} a {'' if value is None else 'finite '}number"


def is_exact(field: str, value: float) -> bool:
    """Return whether a whole number survives double precision; decimals may be rounded."""
    if abs(value) < 2.0**53:
        return True
    digits = field.lstrip("+-")
    return not digits.isdecimal() or int(field) == int(value)


class CsvFile:
    """A .csv file whose rows are read in blocks.

    Args:
        path: the file: UTF-8, or what its byte-order mark says.
        header: whether the first line holds names; None: judge by its fields.

    Attributes:
        names: names of the columns, or their numbers from 1.
        header: whether the first line holds names.
        unnamed: indices of the first columns if they have no name: row labels, as pandas and R write them.
        nameless: indices of other columns without a name.
        ragged: what is wrong with lines that have more or fewer fields than the first one, by line, if a reader has set it
            to a dict. Their fields are then empty, where otherwise the first such line is an error.

    Raises:
        DataError: the file can't be read as text, has no row, or its first line can be read in two ways.
    """

    def __init__(self, path: Path, header: bool | None = None) -> None:
        self.path = path
        self.ragged: dict[int, str] | None = None
        self._encoding = self._encoding_of()
        lines = list(itertools.islice(self._text(), SAMPLE_LINES))
        self._mark = _mark_of([line for line in lines if line.strip()])
        first, *others = [fields for _, fields in itertools.islice(self.rows(), SAMPLE_LINES)] or [[]]
        if not first:
            raise DataError(f"{path} holds no row of data")
        self.header = self._has_header(first, others) if header is None else header
        self._width = len(first)
        fields = first if self.header else [str(number + 1) for number in range(self._width)]
        if self.header and not any(fields):
            raise DataError(f"{path}: the first line holds no names of columns")
        without = [place for place, name in enumerate(fields) if is_index_name(name)]
        first_ones = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], enumerate(without)))
        self.unnamed, self.nameless = tuple(without[:first_ones]), tuple(without[first_ones:])
        self.names = tuple(fields)

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yield line numbers and fields, without blank lines.

        Raises:
            DataError: the file is not text, or a quoted field never ends.
        """
        reader = csv.reader(self._text(), delimiter=self._mark, strict=True)
        try:
            for fields in reader:
                if fields:
                    yield reader.line_num, [field.strip() for field in fields]
        except csv.Error as error:
            raise DataError(f"{self.path} can't be read as .csv: line {reader.line_num}: {error}") from error

    def blocks(self, places: Sequence[int]) -> Iterator[tuple[list[int], dict[int, list[str]]]]:
        """Yield line numbers and the fields of some columns, a block of rows at a time.

        Raises:
            DataError: a line has more or fewer fields than the first one, or there is no row.
        """
        rows = self.rows()
        if self.header:
            next(rows)
        found = 0
        while block := list(itertools.islice(rows, BLOCK_ROWS)):
            found += len(block)
            for line, fields in block:
                if len(fields) != self._width:
                    problem = f"{len(fields)} fields where the first line has {self._width}"
                    if self.ragged is None:
                        raise DataError(f"{self.path}, line {line}: {problem}", hint=self._ragged(len(fields)))
                    self.ragged[line] = problem
                    fields[:] = [""] * self._width
            yield [line for line, _ in block], {place: [fields[place] for _, fields in block] for place in places}
        if not found:
            raise DataError(f"{self.path} holds no row of data")

    def _ragged(self, width: int) -> str:
        if width == self._width + 1 and self.header:
            return "A line of names without one for the row labels (R writes such) needs a name for them."
        return "A field that holds the separating mark must be in double quotes."

    def _encoding_of(self) -> str:
        with open_regular(self.path) as file:
            start = file.read(4)
        return next((name for mark, name in _ENCODINGS if start.startswith(mark)), "utf-8")

    def _text(self) -> Iterator[str]:
        number = 0
        with io.TextIOWrapper(open_regular(self.path), encoding=self._encoding, newline="") as file:
            try:
                while line := file.readline(LONGEST_LINE):
                    number += 1
                    if len(line) >= LONGEST_LINE:
                        raise DataError(f"{self.path}, line {number}: more than {amount(LONGEST_LINE)} in one line")
                    if "\0" in line:
                        raise DataError(
                            f"{self.path} can't be read as .csv: line {number} holds a zero byte",
                            hint="It is no text, or UTF-16 without its mark. Save it as UTF-8 text.",
                        )
                    yield line
            except UnicodeError as error:
                raise DataError(
                    f"{self.path} can't be read as .csv: after line {number}: {error}", hint="Save it as UTF-8 text."
                ) from error

    def _has_header(self, first: list[str], others: list[list[str]]) -> bool:
        """Judge whether the first line holds names.

        Raises:
            DataError: it could be names or values.
        """
        counted = [str(place) for place in range(len(first))]
        if (
            len(first) > 1 and first[0] == "" and first[1:] == counted[:-1]
        ):  # pandas' names of a table without names, with its index
            return True
        hint = "Say which with header=true or header=false."
        if len(first) > 1 and (first == counted or _only_first_is_whole(first, others)):
            raise DataError(
                f"{self.path}: the first line, {_listed(first)}, may be names of columns, as pandas numbers them or as "
                "years, or a row",
                hint=hint,
            )
        kinds = [_kind(field) for field in first]
        if "text" not in kinds and "date" not in kinds:
            return False
        if "number" in kinds and others and kinds == [_kind(field) for field in others[0]]:
            raise DataError(
                f"{self.path}: the first line, {_listed(first)}, holds the same kinds of values as the second: "
                "names of columns, or a row",
                hint=hint,
            )
        return True


def _listed(fields: list[str]) -> str:
    return ",".join(fields[:6]) + (",..." if len(fields) > 6 else "")


def _only_first_is_whole(first: list[str], others: list[list[str]]) -> bool:
    """Return whether the first line has different whole numbers where all others have decimals, as years over data."""
    whole = all(field.isdecimal() and field.isascii() for field in first) and len(set(first)) == len(first)
    return whole and len(others) > 2 and all("." in field for fields in others for field in fields)


def _kind(field: str) -> str:
    if field in MISSING:
        return "missing"
    if as_number(field) is not None:
        return "number"
    return "date" if _LOOKS_LIKE[0][0].fullmatch(field) else "text"


def _mark_of(lines: list[str]) -> str:
    """Return what separates the fields of the lines: the mark that is in the first and divides all evenly."""
    for mark in MARKS:
        try:
            widths = {len(fields) for fields in csv.reader(lines, delimiter=mark, strict=True) if fields}
        except csv.Error:  # a quoted field goes on after the sample, or quotes belong to another mark
            continue
        if len(widths) == 1 and widths.pop() > 1:
            return mark
    return next((mark for mark in ",;\t" if lines and mark in lines[0]), ",")
