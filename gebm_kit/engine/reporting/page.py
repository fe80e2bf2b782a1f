"""What a page says, as plain data: sections of texts, tables, figures and commands. `render` turns them into HTML.

Every text here is plain text and is escaped when it is rendered. The only HTML is in `Figure.picture`, which `charts` and
`images` make.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from markupsafe import Markup

Tone = Literal["good", "bad", "unsure", "plain"]
"""How a statement is coloured and marked: a word says the same, so that nothing depends on the colour."""

MARKS: dict[Tone, str] = {"good": "Good", "bad": "Bad", "unsure": "Not clear", "plain": ""}
"""The word that goes with a tone."""


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph.

    Attributes:
        mark: the word in front of it; "": that of the tone.
    """

    kind: ClassVar[str] = "text"
    text: str
    tone: Tone = "plain"
    mark: str = ""

    @property
    def word(self) -> str:
        """The word in front that says what the colour says."""
        return self.mark or MARKS[self.tone]


@dataclass(frozen=True, slots=True)
class Bullets:
    """Statements, each with its tone."""

    kind: ClassVar[str] = "bullets"
    items: Sequence[Text]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under headers; the first cell of each row heads it. A cell that is a `Text` shows its tone."""

    kind: ClassVar[str] = "table"
    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str | Text]]
    note: str = ""
    folded: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture with its text alternative and the numbers behind it.

    Attributes:
        picture: the ``<svg>`` or ``<img>``, which carries the text alternative.
        caption: what is seen, in a sentence.
        table: the numbers; None where the picture shows none.
        wide: whether it takes the whole width of the page.
    """

    kind: ClassVar[str] = "figure"
    picture: Markup
    caption: str
    table: Table | None = None
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Gallery:
    """Figures side by side, as many as fit."""

    kind: ClassVar[str] = "gallery"
    figures: Sequence[Figure]
    large: bool = False


@dataclass(frozen=True, slots=True)
class Legend:
    """What the colours mean: names of CSS classes and labels."""

    kind: ClassVar[str] = "legend"
    entries: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Code:
    """Commands or a file, as they are."""

    kind: ClassVar[str] = "code"
    caption: str
    text: str
    folded: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and values."""

    kind: ClassVar[str] = "facts"
    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Missing:
    """Why something is not shown, and the command that makes it; "" where there is none."""

    kind: ClassVar[str] = "missing"
    text: str
    command: str = ""


Block = Text | Bullets | Table | Figure | Gallery | Legend | Code | Facts | Missing


FOOT = "Made by gebm-kit {version}. This page is one file: it runs no script and asks for nothing from a network."
"""The last line of every page."""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page with a heading of its own.

    Attributes:
        name: its anchor, letters and hyphens.
        lead: what the section shows and how to read it.
    """

    name: str
    title: str
    lead: str
    blocks: Sequence[Block] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """A whole page.

    Attributes:
        title: what the page is about.
        subtitle: one line below it.
        answers: the questions that most readers have, each with its answer and tone.
        sections: the parts, in their order.
        foot: who made the page, and when.
    """

    title: str
    subtitle: str
    answers: Sequence[tuple[str, Text]]
    sections: Sequence[Section]
    foot: str
    legend: Legend | None = field(default=None)
