"""The page about several runs side by side: scores, draws, training, and how their recipes differ."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.ticker import MaxNLocator

from gebm_kit.core.errors import DataError, GebmKitError
from gebm_kit.core.progress_lines import duration
from gebm_kit.core.reading import read_file
from gebm_kit.core.version import __version__
from gebm_kit.engine.evaluation.comparison import ComparedMetric, Comparison
from gebm_kit.engine.evaluation.kept_draws import read_kept_draws
from gebm_kit.engine.figures.comparison_figure import TRAINING_CURVES
from gebm_kit.engine.figures.plotting import draw_curve, finite_series, finite_values, stay_with_the_bulk
from gebm_kit.engine.reporting.charts import INKS, chart, svg_of
from gebm_kit.engine.reporting.images import grid, img, span_of
from gebm_kit.engine.reporting.page import (
    FOOT,
    Block,
    Bullets,
    Code,
    Figure,
    Gallery,
    Legend,
    Missing,
    Page,
    Section,
    Table,
    Text,
)
from gebm_kit.engine.reporting.words import ends_of, interval, number, plain, real
from gebm_kit.engine.run_directory.record import RunRecord
from gebm_kit.engine.run_directory.values import is_number

SETS = {"data": "held-out data", "base": "base", "gebm": "GEBM"}
STYLES = ("-", "--", ":", "-.")
MOST_CHARTS = 8
LARGEST_PICTURE = 2 * 2**20
"""Largest picture of a run that is shown, in bytes."""

OUTCOMES = {
    "recipe": "recipe", "state": "state", "step": "steps", "seconds": "time",
    "skipped_updates": "skipped updates", "restores": "times gone back",
    "kale_test": "KALE, held-out data", "log_partition": "log partition", "nll": "NLL, held-out data",
    "inverse_temperature": "inverse temperature", "acceptance": "acceptance", "divergences": "divergences",
}  # fmt: skip
"""Keys of an outcome, and what they are called."""


def comparison_page(comparison: Comparison) -> Page:
    """Return the page about the runs of a comparison."""
    labels = [plain(label, 60) for label in comparison.labels]
    inks = [
        (f"run-{k % 7}", label + ("" if k < 7 else f" ({('', 'dashed', 'dotted', 'dash-dotted')[k // 7 % 4]})"))
        for k, label in enumerate(labels)
    ]
    sections = [
        _scores(comparison, labels),
        _draws(comparison, labels),
        _outcomes(comparison, labels),
        _curves(comparison, labels),
        _recipes(comparison, labels),
        _again(comparison, labels),
    ]
    return Page(
        title=f"{len(labels)} runs compared",
        subtitle=", ".join(labels),
        answers=_answers(comparison, labels),
        sections=sections,
        foot=FOOT.format(version=__version__),
        legend=Legend([*((key, label) for key, label in SETS.items()), *inks]),
    )


def _answers(comparison: Comparison, labels: list[str]) -> list[tuple[str, Text]]:
    """Say which run is best by each metric that can be compared."""
    found: list[tuple[str, Text]] = []
    for metric in comparison.metrics:
        name = plain(metric.name, 60)
        if sum(cell is not None for cell in metric.columns["gebm"]) < 2 or len(found) == 4:
            continue  # nothing to compare
        if metric.reasons:
            reasons = "; ".join(plain(reason, 300) for reason in metric.reasons[:3])
            found.append((f"Which GEBM is best by {name}?", Text(f"They can't be compared: {reasons}.", "unsure")))
            continue
        found.append((f"Which GEBM is best by {name}?", _best(metric, labels)))
    if not found:
        found.append(
            ("Which GEBM is best?", Text("Not known: no two of the runs were scored by the same metric.", "unsure"))
        )
    return found


def _best(metric: ComparedMetric, labels: list[str]) -> Text:
    """Name the run with the best value, and say whether its interval lies apart from the next one's."""
    lower = next((p.get("lower_is_better") for p in metric.protocols if p), None)
    cells = [
        (cell, label)
        for cell, label in zip(metric.columns["gebm"], labels, strict=True)
        if cell and is_number(cell.get("value"))
    ]
    if not isinstance(lower, bool):
        return Text(
            "; ".join(f"{label} {interval(cell)}" for cell, label in cells) + ": no direction is stated as better.",
            "unsure",
        )
    if len(cells) < 2:
        return Text("Only one of the runs has this value.", "unsure")
    cells.sort(key=lambda pair: pair[0]["value"], reverse=not lower)
    (first, winner), (second, next_one) = cells[:2]
    near, far = ("high", "low") if lower else ("low", "high")
    end, other = real(first.get(near)), real(second.get(far))
    good = "lower is better" if lower else "higher is better"
    texts = f"{winner} with {interval(first)}, then {next_one} with {interval(second)} ({good})"
    if end is None or other is None:
        return Text(f"{texts}; without intervals, the difference may be chance.", "unsure")
    if end < other if lower else end > other:
        return Text(f"{texts}; their 95 % intervals lie apart.", "good")
    return Text(f"{texts}; their 95 % intervals overlap, so this may be chance.", "unsure")


