"""Output of a command: results on stdout, everything else on stderr, for a person, a pipe or a program.

rich is imported only if the output is a terminal, so that a piped command starts fast.
"""

from __future__ import annotations

import json as jsonlib
import logging
import math
import shutil
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gebm_kit.cli.visible import visible, visible_cell, visible_json, visible_message
from gebm_kit.core.files import finite_or_none
from gebm_kit.core.progress import NOTES
from gebm_kit.core.progress_lines import PlainProgress, is_terminal as is_terminal

if TYPE_CHECKING:
    from rich.console import Console

    from gebm_kit.core.progress import OnProgress


JSON_SCHEMA = 1
"""Version of the JSON that commands print, raised when a key changes its meaning or is removed."""


class Ui:
    """Output of one command.

    Args:
        json: print the result as one JSON object.
        quiet: print no progress and no notes.
        debug: print warnings with the line that raised them.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False, debug: bool = False) -> None:
        self.json = json
        self.quiet = quiet
        self.debug = debug
        self._err: Console | None = None
        _Notes(self.note).listen()
        warnings.showwarning = self._warning

    def note(self, text: str) -> None:
        """Print a note on stderr, unless ``--quiet``."""
        if not self.quiet:
            self._say(f"gebm-kit: {text}")

    def warn(self, text: str) -> None:
        """Print a warning on stderr, even with ``--quiet``."""
        self._say(f"gebm-kit: warning: {' '.join(text.split())}")

    def result(self, payload: Mapping[str, Any], show: Callable[[], None]) -> None:
        """Print the command's result: ``payload`` as JSON, or whatever ``show`` prints."""
        if self.json:
            emit_json(payload)
        else:
            show()

    @contextmanager
    def progress(self) -> Iterator[OnProgress]:
        """Yield a progress callback for the engine: bars on a terminal, lines elsewhere, nothing when quiet."""
        if self.quiet:
            yield lambda report: None
        elif not is_terminal(sys.stderr):
            with PlainProgress(self._say) as lines:
                yield lines
        else:
            from rich.console import Console

            from gebm_kit.core.progress_bars import Bars

            self._err = Console(stderr=True, highlight=False)
            try:
                with Bars(self._err) as bars:
                    yield bars
            finally:
                self._err = None

    def _say(self, line: str) -> None:
        if self._err is not None:  # rich must print it, or the line is drawn into the live bar
            self._err.print(visible_message(line), markup=False, emoji=False, soft_wrap=True)
        else:
            sys.stderr.write(visible_message(line) + "\n")
            sys.stderr.flush()

    def _warning(self, message: Warning | str, category: type[Warning], *place: Any, **rest: Any) -> None:
        if self.debug:
            self._say(warnings.formatwarning(message, category, place[0], place[1]).rstrip("\n"))
            return
        text = str(message)
        self.warn(text if category.__name__ == "GebmKitWarning" else f"{category.__name__}: {text}")


class _Notes(logging.Handler):
    """Passes on the notes of `gebm_kit.core.progress.note`, each text once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._say, self._said = say, set[str]()

    def listen(self) -> None:
        """Listen instead of an earlier command's listener."""
        for other in [handler for handler in NOTES.handlers if isinstance(handler, _Notes)]:
            NOTES.removeHandler(other)
        NOTES.addHandler(self)
        NOTES.setLevel(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self._said:
            self._said.add(text)
            self._say(text)


def number(value: object) -> str:
    """Write a value for a table: floats with four significant digits, a dash for None, NaN and infinity."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def table(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under headers on stdout: a rich table on a terminal, aligned plain columns elsewhere."""
    if is_terminal(sys.stdout):
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        rich_table = Table(title=Text(visible_cell(title)) if title else None, title_justify="left")
        for header in headers:
            rich_table.add_column(Text(visible_cell(header)), overflow="fold")
        for row in rows:
            rich_table.add_row(*(Text(visible_cell(cell)) for cell in row))
        Console().print(rich_table)
        return
    lines = [[visible_cell(cell) for cell in row] for row in (headers, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]
    for line in lines:
        text("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def text(line: str = "") -> None:
    """Print a line of the result on stdout; escape sequences in it are shown, not obeyed."""
    sys.stdout.write(visible(line) + "\n")


def sentence(words: str, indent: str = "") -> None:
    """Print a sentence of the result on stdout; on a terminal, lines break between words, with ``indent`` on later ones."""
    shown = visible(words)
    if is_terminal(sys.stdout):
        width = shutil.get_terminal_size().columns
        shown = textwrap.fill(shown, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    sys.stdout.write(shown + "\n")


def emit_json(payload: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout, with the schema's version first; NaN and infinity become null."""
    line = jsonlib.dumps({"schema": JSON_SCHEMA, **plain(payload)}, ensure_ascii=False, allow_nan=False)
    sys.stdout.write(visible_json(line, sys.stdout.encoding or "utf-8") + "\n")


def plain(value: Any) -> Any:
    """Convert ``value`` to types that strict JSON has."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return finite_or_none(value)
    if value is None or isinstance(value, str | int | bool):
        return value
    return str(value)
