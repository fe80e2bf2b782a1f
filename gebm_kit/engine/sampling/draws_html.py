"""What draws look like at a prompt and in a notebook."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from torch import Tensor

from gebm_kit.core.html import cell, picture, table
from gebm_kit.core.mosaic import are_images, image_of, png_of
from gebm_kit.core.units import HasMeasured
from gebm_kit.engine.sampling.diagnostics import Diagnostics
from gebm_kit.engine.sampling.exported import column_names

SHOWN_ROWS = 8
"""Rows of a table that are shown."""

SHOWN_COLUMNS = 12
"""Most columns of a table that are shown."""

SHOWN_IMAGES = 32
"""Images that are shown."""


def summary_of(kind: str, num: int, shape: Sequence[int], d: Diagnostics, more: str = "") -> str:
    """Say how many draws of what there are, and how good they are."""
    size = "x".join(map(str, shape)) or "()"
    known = [("R-hat", d.rhat_max), ("ESS", d.ess_min), ("acceptance", d.acceptance)]
    values = "".join(f", {name} {cell(float(value))}" for name, value in known if not math.isnan(value))
    problems = len(d.problems)
    verdict = "" if not problems else f"; {problems} problem{'s' if problems > 1 else ''}, see .diagnostics.problems"
    return f"{kind}({num:,} of shape {size}{more}; {d.sampler}, {d.num_chains:,} chains{values}{verdict})"


def sections_of(
    x: Tensor,
    d: Diagnostics,
    units: HasMeasured | None,
    value_range: tuple[float, float] | None,
    classes: Sequence[str] | None,
) -> Iterator[str]:
    """Yield the diagnostics, and the first draws: images as a picture, others as rows, in measured units where known."""
    names = (
        "sampler",
        "rhat_max",
        "nested_rhat_max",
        "ess_min",
        "acceptance",
        "divergences",
        "stuck_chains",
        "seconds",
    )
    rows = [(name, getattr(d, name)) for name in (*names, "inverse_temperature", "seed")]
    yield table(("diagnostic", "value"), [*rows, ("converged", "yes" if d.converged else "no")])
    if d.problems:
        yield table(("problem",), [(problem,) for problem in d.problems])
    if not len(x):
        return
    if are_images(tuple(x.shape[1:])):
        yield picture(png_of(image_of(x[:SHOWN_IMAGES], value_range)), "draws")
        return
    first = x[:SHOWN_ROWS].detach().cpu().flatten(1) if x.ndim > 1 else x[:SHOWN_ROWS].detach().cpu().unsqueeze(1)
    headers = [f"x{place}" for place in range(first.shape[1])]
    if units is not None:
        first, headers = units.measured(first), column_names(units) or headers
    shown, more = headers[:SHOWN_COLUMNS], len(headers) - SHOWN_COLUMNS
    cells: list[list[object]] = [list(row[:SHOWN_COLUMNS]) for row in first.float().tolist()]
    for index, row in enumerate(cells):
        row += ["..."] * (more > 0) + ([] if classes is None else [classes[index]])
    heads = [*shown, *([f"{more:,} more"] if more > 0 else []), *([] if classes is None else ["label"])]
    yield table(heads, cells, f"the first {len(cells)} of {len(x):,} draws")
