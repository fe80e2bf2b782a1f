"""Is the GEBM better than its base, and by how much: the verdict of the last evaluation, its table and its intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gebm_kit.core.plugins import installed
from gebm_kit.engine.evaluation.intervals import Estimate
from gebm_kit.engine.evaluation.score_table import AGAINST_TRAIN
from gebm_kit.engine.evaluation.verdict import EQUILIBRIUM, of_ratio
from gebm_kit.engine.reporting.charts import INKS, drawing, svg_of
from gebm_kit.engine.reporting.facts import RunFacts
from gebm_kit.engine.reporting.page import Block, Bullets, Figure, Missing, Section, Table, Text, Tone
from gebm_kit.engine.reporting.words import DASH, ends_of, interval, listed, number, plain, real

COLUMNS = {"data": "held-out data", "base": "base", "gebm": "GEBM", "ratio": "GEBM / base"}
"""Keys of an evaluation's metrics, and what heads them."""

MOST_BARS = 12
"""Most ratios in the chart; the table has all."""


def verdict_section(facts: RunFacts) -> Section:
    """Return the verdict by metric, with the table behind it."""
    lead = (
        "Draws of the base and of the GEBM are scored against the same held-out data. The ratio is paired over independent "
        "sets of draws; where its 95 % interval includes 1, the two are no different."
    )
    metrics = facts.evaluation.get("metrics") or {}
    names = list(dict.fromkeys(name for column in COLUMNS for name in metrics.get(column) or {}))
    if not names:
        return Section("verdict", "Is the GEBM better than its base?", "", [not_evaluated(facts)])
    blocks: list[Block] = [Bullets(sentences(facts))] if sentences(facts) else []
    if note := _stale(facts):
        blocks.insert(0, note)
    rows = [[plain(name), *(_cell(metrics, name, column) for column in COLUMNS)] for name in names]
    below = f"95 % intervals in brackets. {_meanings(names, facts)}"
    blocks.append(Table("Scores of held-out data, base and GEBM", ["metric", *COLUMNS.values()], rows, below))
    if (figure := _ratios(names, metrics, facts)) is not None:
        blocks.append(figure)
    return Section("verdict", "Is the GEBM better than its base?", lead, blocks)


def not_evaluated(facts: RunFacts) -> Missing:
    """Say why there are no scores."""
    why = {
        "running": "The run is still training, so it has not been evaluated.",
        "interrupted": "Training was interrupted before its end, so the run has not been evaluated.",
        "killed": "Training ended without notice, so the run has not been evaluated.",
        "failed": "The run failed before it was evaluated.",
        "trained": "The model is trained, and its evaluation has not ended.",
    }.get(facts.record.state, "This run has no evaluation that can be read.")
    if facts.own_objects:
        return Missing(
            f"{why} It was trained on objects of Python: open it with gk.load_run(path, base=..., energy=...) there."
        )
    if facts.record.state in ("running", "interrupted", "killed", "failed"):
        return Missing(why, resume_command(facts))
    return Missing(why, facts.command("eval"))


def resume_command(facts: RunFacts) -> str:
    """Return the command that resumes training."""
    import shlex

    return shlex.join(["gebm-kit", "train", str(facts.path / "resolved.yaml"), "--out", str(facts.path), "--resume"])


def sentences(facts: RunFacts) -> list[Text]:
    """Return one sentence for each metric, with its tone."""
    return [Text(plain(text, 1000), _tone(text), _mark(text)) for text in _verdicts(facts).values()]


def _verdicts(facts: RunFacts) -> dict[str, str]:
    """Return the sentences of the evaluation by metric; of older ones, made from the ratio's interval."""
    evaluation = facts.evaluation
    verdict = {name: text for name, text in (evaluation.get("verdict") or {}).items() if name != EQUILIBRIUM}
    for name, cell in ((evaluation.get("metrics") or {}).get("ratio") or {}).items():
        lower = facts.record.protocol(name).get("lower_is_better")
        if name in verdict or name.endswith(f".{AGAINST_TRAIN}") or not isinstance(lower, bool):
            continue
        if isinstance(cell.get("value"), int | float):
            estimate = Estimate(cell["value"], cell.get("low"), cell.get("high"), cell.get("n") or 1)
            verdict[name] = of_ratio(name, estimate, lower)
    return verdict


def answer(facts: RunFacts) -> Text:
    """Answer in one sentence whether the GEBM is better, over all metrics."""
    found = _verdicts(facts)
    if not found:
        missing = not_evaluated(facts)
        how = f" To find out: {missing.command}" if missing.command else ""
        return Text(f"{missing.text}{how}", "unsure", "Not known")
    by: dict[str, list[str]] = {"Better": [], "Worse": [], "No different": [], "Not known": []}
    for name, text in found.items():
        by[_mark(text)].append(plain(name, 60))
    said = "; ".join(f"{mark.lower()} by {listed(names)}" for mark, names in by.items() if names)
    tone: Tone = "good" if not by["Worse"] else "unsure"
    mark = "Yes" if not by["Worse"] else "In part"
    if not by["Better"]:
        tone, mark = ("bad", "No") if by["Worse"] else ("unsure", "No different" if by["No different"] else "Not known")
    return Text(f"The GEBM against its base: {said}.", tone, mark)


