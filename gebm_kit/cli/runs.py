"""``gebm-kit runs``: a list of runs with their progress and scores."""

from __future__ import annotations

import datetime
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gebm_kit.cli import ui
from gebm_kit.cli.options import Debug, Json, Quiet, place
from gebm_kit.core.errors import UsageError, nearest
from gebm_kit.core.progress_lines import duration

if TYPE_CHECKING:
    from gebm_kit.engine.run_directory.record import RunRecord, Score

HEADINGS = ("run", "recipe", "state", "step", "metric", "base", "GEBM", "GEBM / base", "best", "time", "changed")

SHOWN_CLASSES = 40
"""Most classes of a run that are shown; --json gives all."""

FIRST_TO_GO = ("recipe", "best", "base", "GEBM / base", "time", "changed")
"""Columns that are left out on a narrow terminal, in this order; a pipe and --json get everything."""


def runs(
    directory: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", parser=place("DIR"), help="Directory to search, at any depth; default: runs."),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option("--metric", metavar="NAME", help="The value to show; default: the first value of each run."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """List the runs under DIR, newest first, with state, progress and scores."""
    from gebm_kit.engine.evaluation.comparison import protocol_groups
    from gebm_kit.engine.run_directory.record import find_records

    say = ui.Ui(json=json, quiet=quiet, debug=debug)
    root = Path("runs") if directory is None else directory
    found = find_records(root) if directory is not None or root.exists() else []
    if metric is not None:
        known = {name for record in found for name in record.value_names()}
        if found and metric not in known:
            raise UsageError(f"no run under {root} was scored by {metric!r}; {nearest(metric, known)}")
    scored = [(record, record.score(metric)) for record in found]
    groups = protocol_groups(found, [None if score is None else score.name for _, score in scored])
    payload = {
        "directory": str(root),
        "runs": [
            _as_dict(record, score) | {"protocol_group": group}
            for (record, score), group in zip(scored, groups, strict=True)
        ],
    }
    say.result(payload, lambda: _show(root, scored, groups))
    for record in found:
        if record.problem:
            say.note(record.problem)


def _as_dict(record: RunRecord, score: Score | None) -> dict[str, object]:
    nothing = dict.fromkeys(("metric", "data", "base", "gebm", "ratio", "best"))
    return {
        "run": str(record.path),
        "recipe": record.recipe,
        "state": record.state,
        "step": record.step,
        "total_steps": record.total_steps,
        "seconds": record.seconds,
        "updated": datetime.datetime.fromtimestamp(record.updated, datetime.UTC).isoformat(timespec="seconds"),
        **(nothing if score is None else score.as_dict()),
        "problem": record.problem or None,
        **({} if record.classes is None else {"classes": record.classes}),
    }


def _show(root: Path, scored: list[tuple[RunRecord, Score | None]], groups: list[int | None]) -> None:
    if not scored:
        ui.text(f"there are no runs under {root}; `gebm-kit train quickstart` makes one")
        return
    rows = [_row(record, score) for record, score in scored]
    marks = _marks([None if score is None else score.name for _, score in scored], groups)
    for row, mark in zip(rows, marks, strict=True):
        row[HEADINGS.index("metric")] += mark
    # with a single evaluation, the best and the last are the same
    several = any(len(record.evaluated_rows) > 1 for record, _ in scored)
    shown = [index for index, heading in enumerate(HEADINGS) if heading != "best" or several]
    if ui.is_terminal(sys.stdout):
        shown = fitting_columns(shown, rows, shutil.get_terminal_size().columns)
    ui.table("", [HEADINGS[i] for i in shown], [[row[i] for i in shown] for row in rows])
    classes = scored[0][0].classes if len(scored) == 1 else None
    if classes is not None:
        listed = [f"{label} ({name})" if name else label for label, name in classes.items()]
        more = f" and {len(listed) - SHOWN_CLASSES:,} more" if len(listed) > SHOWN_CLASSES else ""
        ui.sentence(f"{len(listed)} classes: {', '.join(listed[:SHOWN_CLASSES])}{more}")
    if any(marks):
        ui.text(
            "values of one name are comparable where they have the same number; a ? was never evaluated after training. "
            "`gebm-kit compare` shows how protocols and data differ"
        )


def _marks(names: list[str | None], groups: list[int | None]) -> list[str]:
    """Return a mark for the name of each value: `` #1``, `` #2``, ... number the protocols that values of one name were
    computed by, `` ?`` stands for an unknown protocol, and "" means that all values of that name are comparable."""
    by_name: dict[str, set[int | None]] = {}
    for name, group in zip(names, groups, strict=True):
        if name is not None:
            by_name.setdefault(name, set()).add(group)
    return [
        "" if name is None or len(by_name[name]) == 1 else " ?" if group is None else f" #{group}"
        for name, group in zip(names, groups, strict=True)
    ]


def fitting_columns(shown: list[int], rows: list[list[str]], width: int) -> list[int]:
    """Return the columns that fit into ``width``, after dropping as many of `FIRST_TO_GO` as necessary."""
    needed = {i: 3 + max(len(HEADINGS[i]), *(len(row[i]) for row in rows)) for i in shown}  # 3: a border and two blanks
    for heading in FIRST_TO_GO:
        if 1 + sum(needed.values()) <= width:
            break
        needed.pop(HEADINGS.index(heading), None)
    return list(needed)


def _row(record: RunRecord, score: Score | None) -> list[str]:
    values = dict.fromkeys(("base", "gebm", "ratio"), "-")
    if score is not None:
        values |= {column: ui.number((score.columns[column] or {}).get("value")) for column in values}
    best = "-" if score is None or score.best is None else f"{ui.number(score.best[0])} at {score.best[1]}"
    total = "" if record.total_steps is None else f"/{record.total_steps}"
    return [
        str(record.path),
        record.recipe or "-",
        record.state,
        f"{ui.number(record.step)}{total}",
        "-" if score is None else score.name,
        values["base"],
        values["gebm"],
        values["ratio"],
        best,
        "-" if record.seconds is None else duration(record.seconds),
        f"{_age(time.time() - record.updated)} ago",
    ]


def _age(seconds: float) -> str:
    """Write an age as ``12 s``, ``5 min``, ``3 h`` or ``9 days``."""
    for limit, unit, name in ((60, 1, "s"), (3600, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{max(int(seconds // unit), 0)} {name}"
    return f"{int(seconds // 86400)} days"
