"""Numbers and texts as a page shows them: short, and without characters that nobody can see."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

DASH = "–"
"""Stands for a value that is not known."""

LONGEST = 400
"""Most characters of a text from a run in a cell or a label; what is longer is cut."""


def number(value: Any, digits: int = 4) -> str:
    """Write a number with some significant digits; a dash where there is none."""
    if isinstance(value, bool) or value is None:
        return DASH if value is None else ("yes" if value else "no")
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if not math.isfinite(value):
            return DASH
        if value == int(value) and abs(value) < 1e6:
            return f"{int(value):,}"
        if abs(value) >= 1000 and abs(value) < 1e9:
            return f"{value:,.0f}"
        return f"{value:.{digits}g}"
    return plain(value)


def real(value: Any) -> float | None:
    """Return a value as a number; None if it is none, or not finite."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None


def ends_of(cell: Mapping[str, Any]) -> list[float]:
    """Return the ends of an estimate's interval; its value in their place where it has none."""
    value = real(cell.get("value")) or 0.0
    return [value if (end := real(cell.get(name))) is None else end for name in ("low", "high")]


def interval(cell: Any) -> str:
    """Write an estimate ``{value, low, high}`` with its 95 % interval, if it has one."""
    if not isinstance(cell, Mapping) or cell.get("value") is None:
        return DASH
    low, high = cell.get("low"), cell.get("high")
    around = "" if low is None or high is None else f" ({number(low, 3)} to {number(high, 3)})"
    return f"{number(cell['value'])}{around}"


def plain(text: object, most: int = LONGEST) -> str:
    """Return a text on one line, in which characters that can't be printed are question marks."""
    line = " ".join(
        "".join(char if char.isprintable() else (" " if char.isspace() else "?") for char in str(text)).split()
    )
    return line if len(line) <= most else f"{line[: most - 1]}…"


def printable(text: str) -> str:
    """Return a text with its line breaks, in which other characters that can't be printed are question marks."""
    return "".join(char if char.isprintable() or char in "\n\t" else "?" for char in text.replace("\r\n", "\n"))


def share(value: float) -> str:
    """Write a share in percent."""
    return f"{100 * value:.0f} %"


def seconds(value: Any) -> str:
    """Write a duration in the two largest units."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return DASH
    total = round(value)
    if total < 1:
        return "under a second"
    hours, rest = divmod(total, 3600)
    minutes, left = divmod(rest, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {left} s" if minutes else f"{left} s"


def listed(words: list[str]) -> str:
    """Join words as in a sentence."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
