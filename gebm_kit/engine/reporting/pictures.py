"""What the draws look like: grids, the same codes before and after, draws by energy, nearest neighbours, classes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from markupsafe import Markup
from torch import Tensor

from gebm_kit.core.class_names import titled
from gebm_kit.engine.reporting.codes import Moved
from gebm_kit.engine.reporting.facts import RunFacts
from gebm_kit.engine.reporting.images import COLUMNS, grid, span_of
from gebm_kit.engine.reporting.material import Material
from gebm_kit.engine.reporting.moves import arrows
from gebm_kit.engine.reporting.page import Block, Figure, Gallery, Missing, Section, Table, Text
from gebm_kit.engine.reporting.words import interval, number, plain

LABELS = {"data": "Held-out data", "base": "Draws of the base", "GEBM": "Draws of the GEBM"}
"""The sets of draws, and what they are called."""

MOST_CLASSES = 20
"""Most classes with a row of draws, and with a row in the table by class."""

SHOWN_CODES = 32
"""Codes that are shown before and after."""


def images_section(facts: RunFacts, material: Material) -> Section | None:
    """Return grids of data, base and GEBM; None where the data are no images."""
    if len(material.data_shape) != 3 and material.data_shape:
        return None
    title = "What the draws look like"
    if material.sets is None:
        return Section("draws", title, "", [why_missing(facts, material, "sets")])
    x = material.sets.x
    span = span_of(list(x.values()), material.value_range)
    figures = []
    for name, label in LABELS.items():
        if name in x:
            rows = _by_class(x[name], material.sets.labels.get(name))
            about = f"{label}: a grid of {len(rows)} images of {' x '.join(map(str, material.data_shape))} values"
            figures.append(Figure(grid(rows, span, f"{about}, in rows of {COLUMNS}."), f"{label}, {len(rows)} images."))
    blocks: list[Block] = [Gallery(figures), Text(material.sets_from)]
    if "data" not in x:
        blocks.append(Missing(f"Held-out data are not shown: {material.missing.get('data') or 'they were not read'}."))
    return Section(
        "draws", title, "Compare the third grid with the first: the energy should keep what looks like data.", blocks
    )


def moved_section(facts: RunFacts, material: Material) -> Section | None:
    """Return the same latent codes before and after refinement."""
    title = "The same latent codes before and after"
    if material.moved is None:
        reason = material.missing.get("moved") or material.missing.get("model") or ""
        return Section("before-and-after", title, "", [_missing_model(facts, reason)])
    moved = material.moved
    down = (moved.energy_after < moved.energy_before).float().mean().item()
    means = [number(_mean(energy)) for energy in (moved.energy_before, moved.energy_after)]
    words = f"{moved.how} The mean energy went from {means[0]} to {means[1]}; it fell for {down:.0%} of the codes."
    lead = (
        "Each code is decoded where the prior put it, and again where its chain took it. A low energy means closer to the "
        "data. Chains follow a law, so some energies rise."
    )
    count = min(SHOWN_CODES, len(moved.before))
    table = _energies_of_codes(moved, count)
    if len(material.data_shape) == 3:
        picture, caption = (
            _pairs_of_rows(material, moved, count, words),
            (
                "In each pair of rows, the upper row is before and the lower row is after; the same code stands in the same "
                "column."
            ),
        )
    else:
        picture, caption = arrows(moved, material.data_shape == (2,), words)
    return Section("before-and-after", title, lead, [Figure(picture, caption, table), Text(words)])


def _pairs_of_rows(material: Material, moved: Moved, count: int, words: str) -> Markup:
    """Return a grid in which each row of codes before stands above the same codes after."""
    lines = [part[k : k + COLUMNS] for k in range(0, count, COLUMNS) for part in (moved.before, moved.after)]
    rows = torch.cat(lines)
    alternative = (
        f"{count} codes, each decoded twice: in each pair of rows the upper is before and the lower is after refinement. "
        f"{words}"
    )
    return grid(rows, span_of([rows], material.value_range), alternative, min(COLUMNS, count), pairs=2)


def _mean(energies: Tensor) -> float:
    finite = energies[torch.isfinite(energies)]
    return float(finite.mean()) if len(finite) else float("nan")


def by_energy_section(facts: RunFacts, material: Material) -> Section | None:
    """Return the GEBM's draws from the lowest energy to the highest."""
    if len(material.data_shape) != 3 or material.sets is None or "GEBM" not in material.sets.energies:
        return None
    x = material.sets.x["GEBM"]
    energies = material.sets.energies["GEBM"][: len(x)]
    order = torch.argsort(torch.nan_to_num(energies, nan=torch.inf), stable=True)
    span = span_of(list(material.sets.x.values()), material.value_range)
    low, high = float(energies[order[0]]), float(energies[order[-1]])
    ends = f"from {number(low)} at the top left to {number(high)} at the bottom right"
    words = f"{len(x)} draws of the GEBM sorted by energy, {ends}"
    places = torch.linspace(0, len(x) - 1, min(9, len(x))).round().long()
    rows = [[f"draw {int(place) + 1} of {len(x)}", number(float(energies[order[place]]))] for place in places]
    table = Table("Energies along the sorted draws", ["place", "energy"], rows)
    figure = Figure(grid(x[order], span, f"{words}."), f"{words}.", table)
    lead = (
        "The model finds low energies likely. If draws at the bottom look better than those at the top, the energy has not "
        "learned what you see."
    )
    return Section("by-energy", "Draws by their energy", lead, [figure])


