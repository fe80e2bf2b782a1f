"""A page as HTML: jinja2 templates with everything escaped but the pictures, in one file that asks for nothing else."""

from __future__ import annotations

import functools

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gebm_kit.engine.reporting.page import Page

CONTENT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""What the page may load: its own styles and the pictures inside it. There is no script, and none would run."""


def html_of(page: Page) -> str:
    """Return the page as one HTML document."""
    environment = _environment()
    styles = environment.get_template("report.css").render()
    template = environment.get_template("report.html.j2")
    return template.render(page=page, styles=Markup(styles), policy=CONTENT_POLICY) + "\n"


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("gebm_kit.engine.reporting", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