def by_how_much(facts: RunFacts) -> Text:
    """Say by how much the first metrics differ."""
    metrics = facts.evaluation.get("metrics") or {}
    texts: list[str] = []
    for name, cell in list((metrics.get("ratio") or {}).items()):
        if name.endswith(f".{AGAINST_TRAIN}") or not isinstance(cell.get("value"), int | float) or len(texts) == 3:
            continue
        values = [interval((metrics.get(column) or {}).get(name)) for column in ("base", "gebm")]
        change = f"{abs(1 - cell['value']):.0%} {'lower' if cell['value'] < 1 else 'higher'}; ratio {interval(cell)}"
        if not _comparable(metrics, name):  # unbiased estimates of small distances lie around 0
            change = "about as far apart as data from data, which is 0; a ratio says little there"
        texts.append(f"{plain(name, 60)} ({better_side(facts, name)}): base {values[0]}, GEBM {values[1]}: {change}.")
    return Text("\n".join(texts) if texts else "There is no ratio of GEBM over base in this run.")


def _cell(metrics: Mapping[str, Any], name: str, column: str) -> str:
    """Return a value with its interval; a dash for a ratio that means nothing."""
    shown = column != "ratio" or _comparable(metrics, name)
    return interval((metrics.get(column) or {}).get(name)) if shown else DASH


def _comparable(metrics: Mapping[str, Any], name: str) -> bool:
    """Return whether base and GEBM have values above 0, so that their ratio means something."""
    values = [real(((metrics.get(column) or {}).get(name) or {}).get("value")) for column in ("base", "gebm")]
    return all(value is None or value > 0 for value in values)


def better_side(facts: RunFacts, name: str) -> str:
    """Say which values of a metric are good."""
    lower = facts.record.protocol(name).get("lower_is_better")
    return "direction not stated" if not isinstance(lower, bool) else "lower is better" if lower else "higher is better"


def _tone(text: str) -> Tone:
    better, worse = (text.startswith(f"The GEBM is {word} than its base") for word in ("better", "worse"))
    return "good" if better else "bad" if worse else "unsure"


def _mark(text: str) -> str:
    alike = text.startswith("The GEBM is no different")
    return {"good": "Better", "bad": "Worse"}.get(_tone(text), "No different" if alike else "Not known")


def _stale(facts: RunFacts) -> Missing | None:
    """Say that the evaluation is of an older checkpoint, if it is."""
    if facts.evaluated and facts.checkpoint and facts.evaluated != facts.checkpoint:
        text = f"The evaluation is of checkpoint {facts.evaluated}; the newest one is {facts.checkpoint}."
        return Missing(text, facts.command("eval"))
    return None


def _meanings(names: list[str], facts: RunFacts) -> str:
    """Say what each metric measures, and which values are good."""
    known = {record.component.name: record.component.summary for record in installed().registry.of_kind("metric")}
    texts: dict[str, str] = {}
    for name in names:
        metric = name.split(".")[0]
        what = known.get(metric.rpartition(":")[2], "")
        texts.setdefault(
            plain(metric, 60), f"{what.rstrip('.')}; {better_side(facts, name)}" if what else better_side(facts, name)
        )
    return " ".join(f"{name}: {text}." for name, text in texts.items())


def _ratios(names: list[str], metrics: Mapping[str, Any], facts: RunFacts) -> Figure | None:
    """Draw the ratios with their intervals beside the line at 1."""
    cells = {name: (metrics.get("ratio") or {}).get(name) or {} for name in names}
    cells = {n: c for n, c in cells.items() if (real(c.get("value")) or 0) > 0 and _comparable(metrics, n)}
    shown = list(cells.items())[:MOST_BARS]
    if not shown:
        return None
    from matplotlib.figure import Figure as Drawing

    with drawing():
        drawing_ = Drawing(figsize=(4.6, 1.0 + 0.42 * len(shown)), layout="constrained")
        axes = drawing_.subplots()
        axes.axvline(1.0, color=INKS["base"], linewidth=1.5, linestyle="--")
        for place, (_, cell) in enumerate(shown):
            axes.plot(ends_of(cell), [place, place], color=INKS["gebm"], linewidth=2, solid_capstyle="butt")
            axes.plot([cell["value"]], [place], "o", color=INKS["gebm"], markersize=6)
        axes.set_yticks(range(len(shown)), [plain(name, 30) for name, _ in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.grid(True, axis="x")
        axes.set_xlabel("GEBM / base, with 95 % interval\n(dashed: equal)")
        words = [f"{plain(name, 60)} {interval(cell)}" for name, cell in shown]
        alternative = f"Ratios of GEBM over base with 95 % intervals: {'; '.join(words)}. At 1 the two are equal."
        picture = svg_of(drawing_, alternative, "ratios")
    rows = [
        [plain(n), number(c["value"]), number(c.get("low")), number(c.get("high")), better_side(facts, n)]
        for n, c in shown
    ]
    table = Table("GEBM over base", ["metric", "ratio", "low", "high", "good values"], rows)
    return Figure(picture, "Left of the dashed line the GEBM's value is lower than its base's.", table)
