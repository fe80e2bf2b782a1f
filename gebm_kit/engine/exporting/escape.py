"""Text from a run, written so that Markdown and HTML show it as it is."""

from __future__ import annotations

import html
import math
import re
from typing import Any

LONGEST = 300
"""Longest text from a run on a card, in characters."""

SPECIAL = re.compile(r"[\\`*_{}\[\]|~$]|(?<=:)//|(?<=www)\.")
"""What means something in Markdown anywhere in a line, or makes a link of an address."""

AT_START = re.compile(r"^(?:[#+\->=]|\d+(?=[.)]))")
"""What means something in Markdown at the beginning of a line."""


def plain_text(value: Any) -> str:
    """Return a value as text of one line, without characters that control anything, shortened."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def md(value: Any) -> str:
    """Return a value as Markdown that shows it: no markup, no HTML, no link, no template."""
    text = SPECIAL.sub(lambda found: "".join(f"\\{c}" for c in found[0]), plain_text(value))
    text = AT_START.sub(lambda found: f"{found[0]}\\" if found[0].isdigit() else f"\\{found[0]}", text)
    return html.escape(text, quote=False)


def code(value: Any) -> str:
    """Return a value as code within a line."""
    text = plain_text(value)
    longest = max((len(ticks) for ticks in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    text = text.replace("|", "\\|")  # a cell of a table ends at a bare bar, also within code
    return f"{fence} {text} {fence}" if longest or text.strip() != text or not text else f"{fence}{text}{fence}"


def number(value: Any) -> str:
    """Return a number with four digits, a dash for none."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def interval(cell: Any) -> str:
    """Return an estimate with its 95 % interval."""
    if not isinstance(cell, dict) or cell.get("value") is None:
        return "-"
    text = number(cell["value"])
    low, high = cell.get("low"), cell.get("high")
    return text if low is None or high is None else f"{text} ({number(low)} to {number(high)})"


def fenced(language: str, text: str) -> str:
    """Return a block of code."""
    longest = max((len(ticks) for ticks in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
