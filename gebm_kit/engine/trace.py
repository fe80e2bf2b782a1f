"""Quality along the chain: a metric of the chains' positions against the evaluations that each chain has spent so far.

Protocol:

- Groups. In each of ``num_sets`` independent groups, ``num_samples`` chains start from prior draws and run side by side.
- Scores. At the steps 0, 1, 2, 4, 8, ... and at the last step, the positions of a group's chains, one draw from each, are
  scored against the same reference and with the same shuffles as in an evaluation. The value is the mean over the groups,
  and the interval is Student's over them. Step 0 is the base itself: it costs nothing and is the same for every beta.
- Tuning. The traced chains run with a frozen sampler. A kernel is tuned first, by a warm-up on ``num_chains`` separate
  chains that are then discarded. The warm-up's cost per chain is reported beside the curve (`Tuning`); it is part of the
  total cost. With ``warmup`` 0 the sampler is used as given.
- Classes. A trace of a model with classes follows the chains of one class, and scores them against the rows of that class.
- Other families. A population method or a refiner is not tuned and runs until it has finished. Its start counts as its first
  step. Coupled chains run in islands of ``num_chains``, as they do when drawing.

Costs are evaluations of the potential per chain, with gradient (`Point.grad_evals`) and without (`Point.forward_evals`). The
curve's axis counts evaluations with gradient, unless the sampler uses none.

References:
    Generalized Energy Based Models. M. Arbel, L. Zhou, A. Gretton, ICLR 2021. https://arxiv.org/abs/2003.05033 (the FID
    along the chain)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gebm_kit.core.arguments import check_choice, check_whole
from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Dataset, Metric, Sampler, SamplerDirective, SplitName
from gebm_kit.core.model import GEBM
from gebm_kit.core.plugins import component_name
from gebm_kit.core.progress import OnProgress, ignore
from gebm_kit.engine.datasets.class_rows import OneClass, labels_of
from gebm_kit.engine.datasets.held_out import MAX_ROWS, evenly_spaced_rows, floor_sets
from gebm_kit.engine.evaluation.evaluation import check_request
from gebm_kit.engine.evaluation.feature_maps import FeatureMaps, FeatureSettings
from gebm_kit.engine.evaluation.intervals import mean_interval
from gebm_kit.engine.evaluation.metrics import build_metrics, check_data_serves
from gebm_kit.engine.evaluation.score_table import Scorer, check_rows
from gebm_kit.engine.evaluation.settings import FLOOR_PART, with_given
from gebm_kit.engine.evaluation.subject import eval_section, opened, sampling_settings
from gebm_kit.engine.evaluation.trace_chains import Schedule, TraceProgress, Tracer
from gebm_kit.engine.evaluation.trace_result import Trace
from gebm_kit.engine.likelihood.row_sources import Rows
from gebm_kit.engine.process.devices import placed
from gebm_kit.engine.process.memory import enough_memory
from gebm_kit.engine.process.progress_bar import check_progress, progress_shown
from gebm_kit.engine.run_directory.calibrated import Beta, beta_for
from gebm_kit.engine.run_directory.run import Run, subject_of
from gebm_kit.engine.sampling.auto import chosen
from gebm_kit.engine.sampling.contract import check_contract
from gebm_kit.engine.sampling.settings import SampleSettings, check_sampling, resolve_sampler

if TYPE_CHECKING:
    from gebm_kit.config.schema import Recipe
    from gebm_kit.engine.run_directory.run import Run


def trace_quality(
    run_or_model: Run | GEBM | str | Path,
    metric: str | Mapping[str, Any] | Metric = "frechet",
    *,
    label: int | None = None,
    data: Rows | Dataset | None = None,
    sampler: str | Mapping[str, Any] | Sampler | None = None,
    inverse_temperature: Beta | Sequence[Beta] | None = None,
    num_samples: int | None = None,
    num_sets: int | None = None,
    num_chains: int | None = None,
    warmup: int | None = None,
    steps: int | None = None,
    at_steps: Sequence[int] | None = None,
    seed: int | None = None,
    block_size: int | None = None,
    device: torch.device | str | None = None,
    reference: SplitName = "test",
    progress: bool | None = None,
    on_progress: OnProgress | None = None,
) -> Trace:
    """Measure a metric along the chains of a trained run, or of any GEBM built by hand; see the protocol above.

    Arguments that are None come from the run's recipe; for a hand-built model, from the defaults of recipes.

    Args:
        run_or_model: a run, the path of its directory, or a model.
        metric: name, with its parameters in the recipe's ``eval.metrics`` if it is listed there; a node or an object.
        label: the class whose chains are followed; a model with classes needs one.
        data, sampler: as for `gebm_kit.evaluate`; ``auto`` chooses by a pilot at the largest beta.
        inverse_temperature: beta (a number or ``calibrated``), or several betas, each with a curve of its own.
        num_samples, num_sets: chains in a group, and so draws at every point; groups, None: the recipe's ``eval.num_sets``.
        num_chains, warmup: chains and steps of the warm-up that tunes the sampler first; 0 steps: no tuning.
        steps: the traced chains run for ``warmup + steps`` steps, the least that `gebm_kit.sample` runs.
        at_steps: steps to measure at, in place of 0, 1, 2, 4, 8, ...; the largest is the last step.
        seed, reference: seed of starting points and sampler; part of the dataset to score against.
        progress, on_progress: as for `gebm_kit.evaluate`.

    Raises:
        UsageError: inconsistent arguments, a metric of the model alone, a model by hand without data, classes without label.
        DataError, RunFailed: the data does not fit the model; draws that are not finite, or a device out of memory.
        RecipeError, PluginError, CheckpointError: as for `gebm_kit.sample`.
    """
    check_choice("reference", reference, ("train", "valid", "test"))
    check_whole("label", label)
    check_progress(progress, on_progress)
    subject = subject_of(run_or_model)
    recipe, model, dataset = opened(subject, data)
    sampling = with_given(sampling_settings(recipe), num_samples=num_samples, num_chains=num_chains, warmup=warmup)
    settings = with_given(sampling, steps=steps, seed=seed, block_size=block_size)
    with progress_shown(progress, on_progress) as report:
        return record(
            model,
            dataset,
            chosen_metric(metric, recipe),
            resolve_sampler(sampler, None if recipe is None else recipe.sampler, model),
            settings,
            _numbers(subject, recipe, inverse_temperature),
            eval_section(recipe).num_sets if num_sets is None else num_sets,
            at_steps=at_steps, device=device if device is not None or recipe is None else recipe.device, reference=reference,
            num_reference=eval_section(recipe).num_reference, features=FeatureSettings.of(recipe), label=label,
            on_progress=report,
        )  # fmt: skip


def chosen_metric(metric: str | Mapping[str, Any] | Metric, recipe: Recipe | None) -> tuple[str, Metric]:
    """Return the metric and its name; a name takes its parameters from the recipe's ``eval.metrics`` if it is listed there.

    Raises:
        UsageError: a metric of the model, which draws do not change, or something that is not a metric.
        RecipeError, PluginError: no installed metric has this name.
    """
    nodes = () if recipe is None else recipe.eval.metrics
    ((name, built),) = build_metrics([next((node for node in nodes if node.name == metric), metric)]).items()
    if built.of_model:
        raise UsageError(
            f"metric {name!r} is a property of the model and does not depend on draws, so it can't be traced along a chain",
            hint="`gebm-kit eval` reports it.",
        )
    return name, built


def record(
    model: GEBM,
    dataset: Dataset,
    metric: tuple[str, Metric],
    sampler: Sampler,
    settings: SampleSettings,
    inverse_temperature: float | Sequence[float],
    num_sets: int,
    *,
    at_steps: Sequence[int] | None = None,
    device: torch.device | str | None = None,
    reference: SplitName = "test",
    num_reference: int = MAX_ROWS,
    features: FeatureSettings | None = None,
    label: int | None = None,
    on_progress: OnProgress = ignore,
) -> Trace:
    """Trace a chosen metric, sampler and sweep of betas; `trace_quality` with nothing left to a recipe.

    ``thin`` and ``inverse_temperature`` of ``settings`` are not used. Groups run one after another, so memory holds the
    chains of one group only.
    """
    model, rows_of = _of_class(model, dataset, label)
    betas = _betas(inverse_temperature)
    check_request(model, dataset, settings.num_samples, num_sets)
    check_sampling(model, sampler, settings)
    if isinstance(sampler, SamplerDirective):
        sampler = chosen(model, sampler, replace(settings, inverse_temperature=max(betas)), device)
    (name, scored), features = metric, features or FeatureSettings()
    check_data_serves({name: scored}, dataset, features)
    schedule = Schedule.of(sampler, settings, at_steps)
    data = rows_of(reference, num_reference)
    train = rows_of("train", num_reference) if scored.needs_train else None
    held_out = rows_of(FLOOR_PART[reference], MAX_ROWS)
    floor = floor_sets(held_out, settings.num_samples, num_sets)
    check_rows({name: scored}, {"draws": settings.num_samples, "held-out rows": len(floor[0])})
    with placed(model, device) as (where, dtype):
        check_contract(model, sampler, where)
        # Metrics compute in float64, which only CUDA has besides the CPU.
        place = where if where.type == "cuda" else torch.device("cpu")
        data, train = data.to(place), None if train is None else train.to(place)
        constant = [data] if train is None else [data, train]
        maps = FeatureMaps(dataset, where, features, constant, on_progress)
        scorer = Scorer(model, dataset, data, maps, settings.seed, train, against_train=False)
        tracer = Tracer(name, scored, scorer, place, where, dtype, settings, schedule)
        watch = TraceProgress(on_progress, len(betas) * num_sets, schedule.last)
        doing, hint = f"with {settings.num_samples} chains", "Set block_size, or trace fewer chains: num_samples."
        with enough_memory(where, doing, hint):
            curves = tuple(tracer.curve(sampler, beta, num_sets, watch) for beta in betas)
        floor_values = [tracer.score(x, index) for index, x in enumerate(floor)]
    return Trace(
        metric=name,
        sampler=component_name("sampler", sampler),
        axis="grad_evals" if any(curve.points[-1].grad_evals for curve in curves) else "forward_evals",
        lower_is_better=scored.lower_is_better,
        seed=settings.seed,
        curves=curves,
        floor={key: mean_interval([row[key] for row in floor_values]) for key in floor_values[0]},
        protocol=tracer.protocol | _protocol(num_sets, floor, reference, label),
    )


def _of_class(model: GEBM, dataset: Dataset, label: int | None) -> tuple[GEBM, Callable[[SplitName, int], Tensor]]:
    """Return the model to trace, and a function that reads the rows of a part of the data, at most so many.

    With a label both are those of the class.
    """
    if label is None and not model.conditional:
        return model, lambda part, limit: evenly_spaced_rows(dataset.split(part), f"{part} data", limit)
    if label is None:
        raise UsageError(
            f"a trace follows the chains of one class, and the model has {model.num_classes} classes",
            hint="Name one: --class 7 on the command line, label=7 in Python.",
        )
    given, num_classes = model.given(label), model.num_classes
    assert num_classes is not None

    def rows(part: SplitName, limit: int) -> Tensor:
        split = OneClass(dataset.split(part), labels_of(dataset, part, num_classes), label)
        if not len(split):
            raise UsageError(f"the {part} data have no row of class {label}, so there is nothing to score against")
        return evenly_spaced_rows(split, f"{part} data of class {label}", limit)

    return given, rows


def _protocol(num_sets: int, floor: Sequence[Tensor], reference: SplitName, label: int | None) -> dict[str, Any]:
    """Describe the groups, the floor and the parts of the dataset, besides the metric's own protocol."""
    return {
        "sets": num_sets,
        "interval": "95 %, Student's t over sets",
        "held_out": len(floor[0]),
        "held_out_sets": len(floor),
        "reference_part": reference,
        "held_out_part": FLOOR_PART[reference],
        **({} if label is None else {"class": label}),
    }


def _numbers(subject: Run | GEBM, recipe: Recipe | None, asked: Beta | Sequence[Beta] | None) -> float | list[float]:
    """Return the betas, None for the recipe's, with numbers in place of the word ``calibrated``."""
    if asked is None:
        asked = 1.0 if recipe is None else recipe.sample.inverse_temperature
    if isinstance(asked, Sequence) and not isinstance(asked, str):
        return [beta_for(subject, beta) for beta in asked]
    return beta_for(subject, asked)


def _betas(inverse_temperature: float | Sequence[float]) -> tuple[float, ...]:
    """Check the betas and return them in the order given."""
    several = isinstance(inverse_temperature, Sequence) and not isinstance(inverse_temperature, str)
    sweep: Sequence[Any] = inverse_temperature if several else [inverse_temperature]  # type: ignore[assignment]
    betas = tuple(SampleSettings(inverse_temperature=beta).inverse_temperature for beta in sweep)
    if not betas:
        raise UsageError("a sweep over inverse_temperature needs at least one value, got none")
    twice = [beta for index, beta in enumerate(betas) if beta in betas[:index]]
    if twice:
        raise UsageError(f"inverse_temperature {twice[0]:g} is listed twice; give each value once")
    return tuple(float(beta) for beta in betas)
