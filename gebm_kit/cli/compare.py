"""``gebm-kit compare``: runs side by side, as tables and as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gebm_kit.cli import ui
from gebm_kit.cli.completion import complete_run
from gebm_kit.cli.options import Debug, Json, Quiet, place
from gebm_kit.cli.results import COLUMN_LABELS, interval, show_protocols
from gebm_kit.core.paths import HTML_ENDINGS, check_ending
from gebm_kit.core.progress_lines import duration

if TYPE_CHECKING:
    from gebm_kit.engine.evaluation.comparison import Comparison

OUTCOME_LABELS = {
    "state": "state",
    "skipped_updates": "skipped updates",
    "restores": "times gone back",
    "kale_train": "KALE, training data",
    "kale_test": "KALE, held-out data",
    "log_partition": "log partition",
    "nll": "NLL, held-out data",
    "inverse_temperature": "inverse temperature",
    "acceptance": "acceptance",
    "divergences": "divergences",
}
"""Keys of `Comparison.outcomes` that have a row of the table, and what that row is called."""


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN RUN ...", help="Two or more run directories.", autocompletion=complete_run),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            parser=place("--out"),
            help="The picture, a .png; default: compare.png, or none with --html. An existing file is replaced.",
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="FILE", parser=place("--html"), help="Write a report of the comparison, an .html file."
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare runs: differences of their recipes, how they went, their scores, and a picture of their training."""
    say = ui.Ui(json=json, quiet=quiet, debug=debug)
    if html is not None:
        check_ending(html, HTML_ENDINGS, "--html must be an HTML file", "For example --html compare.html.")
    picture = Path("compare.png") if out is None and html is None else out
    if picture is not None:
        check_ending(picture, (".png",), "--out must be a PNG file", "For example --out compare.png.")
    from gebm_kit.core.files import make_directory
    from gebm_kit.engine.evaluation.comparison import compare as engine_compare

    comparison = engine_compare(runs)
    if picture is not None:
        from gebm_kit.engine.figures.comparison_figure import draw_comparison

        make_directory(picture.parent)
        draw_comparison(picture, comparison)
    if html is not None:
        from gebm_kit.engine.reporting.write import write_comparison_report

        write_comparison_report(comparison, html)
    files = {"figure": None if picture is None else str(picture)} | ({} if html is None else {"report": str(html)})
    say.result({**comparison.as_dict(), **files}, lambda: _show(comparison, files))


def _show(comparison: Comparison, files: Mapping[str, str | None]) -> None:
    if comparison.differences:
        rows = [[key, *(_word(value) for value in values)] for key, values in comparison.differences.items()]
        ui.table("", ["recipe", *comparison.labels], rows)
    else:
        ui.text("the recipes are the same")
    ui.text()
    ui.table("", ["result", *comparison.labels], _outcome_rows(comparison.outcomes()))
    ui.text()
    if comparison.metrics:
        rows = []
        for metric in comparison.metrics:
            mark = " !" if metric.reasons else ""
            for column, values in metric.columns.items():
                if any(values):
                    rows.append([f"{metric.name}{mark}", COLUMN_LABELS[column], *(interval(value) for value in values)])
        ui.table("", ["metric", "of", *comparison.labels], rows)
        ui.text("[95 % intervals over independent draw sets]")
        comparable = [metric for metric in comparison.metrics if not metric.reasons]
        show_protocols({metric.name: next(filter(None, metric.protocols), {}) for metric in comparable})
        reasons: dict[str, list[str]] = {}
        for metric in comparison.metrics:
            if metric.reasons:
                reasons.setdefault("; ".join(metric.reasons), []).append(metric.name)
        for reason, names in reasons.items():
            ui.text(f"! not comparable: {', '.join(names)} ({reason})")
    else:
        ui.text("none of the runs has been evaluated")
    for kind, path in files.items():
        if path is not None:
            ui.text(f"{kind}: {path}")


def _outcome_rows(outcomes: list[dict[str, Any]]) -> list[list[str]]:
    rows = [[label, *(ui.number(outcome[key]) for outcome in outcomes)] for key, label in OUTCOME_LABELS.items()]
    steps = [ui.number(o["step"]) + ("" if o["total_steps"] is None else f"/{o['total_steps']}") for o in outcomes]
    times = ["-" if o["seconds"] is None else duration(o["seconds"]) for o in outcomes]
    rows[1:1] = [["step", *steps], ["time", *times]]
    problems = [ui.number(None) if o["divergences"] is None else str(len(o["problems"])) for o in outcomes]
    return [*rows, ["problems of the chains", *problems]]


def _word(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
