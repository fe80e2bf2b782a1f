"""Charts as SVG inside a page: drawn by matplotlib, with colours that follow the page's light or dark scheme.

A chart is drawn in the placeholder colours of `INKS`. `svg_of` puts a CSS variable in the place of each, gives the picture
its text alternative and removes identifiers that would clash with those of other charts on the page. The result is parsed
and written as XML, so text from a run stays text.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from gebm_kit.engine.reporting.words import plain

INKS = {
    "ink": "#010203",
    "faint": "#010204",
    "paper": "#010205",
    "data": "#010206",
    "base": "#010207",
    "gebm": "#010208",
    "energy": "#010209",
    "train": "#01020a",
    "other": "#01020b",
    **{f"run-{place}": f"#0102{16 + place:02x}" for place in range(7)},
}
"""Names of the page's colours, and the placeholders that charts are drawn in."""

MEANINGS = {
    "data": "held-out data",
    "base": "base",
    "gebm": "GEBM",
    "energy": "energy",
    "train": "training data",
}
"""What the colours mean, on every page and in every figure."""

_NAMES = {colour: name for name, colour in INKS.items()}
_COLOUR = re.compile(r"#0102[0-9a-f]{2}")
_REFERENCE = re.compile(r"url\(#([^)]*)\)")
_FONT = re.compile(r"font-family: [^;]*;? ?")
_SVG, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
_UNWANTED = (f"{_SVG}metadata", f"{_SVG}style")
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "gebm-kit",
    "font.family": "sans-serif",
    "font.size": 11.5,
    "text.parse_math": False,
    "text.color": INKS["ink"],
    "axes.labelcolor": INKS["ink"],
    "axes.edgecolor": INKS["faint"],
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.formatter.limits": (-3, 5),
    "axes.unicode_minus": True,
    "xtick.color": INKS["faint"],
    "ytick.color": INKS["faint"],
    "xtick.labelcolor": INKS["ink"],
    "ytick.labelcolor": INKS["ink"],
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "grid.color": INKS["faint"],
    "grid.alpha": 0.35,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 10.5,
}

WIDTH, HEIGHT = 4.6, 2.9
"""Size of a chart in inches: it is read at its natural size on a phone, and two or three stand side by side on a desk."""


@contextmanager
def chart(width: float = WIDTH, height: float = HEIGHT) -> Iterator[tuple[Figure, Axes]]:
    """Yield a figure with one pair of axes, in the style of the page. Call `svg_of` inside the block."""
    with drawing():
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        axes.grid(True)
        axes.set_axisbelow(True)
        yield figure, axes


@contextmanager
def drawing() -> Iterator[None]:
    """Draw in the style of the page for the block; a glyph that matplotlib's font lacks is the reader's font's business."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():  # type: ignore[arg-type]
        warnings.simplefilter("ignore", UserWarning)
        yield


def svg_of(figure: Figure, alternative: str, name: str) -> Markup:
    """Return the figure as an ``<svg>`` element of a page.

    Args:
        alternative: what the chart shows, in a sentence with its numbers, for readers who don't see it.
        name: a name that no other chart of the page has.
    """
    FigureCanvasSVG(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(buffer.getvalue())
    _clean(root, name)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib.update({"role": "img", "aria-label": plain(alternative, 4000), "class": "chart", "focusable": "false"})
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # by an XML writer, which escapes what a run says


def _clean(root: ElementTree.Element, name: str) -> None:
    """Put CSS variables for placeholders, and make identifiers unique to this chart; those without a use are dropped."""
    used = {
        found for element in root.iter() for value in element.attrib.values() for found in _REFERENCE.findall(value)
    }
    used |= {element.attrib[_LINK][1:] for element in root.iter() if _LINK in element.attrib}
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in _UNWANTED]:
            parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)  # HTML knows an <svg> without namespaces
        found = dict(element.attrib)
        element.attrib.clear()
        for key, value in found.items():
            if key == "id":
                if value in used:
                    element.set(key, f"{name}-{value}")
            elif key == _LINK:
                element.set("href", f"#{name}-{value[1:]}")
            else:
                value = _REFERENCE.sub(rf"url(#{name}-\1)", _FONT.sub("", value))
                element.set(key, _COLOUR.sub(lambda match: f"var(--{_NAMES.get(match[0], 'ink')})", value))
