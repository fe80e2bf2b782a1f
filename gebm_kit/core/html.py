"""Small pieces of HTML for notebooks: text, tables and pictures, in which whatever comes from a user is escaped."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Sequence

MOST_ROWS = 60
"""Most rows of a table; the last row says how many more there are."""

LONGEST_CELL = 200
"""Longest text in a cell; what is longer is cut."""


class Shown:
    """A result with a short ``repr`` and, in a notebook, tables and pictures."""

    __slots__ = ()

    def __repr__(self) -> str:
        return self._summary()

    def _repr_html_(self) -> str:
        return f"<div>{''.join((heading(self._summary()), *self._sections()))}</div>"

    def _summary(self) -> str:
        """Say in one line, or a few, what this is."""
        raise NotImplementedError

    def _sections(self) -> Iterable[str]:
        """Return the tables and pictures below the summary, as HTML."""
        return ()


def escaped(text: object) -> str:
    """Return text for HTML: tags, quotes and letters that are not printable are shown, not obeyed."""
    shown = "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in str(text))
    return html.escape(shown, quote=True)


def heading(text: object) -> str:
    """Return text on lines of its own, above what follows."""
    return f'<p style="margin:0 0 .4em 0"><code style="white-space:pre-wrap">{escaped(text)}</code></p>'


def table(headers: Sequence[object], rows: Sequence[Sequence[object]], caption: object = "") -> str:
    """Return a table; numbers have four significant digits, and None and NaN are a dash."""
    cells = ["".join(f'<th style="text-align:left">{escaped(name)}</th>' for name in headers)]
    cells += ["".join(f"<td>{escaped(cell(value))}</td>" for value in row) for row in rows[:MOST_ROWS]]
    if len(rows) > MOST_ROWS:
        cells.append(f'<td colspan="{len(headers)}">and {len(rows) - MOST_ROWS:,} more</td>')
    title = f'<caption style="text-align:left">{escaped(caption)}</caption>' if caption else ""
    lines = "".join(f"<tr>{line}</tr>" for line in cells)
    return f'<table style="display:inline-table;margin-right:1.5em">{title}{lines}</table>'


def cell(value: object) -> str:
    """Return a value as short text."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    text = f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)
    return text if len(text) <= LONGEST_CELL else f"{text[: LONGEST_CELL - 3]}..."


def interval(value: float | None, low: float | None, high: float | None) -> str:
    """Return a value with its interval, if it has one."""
    return cell(value) if low is None or high is None else f"{cell(value)} [{cell(low)}, {cell(high)}]"


def picture(png: bytes, name: object = "", width: int | None = None) -> str:
    """Return a PNG as part of the page."""
    size = "" if width is None else f"width:{width}px;"
    source = base64.b64encode(png).decode("ascii")
    return (
        f'<img alt="{escaped(name)}" title="{escaped(name)}" style="{size}max-width:100%;image-rendering:auto" '
        f'src="data:image/png;base64,{source}">'
    )
