"""Draws of a model with classes: each class asked for is sampled as a model of its own, and the draws are put together.

For a fixed class y the law of z is that of a model without classes, ``prior(z) exp(-beta E(G(z, y), y))``. So every sampler
serves, tunes itself on chains of one class, and R-hat compares chains of one law. The diagnostics of all draws are the worst
of the classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gebm_kit.core.class_names import ALL, label_of_name, titled
from gebm_kit.core.classes import checked_labels
from gebm_kit.core.errors import UsageError, shown
from gebm_kit.core.frames import plain_values
from gebm_kit.core.interfaces import Sampler
from gebm_kit.core.model import GEBM
from gebm_kit.core.progress import warn
from gebm_kit.core.seeds import stream
from gebm_kit.core.units import HasMeasured
from gebm_kit.engine.process.distributed import ALONE, Ranks
from gebm_kit.engine.sampling.diagnostics import Diagnostics
from gebm_kit.engine.sampling.draw import draw
from gebm_kit.engine.sampling.draws import Draws, check_output
from gebm_kit.engine.sampling.settings import SampleSettings, check_sampling

FEWEST_CHAINS = 8
"""Fewest chains of a class: R-hat and the tuning of a sampler need several. Draws that are too many are left out."""


def wanted_labels(model: GEBM, asked: object, num_samples: int, seed: int) -> Tensor | None:
    """Return the class of each draw, (num_samples,) int64; None for a model without classes.

    Args:
        asked: one class, by its index or its name; classes, which the draws take in turn; ``all``, which stands for every
            class; or None: classes are drawn by ``model.class_weights``, the frequencies of the data unless the recipe has
            ``data.class_weights``.
        num_samples: number of draws.
        seed: seed of classes that are drawn.

    Raises:
        UsageError: the model has no classes and some are asked for; there is no such class, or it has the weight 0; or more
            classes than draws.
    """
    if model.num_classes is None:
        if asked is None:
            return None
        raise UsageError(
            f"the class {shown(asked)} was asked for, and the model has no classes",
            hint="Train one with conditional: true in base or energy, as in the recipe digits_conditional.",
        )
    if asked is None:
        weights = model.class_weights.detach().double().cpu()
        return torch.multinomial(weights, num_samples, replacement=True, generator=stream(seed, "labels"))
    chosen = _chosen(asked, model)
    if len(chosen) > num_samples:
        raise UsageError(
            f"{len(chosen)} labels were given for {num_samples} draw{'s' if num_samples > 1 else ''}; "
            "there may not be more labels than draws",
            hint="Raise num_samples (--num-samples), or ask for fewer classes.",
        )
    return chosen.repeat(-(-num_samples // len(chosen)))[:num_samples]


def _chosen(asked: object, model: GEBM) -> Tensor:
    """Return the classes asked for, in their order, (M,)."""
    num_classes, names = model.num_classes, model.class_names
    assert num_classes is not None
    trained = (model.class_weights > 0).tolist()
    allowed = f"whole numbers from 0 to {num_classes - 1}, a list of them, or {ALL!r}"
    if isinstance(asked, str) and asked == ALL:
        return _all(model, trained)
    chosen = []
    for item in _items(plain_values(asked), allowed):
        if isinstance(item, str):
            label = label_of_name(item, names, allowed)
        else:
            whole = isinstance(item, int | np.integer) and not isinstance(item, bool)
            if not whole or not 0 <= item < num_classes:
                raise UsageError(f"there is no class {shown(item)}; allowed are {allowed}")
            label = int(item)
        if not trained[label]:
            raise UsageError(f"class {titled(label, names)} has the weight 0: the model was not trained on it")
        chosen.append(label)
    if not chosen:
        raise UsageError(f"no class was given; allowed are {allowed}")
    return torch.tensor(chosen)


def _items(asked: object, allowed: str) -> list[Any]:
    """Return the single classes of what was asked for, in its order."""
    if isinstance(asked, Tensor | np.ndarray):
        if asked.ndim > 1:
            raise UsageError(f"labels have shape {tuple(asked.shape)}; allowed are {allowed}")
        items: list[Any] = asked.reshape(-1).tolist()
        return items
    if isinstance(asked, str | int | float | np.generic):
        return [asked]
    if not isinstance(asked, Sequence) or isinstance(
        asked, bytes | bytearray | memoryview
    ):  # bytes are numbers to Python
        raise UsageError(
            f"labels are of type {type(asked).__name__}; allowed are {allowed}",
            hint="A tensor or an array of whole numbers serves as well.",
        )
    return [item.item() if isinstance(item, Tensor | np.ndarray) and item.ndim == 0 else item for item in asked]


def _all(model: GEBM, trained: Sequence[bool]) -> Tensor:
    """Return every class that the model was trained on."""
    names = model.class_names
    if names is not None and ALL in names:
        raise UsageError(
            f"labels={ALL!r} can be read in two ways: as every class, or as the class of that name",
            hint=f"Give numbers; that class is {names.index(ALL)}.",
        )
    if out := [titled(label, names) for label, known in enumerate(trained) if not known]:
        more = f" and {len(out) - 10} more" if len(out) > 10 else ""
        which = "class" if len(out) == 1 else "classes"
        warn(
            f"no draws of {which} {', '.join(out[:10])}{more}: the weight is 0, so the model was not trained on such rows"
        )
    return torch.tensor([label for label, known in enumerate(trained) if known])


def counts_by_class(labels: Tensor) -> dict[int, int]:
    """Return the number of draws of each class that occurs, by class."""
    classes, counts = labels.unique(return_counts=True)
    return dict(zip(classes.tolist(), counts.tolist(), strict=True))


def draw_by_class(
    model: GEBM,
    sampler: Sampler,
    settings: SampleSettings,
    labels: Tensor,
    *,
    warns: bool = True,
    checked: bool = False,
    units: HasMeasured | None = None,
    **place: Any,
) -> Draws:
    """Draw ``settings.num_samples`` points, the i-th of class ``labels[i]``.

    The chains are shared among the classes by the number of their draws; each class has `FEWEST_CHAINS` or more.

    Args:
        labels: the class of each draw, (N,).
        units: names and units of the columns, for a table.
        warns, checked, place: as in `gebm_kit.engine.sampling.draw.draw`.

    Raises:
        UsageError, PluginError, RunFailed: as for `draw`.
    """
    assert model.num_classes is not None
    labels = checked_labels(labels, model.num_classes, settings.num_samples)
    parts: dict[int, Draws] = {}
    for label, num in counts_by_class(labels).items():
        given, asked = model.given(label), share_of(settings, sampler, num, len(labels), label)
        if warns and not parts:
            check_sampling(given, sampler, asked)
        parts[label] = draw(given, sampler, asked, warns=False, checked=checked or bool(parts), **place)
    draws = replace(together(parts, labels, settings.seed), units=units, class_names=model.class_names)
    if warns:
        draws.diagnostics.warn()
    return draws


def draw_by_class_to(
    out: str | Path,
    model: GEBM,
    sampler: Sampler,
    settings: SampleSettings,
    labels: Tensor,
    *,
    resume: bool = False,
    value_range: tuple[float, float] | None = None,
    ranks: Ranks = ALONE,
    **place: Any,
) -> Draws:
    """Call `draw_by_class` and write the draws, with their labels, to a file.

    Raises:
        UsageError: ``resume`` was given; or as for `draw_by_class` and `Draws.save`.
    """
    if resume:
        raise UsageError(
            f"a sampling into one file, {out}, can't be resumed",
            hint="A name without a suffix is a directory of shards.",
        )
    check_output(out, tuple(model.data_shape))
    with ranks.together():
        draws = replace(draw_by_class(model, sampler, settings, labels, ranks=ranks, **place), value_range=value_range)
        if ranks.rank == 0:
            draws.save(out, value_range)
    return draws


def share_of(settings: SampleSettings, sampler: Sampler, num: int, total: int, label: int) -> SampleSettings:
    """Return the settings for ``num`` of ``total`` draws, those of one class, with as many chains as the sampler needs."""
    chains = max(
        round(min(settings.num_chains, total) * num / total),
        min(max(FEWEST_CHAINS, sampler.min_chains), settings.num_chains),
    )
    seed = stream(settings.seed, "class", label).initial_seed() % 2**63
    return replace(settings, num_samples=max(num, chains), num_chains=chains, seed=seed)


def together(parts: dict[int, Draws], labels: Tensor, seed: int) -> Draws:
    """Put the draws of the classes in the order of ``labels``; chains are numbered through."""
    first = next(iter(parts.values()))
    num = len(labels)
    x, z = (rows.new_empty(num, *rows.shape[1:]) for rows in (first.x, first.z))
    chain, before = torch.empty(num, dtype=torch.int64), 0
    for label, part in parts.items():
        places = (labels == label).nonzero().squeeze(1)
        x[places], z[places] = part.x[: len(places)], part.z[: len(places)]
        chain[places] = before + part.chain[: len(places)]
        before += part.diagnostics.num_chains
    records = max(parts.values(), key=lambda part: len(part.x)).records
    found = merged({label: part.diagnostics for label, part in parts.items()}, num, seed)
    return Draws(x, z, chain, found, records, labels=labels)


def merged(found: dict[int, Diagnostics], num_samples: int, seed: int) -> Diagnostics:
    """Return the diagnostics of draws of several classes: sums of counts, and the worst of everything else.

    Step sizes, the log-partition and its error belong to a class; where there are several, they are NaN.

    Args:
        found: those of each class, by its label.
        num_samples: number of draws.
        seed: seed of all draws.
    """
    each = list(found.values())
    if len(each) == 1:
        return replace(each[0], num_samples=num_samples, seed=seed)

    def of(name: str, choose: Callable[[list[float]], float]) -> float:
        known = [value for d in each if not math.isnan(value := getattr(d, name))]
        return choose(known) if known else math.nan

    evals, furthest = sum(d.grad_evals for d in each), max(each, key=lambda d: _distance(d.equipartition))
    moves = [(d.acceptance, d.num_chains * d.steps) for d in each if not math.isnan(d.acceptance)]
    ess = of("ess_min", min)
    return Diagnostics(
        sampler=", ".join(dict.fromkeys(d.sampler for d in each)),
        num_samples=num_samples,
        num_chains=sum(d.num_chains for d in each),
        warmup_steps=max(d.warmup_steps for d in each),
        steps=max(d.steps for d in each),
        acceptance=sum(a * n for a, n in moves) / sum(n for _, n in moves) if moves else math.nan,
        divergences=sum(d.divergences for d in each),
        rhat_max=of("rhat_max", max),
        ess_min=ess,
        ess_per_grad=ess / evals if evals else math.nan,
        grad_evals=evals,
        forward_evals=sum(d.forward_evals for d in each),
        seconds=sum(d.seconds for d in each),
        inverse_temperature=each[0].inverse_temperature,
        seed=seed,
        warmup_divergences=sum(d.warmup_divergences for d in each),
        equipartition=furthest.equipartition,
        equipartition_se=furthest.equipartition_se,
        nested_rhat_max=of("nested_rhat_max", max),
        ess_tail_min=of("ess_tail_min", min),
        mcse_max=of("mcse_max", max),
        stuck_chains=sum(d.stuck_chains for d in each),
        pareto_k=of("pareto_k", max),
        details={name: sum(d.details[name] for d in each) for name in _common([list(d.details) for d in each])},
        family=each[0].family if len({d.family for d in each}) == 1 else "kernel",
        sampler_reason=_first({label: d.sampler_reason for label, d in found.items()}),
        unsettled=_first({label: d.unsettled for label, d in found.items()}),
    )


def _distance(equipartition: float) -> float:
    return -1.0 if math.isnan(equipartition) else abs(equipartition - 1.0)


def _common(names: list[list[str]]) -> list[str]:
    return [name for name in names[0] if all(name in others for others in names)]


def _first(sentences: dict[int, str | None]) -> str | None:
    """Return the first sentence there is, with its class."""
    return next((f"class {label}: {text}" for label, text in sentences.items() if text is not None), None)