def _scores(comparison: Comparison, labels: list[str]) -> Section:
    title = "Scores"
    if not comparison.metrics:
        return Section("scores", title, "", [Missing("None of the runs has been evaluated.", "gebm-kit eval RUN")])
    figures = [_chart(metric, labels, k) for k, metric in enumerate(comparison.metrics[:MOST_CHARTS])]
    rows = []
    for metric in comparison.metrics:
        mark = " (not comparable)" if metric.reasons else ""
        for column, cells in metric.columns.items():
            if any(cells):
                of = "GEBM / base" if column == "ratio" else SETS.get(column, column)
                rows.append([f"{plain(metric.name, 60)}{mark}", of, *(interval(cell) for cell in cells)])
    table = Table(
        "Scores of all runs", ["metric", "of", *labels], rows, "95 % intervals over independent draw sets in brackets."
    )
    reasons = [
        Text(
            f"{plain(metric.name, 60)} can't be compared: {'; '.join(plain(reason, 300) for reason in metric.reasons)}.",
            "unsure",
        )
        for metric in comparison.metrics
        if metric.reasons
    ]
    blocks: list[Block] = [
        Gallery([figure for figure in figures if figure is not None]),
        *([Bullets(reasons)] if reasons else []),
        table,
    ]
    lead = (
        "Values of one metric can be compared if they were computed by the same protocol on the same data; where they were "
        "not, it says so."
    )
    return Section("scores", title, lead, blocks)


def _chart(metric: ComparedMetric, labels: list[str], place: int) -> Figure | None:
    """Draw data, base and GEBM of each run with their intervals."""
    name = plain(metric.name, 40) + (" (NOT comparable)" if metric.reasons else "")
    drawn = False
    with chart(height=1.2 + 0.5 * len(labels)) as (figure, axes):
        for shift, key in zip((-0.2, 0.0, 0.2), SETS, strict=True):
            for row, cell in enumerate(metric.columns[key]):
                if not cell or not is_number(cell.get("value")):
                    continue
                drawn = True
                axes.plot(ends_of(cell), [row + shift] * 2, color=INKS[key], linewidth=1.8, solid_capstyle="butt")
                axes.plot([cell["value"]], [row + shift], "o", color=INKS[key], markersize=5.5)
        axes.set_yticks(range(len(labels)), [label if len(label) <= 22 else f"…{label[-21:]}" for label in labels])
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set_title(name)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        words = "; ".join(
            f"{label}: base {interval(b)}, GEBM {interval(g)}"
            for label, b, g in zip(labels, metric.columns["base"], metric.columns["gebm"], strict=True)
        )
        picture = svg_of(figure, f"{name} of each run. {words}.", f"score-{place}")
    return Figure(picture, f"{name}: held-out data, base and GEBM of each run, with 95 % intervals.") if drawn else None


def _draws(comparison: Comparison, labels: list[str]) -> Section:
    """Return the draws of each GEBM that its last evaluation kept, or the picture in its directory."""
    figures, missing = [], []
    for record, label in zip(comparison.records, labels, strict=True):
        figure = _of_run(record, label)
        if figure is None:
            missing.append(label)
        else:
            figures.append(figure)
    blocks: list[Block] = [Gallery(figures, large=True)] if figures else []
    if missing:
        blocks.append(
            Missing(
                f"No images of draws: {', '.join(missing)}. An evaluation draws them, where the data are images.",
                "gebm-kit eval RUN",
            )
        )
    return Section("draws", "Draws of each GEBM", "", blocks)


def _of_run(record: RunRecord, label: str) -> Figure | None:
    facts = record.checkpoint_state.get("facts")
    shape = facts.get("data_shape") if isinstance(facts, Mapping) else None
    folder, evaluated = record.path / "figures", str((record.evaluation or {}).get("checkpoint") or "")
    words = f"Draws of the GEBM of {label}"
    if isinstance(shape, list) and len(shape) == 3 and facts is not None:
        kept = read_kept_draws(folder, evaluated, tuple(shape))
        span = facts.get("value_range")
        if kept is not None:
            limits = (float(span[0]), float(span[1])) if isinstance(span, list) else None
            x = kept.x["GEBM"]
            return Figure(
                grid(x, span_of([x], limits), f"{words}: a grid of {len(x)} images."), f"{words}, {len(x)} images."
            )
    for name, what in (
        ("samples.png", "data, base and GEBM"),
        ("clouds.png", "data, base and GEBM"),
        ("marginals.png", "marginals"),
    ):
        if (png := _png(folder / name)) is not None:
            width, height = (int.from_bytes(png[k : k + 4], "big") for k in (16, 20))
            return Figure(img(png, f"Picture of {label}: {what}.", width, height), f"{label}: {what}.")
    return None


