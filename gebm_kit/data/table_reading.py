"""One pass over a file of columns, which gathers the wanted rows and whatever is wrong with them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch

from gebm_kit.core.errors import DataError, nearest
from gebm_kit.data.conditions import Condition
from gebm_kit.data.csv_files import MISSING, CsvFile
from gebm_kit.data.fields import Column, Numbers, numbers, problem
from gebm_kit.data.parquet_files import ParquetFile
from gebm_kit.data.table_rows import Table

COUNTED_ROWS = 10
"""Fewest rows for which a column that goes up by one, or an id that never repeats, is taken for row labels."""

LEAVE_OUT = "--bad-rows skip (in Python bad_rows='skip') leaves out such rows; nothing is imputed here."
"""Hint for rows of a user that can't be used."""

_ID_NAME = re.compile(r"(.*[ _.-])?(id|idx|index|uid|guid|row|rows|rowname|rownames|row_?num(ber)?)", re.IGNORECASE)
"""Names of columns that hold row labels if no value repeats."""

_CODE = re.compile(r"(?:^|\n)([+-]?0\d+)(?:\n|$)")
"""A whole number with leading zeros, such as a postal code, among fields on lines of their own."""


BadRows = Literal["stop", "skip"]
"""What to do with rows that hold anything else than finite numbers: end with an error, or leave them out."""


class TableFile(Protocol):
    """A file of columns that is read in blocks of rows.

    Attributes:
        names: names of all columns.
        unnamed: indices of columns that hold row labels, as pandas and R write them.
        nameless: indices of other columns without a name.
    """

    names: tuple[str, ...]
    unnamed: tuple[int, ...]
    nameless: tuple[int, ...]

    def blocks(self, places: Sequence[int]) -> Iterator[tuple[Sequence[int], Mapping[int, Column]]]:
        """Yield the rows' numbers and the wanted columns, block by block."""
        ...


def place_of(word: str, names: tuple[str, ...], file: Path) -> int:
    """Return the index of a column, which ``word`` calls by its name or its number from 1.

    Raises:
        DataError: there is no such column, or more than one.
    """
    if names.count(word) > 1:
        raise DataError(f"{file}: more than one column is called {word!r}", hint="Use its number, from 1.")
    if word in names:
        return names.index(word)
    if word.isdecimal() and len(word) <= len(str(len(names))) and 1 <= int(word) <= len(names):
        return int(word) - 1
    if names == tuple(str(number + 1) for number in range(len(names))):
        allowed = f"without names in the file, give the number of a column, from 1 to {len(names)}"
    else:
        allowed = nearest(word, names)
    raise DataError(f"{file} has no column {word!r}; {allowed}")


@dataclass(slots=True)
class _Trouble:
    """What is wrong with a column: the first such value and how many there are."""

    text: str
    count: int = 0
    missing: bool = True


def _as_text(label: object) -> str:
    """Return a label as text; a whole number without a point, as it is in a column that also has missing values."""
    whole = isinstance(label, float | np.floating) and float(label).is_integer()
    return str(int(label)) if whole else str(label)  # type: ignore[call-overload]  # a number


