"""Training curves with the phases marked, in the colours that mean the same everywhere on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from gebm_kit.config.schema import PRETRAINED
from gebm_kit.core.errors import GebmKitError
from gebm_kit.engine.figures.plotting import Array, draw_curve, series, stay_with_the_bulk
from gebm_kit.engine.figures.run_figures import curve_panels
from gebm_kit.engine.reporting.charts import INKS, chart, svg_of
from gebm_kit.engine.reporting.facts import RunFacts
from gebm_kit.engine.reporting.page import Block, Figure, Gallery, Missing, Section, Table, Text
from gebm_kit.engine.reporting.words import number, plain
from gebm_kit.engine.run_directory.log_rows import read_rows
from gebm_kit.engine.run_directory.values import is_count

MOST_ROWS_DRAWN = 2000
"""Rows of the log that are drawn; a chart is some hundred pixels wide."""

MOST_PANELS = 9
"""Most charts; all values are in metrics.jsonl."""

TABLE_ROWS = 10
"""Rows of the table behind a chart."""

LEARNERS = {"both": "base and energy", "base": "the base alone", "energy": "the energy alone"}
"""What learns in the main phase, by ``train.part``."""

_LINES = ("-", "--", ":", "-.")


def curves_section(facts: RunFacts) -> Section:
    """Return one chart for each group of values in the log."""
    title = "How training went"
    try:
        rows = read_rows(facts.path, most=MOST_ROWS_DRAWN)
    except GebmKitError as error:
        return Section("training", title, "", [Missing(f"The log can't be read: {plain(error.message)}.")])
    rows = [row for row in rows if not any(name.startswith("eval.") for name in row)]
    panels = {title: names for title, names in curve_panels(rows).items() if names} if rows else {}
    if not panels:
        return Section("training", title, "", [Missing("The run has logged nothing yet, so there are no curves.")])
    phases = phases_of(facts)
    figures = []
    for place, (panel, names) in enumerate(list(panels.items())[:MOST_PANELS]):
        if (figure := _panel(plain(panel, 60), names, rows, phases, place)) is not None:
            figures.append(figure)
    blocks: list[Block] = [Gallery(figures)]
    if phases:
        part = str(facts.part("train", "part") or "").removeprefix(PRETRAINED)
        learners = {
            "pretraining": "the base alone",
            "main": LEARNERS.get(part, plain(part, 40)),
            "final": "the energy alone",
        }
        marked = [[name, f"{first + 1:,} to {last:,}", learners[name]] for name, first, last in phases]
        blocks.append(Table("Phases of training", ["phase", "steps", "what learns"], marked))
    if len(panels) > MOST_PANELS:
        blocks.append(Text(f"{len(panels) - MOST_PANELS} more values are in metrics.jsonl."))
    lead = (
        "Pale lines are the values, strong ones medians of blocks. Upright lines mark where a phase begins. A large KALE is "
        "a training signal, not a measure of quality: the scores above are that."
    )
    return Section("training", title, lead, blocks)


def phases_of(facts: RunFacts) -> list[tuple[str, int, int]]:
    """Return the phases that took steps: name, step before the first cycle, last step."""
    train = facts.part("train")
    if not isinstance(train, Mapping):
        return []

    def steps(*names: str) -> int:
        value = facts.part("train", *names)
        return value if is_count(value) else 0

    found, begun = [], 0
    pretraining = steps("pretrain", "steps") if str(train.get("part", "")).startswith(PRETRAINED) else 0
    for name, count in (("pretraining", pretraining), ("main", steps("steps")), ("final", steps("final", "steps"))):
        if count:
            found.append((name, begun, begun + count))
        begun += count
    return found


def looks_section_blocks(facts: RunFacts) -> list[Block]:
    """Return a chart of each metric over the evaluations during training; nothing where there was at most one."""
    rows = facts.record.evaluated_rows
    figures = []
    for place, name in enumerate(facts.record.value_names()[:4]):
        sets = {key: series(rows, f"eval.{key}.{name}") for key in ("data", "base", "gebm")}
        if len(sets["gebm"][0]) < 2:
            continue
        label = plain(name, 40)
        with chart() as (figure, axes):
            for key, (steps, values) in sets.items():
                axes.plot(steps, values, "o-", color=INKS[key], markersize=4, linewidth=1.6)
            axes.set(title=f"{label} in training", xlabel="step")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            steps, values = sets["gebm"]
            course = f"from {number(float(values[0]))} to {number(float(values[-1]))}"
            text = f"{label} of the GEBM over {len(steps)} evaluations: {course}."
            picture = svg_of(figure, text, f"look-{place}")
        table_rows = [[f"step {int(step):,}", *(_at(sets[key], k) for key in sets)] for k, step in enumerate(steps)]
        table = Table(f"{label} in training", ["step", "held-out data", "base", "GEBM"], table_rows)
        figures.append(Figure(picture, text, table))
    return [Gallery(figures)] if figures else []


def _at(found: tuple[Array, Array], k: int) -> str:
    return number(float(found[1][k])) if k < len(found[1]) else ""


def _panel(
    title: str, names: Sequence[str], rows: Sequence[Mapping[str, Any]], phases: list[tuple[str, int, int]], place: int
) -> Figure | None:
    drawn = {name: series(rows, name) for name in names[:4]}
    drawn = {name: found for name, found in drawn.items() if np.isfinite(found[1]).any()}
    if not drawn:
        return None
    with chart() as (figure, axes):
        inks = [colour_of(name) for name in drawn]
        for k, (name, (steps, values)) in enumerate(drawn.items()):
            style = _LINES[inks[:k].count(inks[k]) % len(_LINES)]
            draw_curve(
                axes, steps, values, smooth_from=120, color=INKS[inks[k]], linestyle=style, label=plain(name, 40)
            )
        stay_with_the_bulk(axes, [values for _, values in drawn.values()])
        _mark(axes, phases)
        axes.set(title=title, xlabel="step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if len(drawn) > 1:
            axes.legend(loc="best")
        words = "; ".join(f"{plain(name, 40)} {_course(*found)}" for name, found in drawn.items())
        picture = svg_of(figure, f"{title} over the steps of training: {words}.", f"curve-{place}")
    return Figure(picture, f"{title}: {words}.", _numbers(title, drawn))


def colour_of(name: str) -> str:
    """Return the ink of a value by its name: that of the base, of data, of the GEBM or of the energy; another else."""
    words = name.lower().replace(".", "_").split("_")
    for word, ink in (("base", "base"), ("data", "data"), ("train", "train"), ("gebm", "gebm"), ("model", "gebm")):
        if word in words:
            return ink
    return "energy" if {"energy", "kale", "partition"} & set(words) else "other"


def _mark(axes: Axes, phases: list[tuple[str, int, int]]) -> None:
    """Mark where phases begin, with their names."""
    if len(phases) < 2:
        return
    low, high = axes.get_xlim()
    for name, first, last in phases:
        if first >= high:
            continue
        if first > max(low, 0):
            axes.axvline(first, color=INKS["faint"], linewidth=1.2, linestyle=(0, (2, 2)))
        middle = (max(first, low) + min(last, high)) / 2
        wide = (min(last, high) - max(first, low)) / (high - low) > 0.14
        if wide:
            axes.annotate(
                name,
                (middle, 0.985),
                xycoords=("data", "axes fraction"),
                ha="center",
                va="top",
                fontsize=8.5,
                color=INKS["ink"],
            )


def _course(steps: Array, values: Array) -> str:
    """Say where a value began and ended."""
    known = np.flatnonzero(np.isfinite(values))
    first, last = known[0], known[-1]
    ends = [f"{number(float(values[place]), 3)} at step {int(steps[place]):,}" for place in (first, last)]
    return f"from {ends[0]} to {ends[1]}"


def _numbers(title: str, drawn: Mapping[str, tuple[Array, Array]]) -> Table:
    """Return the values at a few steps, spread evenly."""
    every = np.unique(np.concatenate([steps for steps, _ in drawn.values()]))
    chosen = every[np.unique(np.linspace(0, len(every) - 1, min(TABLE_ROWS, len(every))).round().astype(int))]
    rows = []
    for step in chosen:
        cells = [f"step {int(step):,}"]
        for steps, values in drawn.values():
            here = np.flatnonzero(steps == step)
            cells.append(number(float(values[here[-1]])) if len(here) else "")
        rows.append(cells)
    return Table(title, ["step", *(plain(name, 40) for name in drawn)], rows)
