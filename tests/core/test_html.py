"""Pieces of HTML for notebooks: whatever comes from a user is escaped, and long things are cut."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from gebm_kit.core import html

HOSTILE = "<script>alert('x')</script>\"&\x1b[31m"


@pytest.mark.parametrize(
    "page",
    [
        html.heading(HOSTILE),
        html.table((HOSTILE,), [(HOSTILE,)], HOSTILE),
        html.picture(b"\x89PNG", HOSTILE),
    ],
)
def test_names_are_shown_and_not_obeyed(page: str) -> None:
    assert "<script" not in page
    assert "\x1b" not in page
    assert "&lt;script&gt;" in page
    assert "&quot;&amp;" in page


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (float("nan"), "-"),
        (0.123456, "0.1235"),
        (12345, "12,345"),
        (True, "True"),
        ("a" * 300, "a" * 197 + "..."),
    ],
)
def test_cells(value: object, text: str) -> None:
    assert html.cell(value) == text


def test_long_tables_say_how_many_rows_are_left_out() -> None:
    page = html.table(("a",), [(n,) for n in range(100)])
    assert page.count("<tr>") == html.MOST_ROWS + 2
    assert "and 40 more" in page


def test_intervals() -> None:
    assert html.interval(1.0, 0.5, 1.5) == "1 [0.5, 1.5]"
    assert html.interval(1.0, None, 2.0) == "1"


def test_what_is_shown_has_one_repr_and_one_page() -> None:
    class Thing(html.Shown):
        def _summary(self) -> str:
            return "Thing(<1>)"

        def _sections(self) -> Iterator[str]:
            yield html.table(("a",), [(1,)])

    assert repr(Thing()) == "Thing(<1>)"
    assert Thing()._repr_html_().startswith("<div><p")
    assert "Thing(&lt;1&gt;)" in Thing()._repr_html_()


def test_it_needs_neither_torch_nor_matplotlib() -> None:
    code = "import sys, gebm_kit.core.html; assert not {'torch', 'numpy', 'PIL', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