def neighbours_section(facts: RunFacts, material: Material) -> Section | None:
    """Return draws beside the nearest training rows."""
    title = "Are training data copied?"
    if material.neighbours is None:
        reason = (
            material.missing.get("neighbours") or material.missing.get("data") or material.missing.get("sets") or ""
        )
        text = f"Nearest training rows are not shown: {reason or 'there are no draws to compare'}."
        return Section("neighbours", title, "", [Missing(text)])
    found = material.neighbours
    of = (
        f"{found.searched:,} of {found.total:,} training rows"
        if found.searched < found.total
        else f"all {found.total:,} training rows"
    )
    median = [float(d.median()) for d in (found.nearest, found.held_out) if len(d)]
    words = f"Median distance to the nearest training row: {number(median[0])} for draws"
    tone = Text("")
    if len(median) > 1:
        words += f", {number(median[1])} for held-out data"
        close = median[0] < 0.5 * median[1]
        said = (
            "Draws are much closer to training rows than held-out data are, which is what copying looks like."
            if close
            else ("Draws are not much closer to training rows than held-out data are, so nothing points to copying.")
        )
        tone = Text(said, "bad" if close else "good")
    rows = [[f"draw {k + 1}", number(float(found.nearest[k]))] for k in range(len(found.draws))]
    table = Table("Distance of each draw to its nearest training row", ["draw", "distance"], rows)
    blocks: list[Block] = []
    if len(material.data_shape) == 3:
        columns = len(found.draws)
        sheet = torch.cat([found.draws, *(found.rows[:, k] for k in range(found.rows.shape[1]))])
        span = span_of([sheet], material.value_range)
        alternative = (
            f"Top row: {columns} draws of the GEBM. Below each, the {found.rows.shape[1]} nearest of {of}. {words}."
        )
        caption = f"Top row: draws. Below each draw, its nearest among {of}, by Euclidean distance between pixels."
        blocks.append(Figure(grid(sheet, span, alternative, columns), caption, table))
    blocks += [Text(f"{words} ({of} searched)."), *([tone] if tone.text else [])]
    if len(material.data_shape) != 3:
        blocks.append(replace(table, folded=True))
    lead = (
        "Draws that equal a training row were memorised. Their distance is judged by that of held-out data, which copy "
        "nothing."
    )
    return Section("neighbours", title, lead, blocks)


