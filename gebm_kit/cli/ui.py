"""How a command speaks: results on stdout, everything else on stderr, for a person, a pipe or a program.

rich is imported only where a terminal is at the other end, so that a piped command starts fast.
"""

from __future__ import annotations

import json as jsonlib
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from gebm_kit.cli.progress import PlainProgress
from gebm_kit.core.files import finite_or_none

if TYPE_CHECKING:
    from rich.console import Console

    from gebm_kit.core.progress import OnProgress


SCHEMA = 1


class Ui:
    """What one command says, and how.

    Args:
        json: the result is one JSON object.
        quiet: no progress and no notes.
        debug: warnings with their place, tracebacks of errors.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False, debug: bool = False) -> None:
        self.json = json
        self.quiet = quiet
        self.debug = debug
        self._err: Console | None = None
        if not debug:
            warnings.showwarning = self._warning

    def note(self, text: str) -> None:
        """A line worth knowing, on stderr."""
        if not self.quiet:
            self._say(f"gebm-kit: {text}")

    def warn(self, text: str) -> None:
        """A line that must be seen, on stderr, ``--quiet`` or not."""
        self._say(f"gebm-kit: warning: {' '.join(text.split())}")

    def result(self, payload: Mapping[str, Any], show: Callable[[], None]) -> None:
        """The command's result: ``payload`` as JSON, or whatever ``show`` prints."""
        if self.json:
            emit_json(payload)
        else:
            show()

    @contextmanager
    def progress(self) -> Iterator[OnProgress]:
        """A watcher to hand to the engine: bars on a terminal, lines elsewhere, nothing when quiet."""
        if self.quiet:
            yield lambda report: None
        elif not is_terminal(sys.stderr):
            yield PlainProgress(self._say)
        else:
            from rich.console import Console

            from gebm_kit.cli.bars import Bars

            self._err = Console(stderr=True, highlight=False)
            try:
                with Bars(self._err) as bars:
                    yield bars
            finally:
                self._err = None

    def _say(self, line: str) -> None:
        if self._err is not None:  # a live bar must be told, or the line is drawn into it
            self._err.print(line, markup=False, soft_wrap=True)
        else:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()

    def _warning(self, message: Warning | str, category: type[Warning], *place: Any, **rest: Any) -> None:
        text = str(message)
        self.warn(text if category.__name__ == "GebmKitWarning" else f"{category.__name__}: {text}")


def is_terminal(stream: TextIO) -> bool:
    """Whether a person with a capable terminal is at the other end."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def number(value: object) -> str:
    """A figure for a table: four significant digits, a dash for what is unknown."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def table(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Rows under headers on stdout: a rich table on a terminal, aligned columns of plain text elsewhere."""
    if is_terminal(sys.stdout):
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        rich_table = Table(title=title or None, title_justify="left")
        for header in headers:
            rich_table.add_column(header, overflow="fold")
        for row in rows:
            rich_table.add_row(*(Text(cell) for cell in row))
        Console().print(rich_table)
        return
    lines = [list(headers), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]
    for line in lines:
        text("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def text(line: str = "") -> None:
    """A line of the result, on stdout."""
    sys.stdout.write(line + "\n")


def emit_json(payload: Mapping[str, Any]) -> None:
    """One JSON object on stdout, with the schema's version first; what is not finite becomes null."""
    text(jsonlib.dumps({"schema": SCHEMA, **plain(payload)}, ensure_ascii=False, allow_nan=False))


def plain(value: Any) -> Any:
    """``value`` in types that strict JSON has."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return finite_or_none(value)
    if value is None or isinstance(value, str | int | bool):
        return value
    return str(value)
