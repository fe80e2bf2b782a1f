"""What was read from a file of columns: rows, names, and what was left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from gebm_kit.core.progress import warn


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of a file.

    Attributes:
        rows: (N, D) float64, all finite.
        columns: names of the columns, their numbers from 1 if the file has no names.
        total: number of rows in the file.
        dropped: number of rows left out for a missing value.
        left_out: columns left out because they hold row labels, as text for a person.
        kind: type of the values in the file, such as ``text`` or ``int64``.
        labels: the rows' class labels as text, if a column of them was asked for.
        class_names: what the file calls the classes 0, 1, ..., if it declares them and labels are their indices.
        codes: columns with leading zeros, as text for a person.
        bad: what is wrong with rows that can't be used, by row number from 1, if they were asked for; such rows hold NaN.
    """

    rows: Tensor
    columns: tuple[str, ...]
    total: int
    dropped: int = 0
    left_out: tuple[str, ...] = ()
    kind: str = "text"
    labels: tuple[str, ...] | None = None
    codes: tuple[str, ...] = ()
    class_names: tuple[str, ...] | None = None
    bad: Mapping[int, str] = field(default_factory=dict)

    def notes(self) -> tuple[str, ...]:
        """Say in a few words each which rows and columns were left out."""
        met = len(self.rows) + self.dropped
        chosen = f"where chose {met:,} of {self.total:,} rows" if met != self.total else ""
        dropped = f"{self.dropped:,} row(s) with a missing value dropped" if self.dropped else ""
        left_out = f"left out: {', '.join(self.left_out)}" if self.left_out else ""
        return tuple(note for note in (chosen, dropped, left_out) if note)

    def warn(self, file: Path) -> None:
        """Warn of rows and columns that were left out without the user naming them.

        Warns:
            GebmKitWarning: see above.
        """
        if self.left_out:
            names = ", ".join(self.left_out)
            warn(f"{file}: {names} left out: no measurement, but row labels or nothing, as pandas, R and others write")
        if self.codes:
            warn(
                f"{file}: {', '.join(self.codes)}; if these are codes, leave them out: columns=[...]. Naming all columns "
                "ends this warning"
            )
        if self.dropped:
            warn(
                f"{file}: {self.dropped:,} of {self.dropped + len(self.rows):,} rows have a missing value and are dropped"
            )
