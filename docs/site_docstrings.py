"""Extension of griffe: docstrings of the kit in the form that the documentation site reads.

The kit writes `a, b: text` for parameters that share a description, `::` before indented formulas, and
examples as sessions of the interpreter, anywhere.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

SHARED = re.compile(r"^( +)(\*{0,2}\w+(?:, \*{0,2}\w+)+): (.*(?:\n\1 +\S.*)*)$", re.MULTILINE)
"""An entry of a section with several names: its indentation, the names and the text, over more lines."""


SESSION = re.compile(r"(?:^( *)>>> .*\n?(?:\1\S.*(?:\n|$))*)+", re.MULTILINE)
"""Lines of an interactive session."""


class Docstrings(griffe.Extension):
    """Rewriting of docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Give every parameter an entry of its own, and every formula the colon that a reader sees."""
        if obj.docstring is not None:
            obj.docstring.value = readable(obj.docstring.value)


def readable(docstring: str) -> str:
    """Return a docstring with one name an entry, sessions as code, and without `::`."""
    return re.sub(r"::$", ":", SESSION.sub(_fenced, SHARED.sub(_entries, docstring)), flags=re.MULTILINE)


def _entries(found: re.Match[str]) -> str:
    return "\n".join(f"{found[1]}{name}: {found[3]}" for name in found[2].split(", "))


def _fenced(session: re.Match[str]) -> str:
    indent = re.match(r" *", session[0])[0]  # type: ignore[index]
    lines = re.sub(r" *# doctest: .*$", "", session[0].rstrip(), flags=re.MULTILINE)
    return f"{indent}```pycon\n{lines}\n{indent}```\n"
