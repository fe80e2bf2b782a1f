"""Energies of data, base and GEBM side by side, and what happens to the metrics as chains run on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from gebm_kit.core.errors import DataError, GebmKitError
from gebm_kit.core.reading import read_json_file
from gebm_kit.engine.figures.plotting import finite_values, robust_limits
from gebm_kit.engine.reporting.charts import INKS, chart, svg_of
from gebm_kit.engine.reporting.facts import RunFacts
from gebm_kit.engine.reporting.material import Material
from gebm_kit.engine.reporting.page import Block, Figure, Gallery, Missing, Section, Table, Text
from gebm_kit.engine.reporting.pictures import why_missing
from gebm_kit.engine.reporting.training_curves import looks_section_blocks
from gebm_kit.engine.reporting.trusted import equilibrium_sentence
from gebm_kit.engine.reporting.words import interval, number, plain, real
from gebm_kit.engine.run_directory.values import is_number

QUANTILES = ("q05", "q25", "q50", "q75", "q95")
SETS = {"energy_data": ("data", "held-out data"), "energy_base": ("base", "base"), "energy_model": ("gebm", "GEBM")}
"""Keys of an equilibrium's energies, their colours and their names."""

LENGTHS = {"metric_at_1x": 1, "metric_at_2x": 2, "metric_at_4x": 4}

BINS = 60

MOST_TRACES, LARGEST_TRACE, MOST_POINTS = 3, 2**22, 200
"""Most traces that are drawn, the largest file of one that is read, in bytes, and most of its points."""


def energies_section(facts: RunFacts, material: Material) -> Section:
    """Return the histogram of energies, and their quantiles in the last evaluation."""
    title = "Energies"
    blocks: list[Block] = []
    known = {} if material.sets is None else material.sets.energies
    if (figure := _histogram({name: energies.double().numpy() for name, energies in known.items()})) is not None:
        blocks.append(figure)
    equilibrium = facts.evaluation.get("equilibrium") or {}
    rows = []
    for key, (_, label) in SETS.items():
        cell = equilibrium.get(key)
        if isinstance(cell, Mapping):
            found = [number((cell.get(q) or {}).get("value"), 3) for q in QUANTILES]
            rows.append([label, number(cell.get("value")), *found, number(cell.get("rows"))])
    if rows:
        headers = ["set", "mean", "5 %", "25 %", "median", "75 %", "95 %", "rows"]
        blocks.append(Table("Energies in the last evaluation", headers, rows))
    if said := equilibrium_sentence(facts):
        blocks.append(Text(said))
    if not blocks:
        blocks = [why_missing(facts, material, "sets")]
    lead = (
        "The energy is low on what looks like data. Draws of a good model have the energies of held-out data, not those of "
        "the base."
    )
    return Section("energies", title, lead, blocks)


def quality_section(facts: RunFacts) -> Section:
    """Return metrics against the effort: along the chains, and over the evaluations during training."""
    equilibrium = facts.evaluation.get("equilibrium") or {}
    figures = [figure for figure in (_lengths(facts, equilibrium), *_traces(facts)) if figure is not None]
    blocks: list[Block] = [Gallery(figures)] if figures else []
    if not any(isinstance(equilibrium.get(key), Mapping) for key in LENGTHS):
        blocks.append(
            Missing("Chains were not run on beyond their length in an evaluation of this run.", facts.command("eval"))
        )
    blocks += looks_section_blocks(facts)
    traced = facts.command("sample", "--trace", "METRIC")
    if not any(figure for figure in figures[1:]):
        blocks.append(Missing("A trace along the chains, evaluation by evaluation, was not recorded.", traced))
    lead = (
        "Quality against the effort: a sound model stays as good, or gets better, as chains run longer. Lower is better, "
        "unless the verdict says otherwise."
    )
    return Section("quality", "Quality against evaluations", lead, blocks)


def _histogram(energies: dict[str, Any]) -> Figure | None:
    """Draw the densities of the energies, with lines at the means."""
    found = {name: finite_values(energies[name]) for name in ("data", "base", "GEBM") if name in energies}
    found = {name: values for name, values in found.items() if len(values)}
    if not found:
        return None
    low, high = robust_limits(np.concatenate(list(found.values())), 0.002)
    least = min(len(values) for values in found.values())
    edges = np.linspace(low, high, min(BINS, max(8, int(2 * least ** (1 / 2)))) + 1)
    rows, words = [], []
    with chart(5.6, 3.1) as (figure, axes):
        for name, values in found.items():
            ink, label = INKS[name.lower()], "held-out data" if name == "data" else name
            density = np.histogram(values, edges)[0] / (len(values) * (edges[1] - edges[0]))
            axes.stairs(
                density, edges, fill=name == "data", color=ink, alpha=0.3 if name == "data" else 1.0, linewidth=1.8
            )
            axes.axvline(float(values.mean()), color=ink, linestyle="--", linewidth=1.2)
            words.append(f"{label} {number(float(values.mean()), 3)}")
            cells = [number(float(q), 3) for q in np.quantile(values, [0.05, 0.5, 0.95])]
            rows.append([label, number(float(values.mean())), *cells, f"{len(values):,}"])
        axes.set(xlabel="energy E(x)", ylabel="density", xlim=(low, high))
        axes.set_ylim(bottom=0)
        text = f"Densities of the energies. Means: {', '.join(words)}."
        picture = svg_of(figure, text, "energies")
    table = Table("Energies of the points in the chart", ["set", "mean", "5 %", "median", "95 %", "points"], rows)
    return Figure(picture, f"{text} Dashed lines are the means.", table)