class Reading:
    """One pass over a file that gathers rows and whatever is wrong with their columns."""

    def __init__(
        self,
        table: TableFile,
        file: Path,
        places: Sequence[int],
        conditions: Sequence[Condition],
        *,
        labels: int | None,
        drop: bool,
        counting: bool,
        bad_rows: BadRows | None = None,
    ) -> None:
        self._bad_rows, self._bad = bad_rows, dict[int, str]()
        if bad_rows == "skip" and isinstance(table, CsvFile):
            table.ragged = {}
        self._table, self._file, self._places, self._drop = table, file, list(places), drop
        self._wanted = frozenset(places)
        self._conditions = [(place_of(c.column, table.names, file), c) for c in conditions]
        self._label, self._labels = labels, list[str]()
        self._read = list(dict.fromkeys([*self._places, *(place for place, _ in self._conditions)]))
        self._nameless = [place for place in table.nameless if counting and place != labels]
        beside = [place for place in [labels, *self._nameless] if place is not None and place not in self._read]
        self._read += beside
        self._trouble: dict[int, _Trouble] = {}
        self._by_default = counting
        self._counting: dict[int, float | None] = {}
        if counting and len(self._places) > 1:
            self._counting = dict.fromkeys(self._places)
        self._codes: dict[int, str] = {}
        self._parts: list[np.ndarray] = []
        self._kinds: dict[str, None] = {}
        self._total = self._met = self._lost = self._block = 0

    def run(self) -> None:
        """Read all blocks."""
        self._refuse_types()
        for lines, columns in self._table.blocks(self._read):
            known = {place: numbers(column) for place, column in columns.items() if self._is_numeric(place)}
            self._kinds |= {c.dtype.name if isinstance(c, np.ndarray) else "text": None for c in columns.values()}
            self._count_rows(known)
            self._note_codes(columns)
            self._refuse_nameless(lines, columns)
            met = self._meeting(columns, known)
            self._total, self._met, self._block = self._total + len(lines), self._met + int(met.sum()), len(lines)
            numeric = [place for place in self._read if place in known]
            for place in numeric:
                self._note(place, lines, columns[place], known[place], met)
            lost = np.zeros(len(lines), dtype=bool)
            for place in numeric:
                lost |= known[place].missing
            lost |= self._unlabelled(lines, columns, met)
            self._lost += int((lost & met).sum())
            kept = met & ~lost if self._drop else met
            values = [known[p].values if p in known else np.full(len(lines), np.nan) for p in self._places]
            self._parts.append(np.stack(values, axis=1)[kept])
            if self._label is not None:
                self._labels += [
                    _as_text(label) for label, keep in zip(columns[self._label], kept, strict=True) if keep
                ]

    def _refuse_nameless(self, lines: Sequence[int], columns: Mapping[int, Column]) -> None:
        """Note columns without a name that are not empty, as a comma at the end of every line would make them."""
        for place in self._nameless:
            filled = [field for field in columns[place] if field not in MISSING]
            if filled and place not in self._trouble:
                text = f"column {place + 1} has no name and holds {filled[0]!r}"
                self._trouble[place] = _Trouble(text, missing=False)

    def _unlabelled(self, lines: Sequence[int], columns: Mapping[int, Column], met: np.ndarray) -> np.ndarray:
        """Return which rows of a block have no label, (N,) bool, and note the first of them unless they are dropped."""
        if self._label is None:
            return np.zeros(len(lines), dtype=bool)
        column = columns[self._label]
        lost = np.isnan(column) if isinstance(column, np.ndarray) else np.array([field in MISSING for field in column])
        if not self._drop and (lost & met).any():
            first = int(np.flatnonzero(lost & met)[0])
            text = f"{self._at(lines[first], self._label)} {problem(column, first)}"
            self._trouble.setdefault(self._label, _Trouble(text)).count += int((lost & met).sum())
        return lost

    def _at(self, line: int, place: int) -> str:
        name = repr(self._table.names[place])
        return f"line {line}: column {name}" if isinstance(self._table, CsvFile) else f"row {line}, column {name}"

    def _refuse_types(self) -> None:
        """Note columns of a file with types that hold no numbers.

        Raises:
            DataError: labels or a condition need a column of lists, bytes or the like.
        """
        if isinstance(self._table, ParquetFile):
            for place in [*([] if self._label is None else [self._label]), *(place for place, _ in self._conditions)]:
                if not self._table.is_plain(place):
                    kind = self._table.type_of(place)
                    raise DataError(
                        f"{self._file}: column {self._table.names[place]!r} holds {kind}; text or numbers are needed"
                    )
            for place in self._places:
                if (kind := self._table.type_of(place)) is not None:
                    text = f"column {self._table.names[place]!r} holds {kind}; numbers are needed"
                    self._trouble[place] = _Trouble(text, missing=False)

    def _is_numeric(self, place: int) -> bool:
        """Return whether a column is read as numbers, rather than as text for conditions alone."""
        if isinstance(self._table, ParquetFile) and self._table.type_of(place) is not None:
            return False
        return place in self._wanted or any(
            where == place and not isinstance(condition.value, str) for where, condition in self._conditions
        )

    def _meeting(self, columns: Mapping[int, Column], known: Mapping[int, Numbers]) -> np.ndarray:
        """Return which rows of a block meet all conditions, (N,) bool."""
        met = np.ones(len(next(iter(columns.values()))), dtype=bool)
        for place, condition in self._conditions:
            column, name = columns[place], self._table.names[place]
            if isinstance(condition.value, str):
                if isinstance(column, np.ndarray):
                    raise DataError(f"{self._file}: column {name!r} holds numbers, and where compares it with text")
                met &= condition.meets_text(column)
            elif place not in known:
                raise DataError(f"{self._file}: column {name!r} holds text: put the value in where in quotes")
            else:
                unclear = known[place].bad if self._drop else known[place].bad | known[place].missing
                met &= condition.meets_numbers(known[place]) | unclear  # which are noted as trouble
        return met

    def _note(self, place: int, lines: Sequence[int], column: Column, found: Numbers, met: np.ndarray) -> None:
        """Note the first value of a column that can't be used, and count such values."""
        wrong = found.bad & met if self._drop else (found.bad | found.missing) & met
        if not wrong.any():
            return
        if self._bad_rows == "skip":
            for index in np.flatnonzero(wrong).tolist():
                self._note_bad(index, lines[index], f"column {self._table.names[place]!r} {problem(column, index)}")
            return
        first = int(np.flatnonzero(found.bad & met)[0] if (found.bad & met).any() else np.flatnonzero(wrong)[0])
        known = self._trouble.get(place)
        if known is None or (known.missing and bool(found.bad[first])):
            text = f"{self._at(lines[first], place)} {problem(column, first)}"
            count = 0 if known is None else known.count
            known = self._trouble[place] = _Trouble(text, count, not bool(found.bad[first]))
        known.count += int(wrong.sum())

    def _note_bad(self, index: int, line: int, why: str) -> None:
        """Note what is wrong first with a row of the block that is read."""
        if isinstance(self._table, CsvFile):
            why = f"line {line}: {(self._table.ragged or {}).get(line, why)}"
        self._bad.setdefault(self._total - self._block + index + 1, why)

    def _count_rows(self, known: Mapping[int, Numbers]) -> None:
        """Follow the columns that have gone up by one from row to row so far, from any whole number."""
        for place, start in list(self._counting.items()):
            values = known[place].values if place in known else np.array([np.nan])
            start = values[0] if start is None else start
            counted = float(start).is_integer() and abs(start) < 2.0**52
            if counted and np.array_equal(values, start + np.arange(len(values)) + self._total):
                self._counting[place] = start
            else:
                del self._counting[place]

    def _note_codes(self, columns: Mapping[int, Column]) -> None:
        """Note columns of text with leading zeros, unless the user named the columns."""
        for place in self._places if self._by_default else ():
            column = columns[place]
            if place not in self._codes and isinstance(column, list):
                found = _CODE.search("\n".join(column))
                if found is not None:
                    self._codes[place] = found[1]

    def _row_labels(self, rows: np.ndarray) -> dict[int, str]:
        """Return the columns that label the rows, and why each is taken for one."""
        if self._total < COUNTED_ROWS or not self._by_default:
            return {}
        found = dict.fromkeys(self._counting, "counts the rows")
        for column, place in enumerate(self._places):
            values = rows[:, column]
            if place in found or place in self._trouble or not _ID_NAME.fullmatch(self._table.names[place].strip()):
                continue
            if bool((values == np.round(values)).all()) and len(np.unique(values)) == len(values):
                found[place] = "holds a different whole number in every row"
        return found if len(found) < len(self._places) else {}

    def table(self, varying: bool) -> Table:
        """Return the rows.

        Raises:
            DataError: a column can't be used, or no row is left.
        """
        rows = np.concatenate(self._parts)
        self._parts = []
        if self._conditions and not self._met:
            sources = [f"{c.column}{c.sign}{c.value!r}" for _, c in self._conditions]
            raise DataError(f"{self._file}: none of the {self._total} rows meets where={sources}")
        labels_rows = self._row_labels(rows)
        for place, why in labels_rows.items():
            text = f"column {self._table.names[place]!r} {why}: an index, not a measurement"
            self._trouble.setdefault(place, _Trouble(text, missing=False))
        if varying and len(rows) > 2:
            self._note_constant(rows)
        if self._trouble:
            raise self._error(bool(labels_rows))
        if not len(rows):
            raise DataError(
                f"{self._file}: each of the {self._met} rows has a missing value, so missing=drop leaves none",
                hint="Leave out the columns that miss many: columns=[...].",
            )
        names = tuple(self._table.names[place] for place in self._places)
        left_out = tuple(
            f"column {place + 1} ({self._table.names[place] or 'without a name'}, row labels)"
            for place in self._table.unnamed
            if place not in self._wanted and place != self._label
        ) + tuple(f"column {place + 1} (empty)" for place in self._nameless)
        dropped = self._lost if self._drop else 0
        kind = "/".join(self._kinds)
        labels = None if self._label is None else tuple(self._labels)
        codes = tuple(
            f"column {self._table.names[place]!r} holds {code[:20]}, read as {float(code):g}"
            for place, code in self._codes.items()
        )
        of_labels = {"labels": labels, "class_names": self._declared()}
        return Table(
            torch.from_numpy(rows), names, self._total, dropped, left_out, kind, codes=codes, bad=self._bad, **of_labels
        )

    def _declared(self) -> tuple[str, ...] | None:
        """Return the names of classes that the file declares for the column of labels."""
        if self._label is None or not isinstance(self._table, ParquetFile):
            return None
        return self._table.class_names.get(self._table.names[self._label])

    def _note_constant(self, rows: np.ndarray) -> None:
        for column, place in enumerate(self._places):
            values = rows[:, column][np.isfinite(rows[:, column])]
            if place not in self._trouble and len(values) and bool((values == values[0]).all()):
                text = f"column {self._table.names[place]!r} is constant ({values[0]:g}), so it has no density"
                self._trouble[place] = _Trouble(text, missing=False)

    def _error(self, row_labels: bool) -> DataError:
        """Return one error about all columns that can't be used, and a hint about those that can."""
        found = [self._trouble[place] for place in sorted(self._trouble)]
        texts = [t.text + (f" ({t.count} such values)" if t.count > 1 else "") for t in found]
        if len(texts) > 1:
            message = f"{self._file}: {len(texts)} columns can't be used: {'; '.join(texts)}"
        else:
            message = f"{self._file}{',' if texts[0].startswith('line') else ':'} {texts[0]}"
        if self._bad_rows == "stop":
            return DataError(message, hint=LEAVE_OUT)
        usable = [place for place in self._places if place not in self._trouble]
        gaps = [place for place, trouble in self._trouble.items() if trouble.missing]
        hints = [f"What can be used: {self._chosen(usable)}."] if usable else []
        if gaps and self._lost < self._met:
            chosen = "" if len(gaps) == len(self._trouble) else f" with {self._chosen(sorted([*usable, *gaps]))}"
            hints.append(
                f"missing=drop{chosen} leaves out the rows with a missing value ({self._lost} of {self._met})."
            )
        if row_labels:
            hints.append("To keep an index, name all columns: columns=[...].")
        return DataError(message, hint=" ".join([*hints, "" if not gaps else "Nothing is imputed here."]).strip())

    def _chosen(self, places: Sequence[int]) -> str:
        chosen = frozenset(places)
        names = [self._table.names[place] for place in self._places if place in chosen]
        return f"columns={json.dumps(names, ensure_ascii=False)}"
