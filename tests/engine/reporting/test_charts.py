"""Charts are SVG in the page's colours, with a text alternative, and whatever a run says in them stays text."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
import torch

from gebm_kit.engine.reporting.charts import INKS, chart, svg_of
from gebm_kit.engine.reporting.images import grid

pytestmark = pytest.mark.pictures  # charts are drawn, not left blank

HOSTILE = "<script>alert(1)</script> \"quoted\" 'x' {{ 7 * 7 }} & $a_b$ \x1b[31m"


def drawn(name: str) -> str:
    with chart() as (figure, axes):
        axes.plot([1, 2, 3], [3, 1, 2], "o-", color=INKS["gebm"], label=HOSTILE.replace("\x1b", "?"))
        axes.axvspan(1, 2, color=INKS["base"], alpha=0.2)
        axes.set_title("a title")
        axes.legend()
        return str(svg_of(figure, HOSTILE, name))


def test_a_chart_is_well_formed_and_its_texts_are_text() -> None:
    root = ElementTree.fromstring(drawn("one"))
    assert root.tag == "svg"
    assert root.get("role") == "img"
    assert root.get("aria-label", "").startswith("<script>alert(1)</script>")  # as text
    assert "\x1b" not in root.get("aria-label", "")
    texts = ["".join(element.itertext()) for element in root.iter("text")]
    assert HOSTILE.replace("\x1b", "?") in texts
    assert {element.tag for element in root.iter()} <= {"svg", "g", "defs", "path", "use", "text", "clipPath", "rect"}


def test_a_chart_has_no_colour_but_those_of_the_page() -> None:
    text = drawn("one")
    assert not re.search("#[0-9a-fA-F]{6}", text)
    assert {"--gebm", "--base", "--ink"} <= set(re.findall(r"var\((--[a-z0-9-]+)\)", text))


def test_identifiers_of_two_charts_do_not_clash() -> None:
    one, two = (set(re.findall(r'\bid="([^"]*)"', drawn(name))) for name in ("one", "two"))
    assert one
    assert not one & two
    for used in re.findall(r"(?:url\(#|href=\"#)([^)\"]*)", drawn("one")):
        assert used in one


def test_the_same_chart_is_the_same_text() -> None:
    assert drawn("one") == drawn("one")


def test_a_grid_has_an_escaped_text_alternative() -> None:
    images = torch.rand(10, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    text = str(grid(images, (-1.0, 1.0), 'ten "images" <b>'))
    assert 'alt="ten &#34;images&#34; &lt;b&gt;"' in text
    assert text.count("<") == 1
    assert 'src="data:image/png;base64,' in text