def _lengths(facts: RunFacts, equilibrium: Mapping[str, Any]) -> Figure | None:
    """Draw the first metric after 1, 2 and 4 times the length of the chains."""
    cells = {LENGTHS[key]: equilibrium[key] for key in LENGTHS if isinstance(equilibrium.get(key), Mapping)}
    cells = {times: cell for times, cell in cells.items() if is_number(cell.get("value"))}
    if len(cells) < 2:
        return None
    metric, unit = (
        plain(equilibrium.get("metric") or "metric", 40),
        plain(equilibrium.get("unit") or "the chain length", 60),
    )
    metrics = facts.evaluation.get("metrics") or {}
    lines = {key: (metrics.get(key) or {}).get(equilibrium.get("metric")) for key in ("data", "base")}
    with chart() as (figure, axes):
        for key, cell in lines.items():
            if isinstance(cell, Mapping) and is_number(cell.get("value")):
                axes.axhline(cell["value"], color=INKS[key], linestyle="--", linewidth=1.4)
        places = list(cells)
        values = [cell["value"] for cell in cells.values()]
        ends = [
            [
                abs((cell.get(end) if is_number(cell.get(end)) else cell["value"]) - cell["value"])
                for cell in cells.values()
            ]
            for end in ("low", "high")
        ]
        axes.errorbar(places, values, yerr=ends, fmt="o-", color=INKS["gebm"], capsize=3, linewidth=1.6, markersize=5)
        axes.set_xticks(places, [f"{place}x" for place in places])
        axes.set(title=f"{metric} as chains run on", xlabel=f"times {unit}")
        words = "; ".join(f"{interval(cell)} at {times}x" for times, cell in cells.items())
        picture = svg_of(figure, f"{metric} of the GEBM: {words} {unit}.", "lengths")
    rows = [[f"{times}x {unit}", interval(cell)] for times, cell in cells.items()]
    rows += [
        [f"{'held-out data' if key == 'data' else 'base'} (dashed)", interval(cell)]
        for key, cell in lines.items()
        if cell
    ]
    length = equilibrium.get("length")
    effort = (
        f" Once the chain length is {number(length)} steps, warm-up included."
        if isinstance(length, int) and unit == "the chain length"
        else ""
    )
    return Figure(
        picture,
        f"{metric} of the GEBM: {words} {unit}.{effort}",
        Table(f"{metric} as chains run on", ["effort", metric], rows),
    )


def _traces(facts: RunFacts) -> list[Figure]:
    """Draw the newest traces of `gebm-kit sample --trace` in the run."""
    try:
        files = sorted(
            (facts.path / "samples").glob("along-*.json"), key=lambda file: file.stat().st_mtime, reverse=True
        )
    except OSError:
        return []
    figures = []
    for place, file in enumerate(files[:MOST_TRACES]):
        try:
            found = read_json_file(file, limit=LARGEST_TRACE, error=DataError)
            figures.append(_trace(found, place))
        except (GebmKitError, KeyError, TypeError, ValueError, AttributeError, IndexError, json.JSONDecodeError):
            continue  # a file that somebody else wrote there
    return [figure for figure in figures if figure is not None]


def _trace(found: Mapping[str, Any], place: int) -> Figure | None:
    """Draw the first value of a trace against evaluations per chain."""
    axis, name = str(found["axis"]), next(iter(found["base"]))
    lines: dict[float, list[tuple[float, float]]] = {}
    for row in found["points"]:
        if row.get("name", row.get("metric", name)) == name and is_number(row["value"]) and is_number(row[axis]):
            lines.setdefault(float(row["inverse_temperature"]), []).append((float(row[axis]), float(row["value"])))
    if not lines:
        return None
    label, cost = plain(name, 40), "gradients" if axis == "grad_evals" else "evaluations"
    with chart() as (figure, axes):
        for key in ("data", "base"):
            value = (found[key].get(name) or {}).get("value")
            if (level := real(value)) is not None:
                axes.axhline(level, color=INKS[key], linestyle="--", linewidth=1.4)
        for k, (beta, points) in enumerate(list(lines.items())[:4]):
            axes.plot(
                *np.array(points).T,
                marker="o",
                linestyle=("-", "--", ":", "-.")[k],
                color=INKS["gebm"],
                markersize=4,
                label=f"beta {beta:g}",
            )
        if len(lines) > 1:
            axes.legend()
        axes.set(title=f"{label} along the chains", xlabel=f"{cost} per chain")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        ends = "; ".join(
            f"at beta {beta:g} from {number(points[0][1])} to {number(points[-1][1])} after {number(points[-1][0])}"
            for beta, points in lines.items()
        )
        text = f"{label} along the chains of {plain(found.get('sampler', 'a sampler'), 40)}: {ends} {cost} per chain."
        picture = svg_of(figure, text, f"trace-{place}")
    rows = [
        [f"{number(cost_)} {cost}", f"{beta:g}", number(value)]
        for beta, points in lines.items()
        for cost_, value in points[:MOST_POINTS]
    ]
    return Figure(picture, text, Table(f"{label} along the chains", ["effort per chain", "beta", label], rows))
