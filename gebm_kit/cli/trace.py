"""``gebm-kit sample --trace METRIC``: quality along the chain, for one temperature or a sweep over several."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gebm_kit.cli import ui
from gebm_kit.cli.options import BETA, Words, only_sections
from gebm_kit.cli.results import interval, show_protocols
from gebm_kit.cli.rows import class_of_words
from gebm_kit.cli.run_options import (
    changed_settings,
    find_run,
    overrides_with_sampler,
    sampling_recipe,
    set_up_cpu,
)
from gebm_kit.core.errors import UsageError

if TYPE_CHECKING:
    from gebm_kit.config.schema import Recipe
    from gebm_kit.engine.evaluation.trace_result import Trace
    from gebm_kit.engine.run_directory.run import Run
    from gebm_kit.engine.sampling.settings import SampleSettings

OVERRIDABLE = ("sampler", "sample", "eval")
"""Sections of the recipe that ``gebm-kit sample --trace`` can override."""

EVAL_KEYS = ("eval.metrics", "eval.num_sets", "eval.num_reference", "eval.features")
"""Keys of ``eval`` that a trace reads; the section ``sample`` says how it draws."""

COST = {"grad_evals": "gradients", "forward_evals": "evaluations"}
"""Axes of a trace, and the unit of cost that each counts."""


def check_one_beta(overrides: Sequence[str]) -> None:
    """Raise UsageError if an override lists several inverse temperatures, which only a trace takes."""
    lists = [word for word in overrides if _is_beta(word) and _listed(word) is not None]
    if lists:
        raise UsageError(
            f"{lists[0]!r} lists several temperatures, but draws have one; a sweep over several goes with --trace METRIC",
            hint="For example: --trace frechet inverse_temperature=[1,10,100]",
        )


def run_trace(
    metric: str,
    given: Words,
    say: ui.Ui,
    sampler: str | None,
    changes: Mapping[str, Any],
    of_draws: Mapping[str, Any],
    *,
    checkpoint: str,
    out: Path | None,
    device: str | None,
    threads: int | None,
    class_words: Sequence[str] = (),
) -> None:
    """Record ``metric`` along the chains of a run, draw the curves, and print the result.

    Args:
        given: RUN and overrides.
        sampler, checkpoint, out, device, threads: the options of ``gebm-kit sample``.
        changes: settings from options; None keeps the recipe's.
        of_draws: values of the options about draws; if any was given, UsageError is raised.
        class_words: the words of --class: at most one, the class whose chains are followed.
    """
    _check_words(given.overrides)
    for option, value in of_draws.items():
        if value:
            raise UsageError(
                f"--trace keeps no draws, so there is nothing for {option}", hint="Leave out one of the two."
            )
    set_up_cpu(threads)
    from gebm_kit.engine.evaluation.trace_result import check_trace_output
    from gebm_kit.engine.process.torchrun import under_torchrun

    if under_torchrun():
        raise UsageError("--trace runs in one process", hint="Start it without torchrun.")
    if out is not None:
        check_trace_output(out)
    run = find_run(given.target, say, checkpoint)
    label = class_of_words(class_words, run.model, "A trace follows the chains of one class.")
    recipe, betas = _sweep(run, overrides_with_sampler(run, sampler, given.overrides))
    trace = _recorded(metric, run, recipe, changed_settings(recipe, changes), betas, device, say, label)
    name = _plain_name(trace.metric) + ("" if label is None else f"-class{label}")
    target = trace.save(out or _new_file(run, trace, name))
    picture = trace.draw(run.figures / f"along-{name}.png")
    found = trace.as_dict()

    def show() -> None:
        show_trace(found)
        ui.text(f"figure: {picture}")
        ui.text(f"trace: {target}")

    say.result({"trace": found, "out": str(target), "run": str(run.path), "figures": [str(picture)]}, show)


def _recorded(
    metric: str,
    run: Run,
    recipe: Recipe,
    settings: SampleSettings,
    betas: Sequence[float],
    device: str | None,
    say: ui.Ui,
    label: int | None,
) -> Trace:
    """Run chains at each of the ``betas`` and score them along the way."""
    from gebm_kit.engine.evaluation.feature_maps import FeatureSettings
    from gebm_kit.engine.sampling.settings import resolve_sampler
    from gebm_kit.engine.trace import chosen_metric, record

    chosen = chosen_metric(metric, recipe)
    kernel = resolve_sampler(None, recipe.sampler, run.model)
    with say.progress() as on_progress:
        return record(
            run.model,
            run.dataset,
            chosen,
            kernel,
            settings,
            betas,
            recipe.eval.num_sets,
            num_reference=recipe.eval.num_reference,
            features=FeatureSettings.of(recipe),
            label=label,
            device=device or run.recipe.device,
            on_progress=on_progress,
        )


def _check_words(overrides: Sequence[str]) -> None:
    """Refuse overrides that belong to training, and those that would have no effect."""
    only_sections(overrides, OVERRIDABLE, "gebm-kit sample --trace")
    for word in overrides:
        key = _key(word)
        if key.split(".")[0] == "eval" and not key.startswith(EVAL_KEYS):
            raise UsageError(
                f"{word!r} changes nothing here: of eval, `gebm-kit sample --trace` reads "
                f"{', '.join(EVAL_KEYS[:-1])} and {EVAL_KEYS[-1]}",
                hint="The section sample says how to draw: sample.num_samples, sample.seed.",
            )
        if key == "sample.thin":
            raise UsageError(f"{word!r} changes nothing here: `gebm-kit sample --trace` takes one draw of each chain")


def _sweep(run: Run, overrides: Sequence[str]) -> tuple[Recipe, list[float]]:
    """Return the recipe with the overrides applied, and the betas: one, or the items of a list, each checked."""
    from gebm_kit.engine.sampling.settings import settings_of

    given = [word for word in overrides if _is_beta(word)]
    others = [word for word in overrides if not _is_beta(word)]
    values = _listed(given[-1]) if given else None
    if values is None:
        recipe = sampling_recipe(run, overrides)
        return recipe, [settings_of(recipe.sample).inverse_temperature]
    if not values:
        raise UsageError(f"{given[-1]!r} lists no temperature", hint=f"For example: {BETA}=[1,10,100]")
    recipes = [sampling_recipe(run, [*others, f"{BETA}={value}"]) for value in values]
    return recipes[0], [settings_of(recipe.sample).inverse_temperature for recipe in recipes]


def _key(word: str) -> str:
    return word.partition("=")[0].strip()


def _is_beta(word: str) -> bool:
    return _key(word) == BETA


def _listed(word: str) -> list[str] | None:
    """Return the items of ``KEY=[a, b]``, or None if the value is not a list."""
    text = word.partition("=")[2].strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    inner = text[1:-1].strip()
    return [item.strip() for item in inner.split(",")] if inner else []


def show_trace(trace: Mapping[str, Any]) -> None:
    """Print the JSON of a trace as a table: costs and values with 95 % intervals, then a summary of each curve."""
    cost = COST[trace["axis"]]
    names = list(trace["base"])
    besides = trace["axis"] == "grad_evals" and any(row["forward_evals"] for row in trace["points"])
    costs = [trace["axis"], "forward_evals"] if besides else [trace["axis"]]
    cells: dict[tuple[float, int], list[str]] = {}
    for row in trace["points"]:
        line = cells.setdefault((row["inverse_temperature"], row["step"]), [ui.number(row[key]) for key in costs])
        line.append(interval(row))
    rows = [[f"{beta:g}", str(step), *line] for (beta, step), line in cells.items()]
    headings = [f"{cost} per chain", "other evaluations"][: len(costs)]
    ui.table("", ["inverse temperature", "step", *headings, *names], rows)
    sets = trace["protocol"]["sets"]
    ui.text(f"[95 % intervals over {sets} groups of {trace['protocol']['samples']} chains; step 0 is the base]")
    ui.text("held-out data: " + ", ".join(f"{name} {interval(trace['data'][name])}" for name in names))
    show_protocols({trace["metric"]: trace["protocol"]})
    for curve in trace["curves"]:
        for name in names:
            _show_curve(trace, curve, name, cost)


def _show_curve(trace: Mapping[str, Any], curve: Mapping[str, Any], name: str, cost: str) -> None:
    """Print in one sentence the gain, the cost of 95 % of it, and the cost of the warm-up before."""
    label = f"inverse temperature {curve['inverse_temperature']:g}: {name}"
    warmup = curve[f"warmup_{trace['axis']}"]
    tuning = f"; the warm-up before cost {warmup} {cost} per chain" if warmup else "; no warm-up"
    reached = curve["evals_to_95"][name]
    if reached is not None:
        gain = interval(curve["improvement"][name])
        ui.text(f"{label} improves by {gain}, 95 % of it after {reached} {cost} per chain{tuning}")
    elif name in curve["improvement"]:
        ui.text(f"{label} has not clearly improved: by {interval(curve['improvement'][name])}{tuning}")
    else:
        ui.text(f"{label} can't be called better or worse{tuning}")


def _plain_name(metric: str) -> str:
    return metric.replace(":", "-")


def _new_file(run: Run, trace: Trace, name: str) -> Path:
    """Return a free name in RUN/samples that begins with ``along-`` and ``name``."""
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    stem = f"along-{name}-{_plain_name(trace.sampler)}-seed{trace.seed}-{stamp}"
    path = run.outputs / "samples" / f"{stem}.json"
    attempt = 1
    while path.exists():
        attempt += 1
        path = path.with_name(f"{stem}-{attempt}.json")
    return path