def classes_section(facts: RunFacts, material: Material) -> Section | None:
    """Return draws and scores by class, of a model with classes."""
    classes = facts.evaluation.get("classes")
    labels = None if material.sets is None else material.sets.labels.get("GEBM")
    if labels is None and not isinstance(classes, dict):
        return None
    blocks: list[Block] = []
    if labels is not None and material.sets is not None and len(material.data_shape) == 3:
        blocks.append(Gallery(_class_rows(material, labels)))
    if isinstance(classes, dict):
        rows = []
        for label, found in list(classes.items())[:MOST_CLASSES]:
            metrics = found.get("metrics") or {}
            names = list(metrics.get("gebm") or {})[:2]
            cells = [
                interval((metrics.get(column) or {}).get(name))
                for name in names
                for column in ("base", "gebm", "ratio")
            ]
            rows.append(
                [_title(label, found, material), number(found.get("rows")), *cells, number(found.get("accuracy"))]
            )
        first: dict[str, Any] = next(iter(classes.values()), {})
        names = list((first.get("metrics") or {}).get("gebm") or {})[:2]
        headers = [f"{plain(name, 40)}, {column}" for name in names for column in ("base", "GEBM", "GEBM / base")]
        width = max((len(row) for row in rows), default=0)
        rows = [row + [""] * (width - len(row)) for row in rows]
        blocks.append(Table("Scores by class", ["class", "held-out rows", *headers, "accuracy"], rows))
        if len(classes) > MOST_CLASSES:
            blocks.append(Text(f"{len(classes) - MOST_CLASSES} more classes are in evaluation.json."))
    if law := (facts.evaluation.get("classifier") or {}).get("reason"):
        blocks.append(Text(plain(law, 1000)))
    return Section(
        "classes",
        "Class by class",
        "Each class is a model of its own; a ratio whose interval includes 1 is no difference.",
        blocks,
    )


def why_missing(facts: RunFacts, material: Material, what: str) -> Missing:
    """Say why there are no draws to show."""
    if facts.record.state in ("running", "interrupted", "killed", "failed") and not facts.checkpoint:
        return Missing("There is no checkpoint yet to draw from.")
    reasons = [material.missing[name] for name in (what, "model", "moved") if material.missing.get(name)]
    return _missing_model(facts, reasons[0] if reasons else "")


def _missing_model(facts: RunFacts, reason: str) -> Missing:
    said = reason or "the model could not be read"
    text = f"Not shown: {said}{'' if said.endswith(('.', '!', '?')) else '.'}"
    if facts.own_objects:
        return Missing(f"{text} In Python, gk.report(gk.load_run(path, base=..., energy=..., data=...)) fills this in.")
    return Missing(text, facts.command("report"))


def _energies_of_codes(moved: Moved, count: int) -> Table:
    pairs = list(zip(moved.energy_before.tolist(), moved.energy_after.tolist(), strict=True))[:count]
    rows = [[f"code {k + 1}", number(one), number(other), number(other - one)] for k, (one, other) in enumerate(pairs)]
    return Table("Energy of each code", ["code", "before", "after", "change"], rows)


def _by_class(x: Tensor, labels: Tensor | None) -> Tensor:
    return x if labels is None else x[torch.argsort(labels[: len(x)], stable=True)]


def _class_rows(material: Material, labels: Tensor) -> list[Figure]:
    """Return up to eight draws of each class that the kept draws hold."""
    assert material.sets is not None
    x, figures = material.sets.x["GEBM"], []
    span = span_of(list(material.sets.x.values()), material.value_range)
    for label in labels.unique().tolist()[:MOST_CLASSES]:
        rows = x[labels[: len(x)] == label][:COLUMNS]
        title = plain(titled(int(label), material.class_names), 80)
        words = f"Draws of class {title}, {len(rows)} of them."
        figures.append(Figure(grid(rows, span, words), words))
    return figures


def _title(label: str, found: dict[str, object], material: Material) -> str:
    name = found.get("name")
    return plain(f"{label} ({name})" if name else label, 80)