def _png(path: Path) -> bytes | None:
    try:
        content = read_file(path, limit=LARGEST_PICTURE, error=DataError)
    except GebmKitError:
        return None
    return content if content.startswith(b"\x89PNG\r\n\x1a\n") and len(content) > 24 else None


def _outcomes(comparison: Comparison, labels: list[str]) -> Section:
    outcomes = comparison.outcomes()
    rows = []
    for key, name in OUTCOMES.items():
        values = [outcome[key] for outcome in outcomes]
        if key == "step":
            shown = [
                number(o["step"]) + ("" if o["total_steps"] is None else f" of {o['total_steps']:,}") for o in outcomes
            ]
        elif key == "seconds":
            shown = ["–" if value is None else duration(value) for value in values]
        else:
            shown = [number(value) for value in values]
        rows.append([name, *shown])
    rows.append(["problems of the chains", *(number(len(outcome["problems"])) for outcome in outcomes)])
    problems = [
        Text(f"{label}: {plain(text, 600)}", "bad")
        for label, outcome in zip(labels, outcomes, strict=True)
        for text in outcome["problems"]
    ]
    blocks: list[Block] = [
        Table("Results of the runs", ["result", *labels], rows),
        *([Bullets(problems)] if problems else []),
    ]
    return Section("outcomes", "How the runs went", "", blocks)


def _curves(comparison: Comparison, labels: list[str]) -> Section:
    """Overlay the training curves of all runs."""
    logged = [record.series(TRAINING_CURVES) for record in comparison.records]
    figures = []
    for place, (name, title) in enumerate(TRAINING_CURVES.items()):
        drawn = [finite_series(*found[name]) for found in logged]
        if not any(len(finite_values(values)) for _, values in drawn):
            continue
        with chart() as (figure, axes):
            words, rows = [], []
            for k, (steps, values) in enumerate(drawn):
                known = finite_values(values)
                if len(known):
                    draw_curve(
                        axes, steps, values, smooth_from=200, color=INKS[f"run-{k % 7}"], linestyle=STYLES[k // 7 % 4]
                    )
                    words.append(f"{labels[k]} from {number(float(known[0]), 3)} to {number(float(known[-1]), 3)}")
                    rows.append([labels[k], number(float(known[0])), number(float(known[-1])), f"{int(steps[-1]):,}"])
            stay_with_the_bulk(axes, [values for _, values in drawn])
            axes.set(title=title, xlabel="step")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            text = f"{title} over the steps of training: {'; '.join(words)}."
            picture = svg_of(figure, text, f"curve-{place}")
        figures.append(Figure(picture, text, Table(title, ["run", "first", "last", "steps"], rows)))
    blocks: list[Block] = [Gallery(figures)] if figures else [Missing("None of the runs has logged anything yet.")]
    other = any(key == "loss" or key.startswith("loss.") for key in comparison.differences)
    lead = "The runs' losses differ, so their values can't be compared." if other else ""
    return Section("training", "How training went", lead, blocks)


def _recipes(comparison: Comparison, labels: list[str]) -> Section:
    if not comparison.differences:
        return Section("recipes", "How the recipes differ", "", [Text("The recipes are the same.")])
    rows = [
        [plain(key, 100), *(plain(_word(value), 200) for value in values)]
        for key, values in comparison.differences.items()
    ]
    return Section("recipes", "How the recipes differ", "", [Table("Keys that differ", ["key", *labels], rows)])


def _again(comparison: Comparison, labels: list[str]) -> Section:
    lines = [
        f"gebm-kit train {shlex.quote(str(record.path / 'resolved.yaml'))} --out AGAIN-{k + 1}"
        for k, record in enumerate(comparison.records)
    ]
    lines += [
        "gebm-kit compare "
        + " ".join(shlex.quote(str(record.path)) for record in comparison.records)
        + " --html compare.html"
    ]
    text = "\n".join(line.replace("\n", " ") for line in lines)
    return Section(
        "again",
        "How to make them again",
        "The report of each run has its seeds and checksums.",
        [Code("Train the runs again, and compare them", text)],
    )


def _word(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
