"""What a report needs from the model and the data: a few draws, the same codes before and after, nearest neighbours.

All of it is optional. Where something can't be had, `Material.missing` says why, and the report is made without it. Nothing
here evaluates the run: it draws a few hundred points at most, and leaves that out where the model is slow.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gebm_kit.core.errors import GebmKitError
from gebm_kit.core.interfaces import Dataset, HasLabels, HasReading, Split
from gebm_kit.core.model import GEBM
from gebm_kit.core.seeds import stream
from gebm_kit.core.units import HasMeasured
from gebm_kit.engine.evaluation.kept_draws import KeptDraws, read_kept_draws
from gebm_kit.engine.process.devices import resolve_device
from gebm_kit.engine.reporting.codes import Moved, move_codes
from gebm_kit.engine.reporting.words import plain
from gebm_kit.engine.run_directory.facts import units_of
from gebm_kit.engine.run_directory.run import Run

MOST_POINTS = 1000
"""Rows of held-out data beside draws that are made here; of images, as many as there are draws."""

MOST_SEARCHED, SEARCH_SECONDS = 10_000, 1.5
"""Most training rows among which neighbours are searched, and seconds after which the search ends with those read."""

SHOWN_NEIGHBOURS, DRAWS_WITH_NEIGHBOURS = 3, 8
"""Neighbours shown of each draw, and draws that are shown with theirs."""

FINGERPRINTED = 1000
"""Training rows behind the checksum of the data."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Draws and the training rows that lie nearest, by Euclidean distance.

    Attributes:
        draws: (N, *D).
        rows: nearest training rows of each draw, (N, K, *D), nearest first.
        nearest: distance of more draws to their nearest training row, (M,).
        held_out: the same of held-out data, (L,): what is to be expected of draws that copy nothing.
        searched, total: training rows searched, and all there are.
    """

    draws: Tensor
    rows: Tensor
    nearest: Tensor
    held_out: Tensor
    searched: int
    total: int


@dataclass
class Material:
    """See the module.

    Attributes:
        sets: data, base draws and GEBM draws with their energies.
        sets_from: where these come from, in a sentence.
        moved: the same codes before and after.
        neighbours: nearest training rows.
        model: the model, to draw contours of its energy.
        about_data: names and values that describe the data.
        missing: by ``model``, ``data``, ``sets``, ``moved`` and ``neighbours``: why it is not there.
    """

    sets: KeptDraws | None = None
    sets_from: str = ""
    moved: Moved | None = None
    neighbours: Neighbours | None = None
    model: GEBM | None = None
    value_range: tuple[float, float] | None = None
    data_shape: tuple[int, ...] = ()
    class_names: tuple[str, ...] | None = None
    units: HasMeasured | None = None
    is_table: bool = False
    about_data: list[tuple[str, str]] = field(default_factory=list)
    fingerprint: str = ""
    missing: dict[str, str] = field(default_factory=dict)


def gather(run: Run, evaluation: dict[str, Any] | None, device: str | torch.device | None) -> Material:
    """Collect what there is, within a few seconds."""
    found = Material()
    _read_model(found, run)
    dataset = None
    with _optional(found, "data"):
        dataset = run.dataset
        found.data_shape = tuple(dataset.data_shape)
        found.value_range = dataset.value_range
        _describe(found, dataset)
    found.units = _units(run, dataset)
    found.is_table = len(found.data_shape) == 1 and (found.units is not None or found.data_shape != (2,))
    checkpoint = _checkpoint(run)
    if evaluation is not None and found.data_shape and evaluation.get("checkpoint") == checkpoint:
        found.sets = read_kept_draws(run.figures, checkpoint, found.data_shape)
        found.sets_from = "These are draws of the last evaluation."
    if found.model is not None:
        with _optional(found, "moved"), torch.random.fork_rng():
            where = resolve_device(run.recipe.device if device is None else device)
            found.moved = move_codes(found.model, run.recipe, evaluation, where)
    else:
        found.missing["moved"] = found.missing.get("model", "")
    if found.sets is None and found.moved is not None:
        with _optional(found, "sets"):
            found.sets = _sets_of(found.model, dataset, found.moved)
            found.sets_from = (
                f"No evaluation has kept draws of this checkpoint, so these were made for this page: {found.moved.how} "
                "An evaluation (gebm-kit eval) keeps more of them."
            )
    if found.sets is not None and dataset is not None:
        with _optional(found, "neighbours"):
            found.neighbours = nearest_rows(dataset, found.sets.x["GEBM"], found.sets.x.get("data"))
    return found


def _read_model(found: Material, run: Run) -> None:
    """Read the model, and first what is known without it."""
    with _optional(found, "model"):
        found.data_shape = tuple(run.checkpoint.state["facts"]["data_shape"])
        found.value_range, found.class_names = run.value_range, run.class_names
        found.model = run.model


@contextmanager
def _optional(found: Material, name: str) -> Iterator[None]:
    """Go on without a part of the report that can't be made, and say why; a model or data may raise anything."""
    try:
        yield
    except GebmKitError as error:
        found.missing[name] = plain(" ".join(filter(None, (error.message, error.hint))), 1000)
    except Exception as error:
        found.missing[name] = plain(f"{type(error).__name__}: {error}", 1000)


def _checkpoint(run: Run) -> str:
    try:
        return run.checkpoint.path.name
    except GebmKitError:
        return ""


def _units(run: Run, dataset: Dataset | None) -> HasMeasured | None:
    try:
        return run.units(needed=False) or (None if dataset is None else units_of(dataset))
    except (GebmKitError, KeyError):
        return None


def _describe(found: Material, dataset: Dataset) -> None:
    """Describe the data: what was read, the parts, the shape, the classes; and take the checksum of the first rows."""
    train = dataset.split("train")
    parts = ", ".join(f"{len(dataset.split(name)):,} {name}" for name in ("train", "valid", "test"))
    found.about_data.append(("rows", parts))
    found.about_data.append(("shape of a row", " x ".join(map(str, dataset.data_shape))))
    if dataset.value_range is not None:
        found.about_data.append(("values", "in [{:g}, {:g}]".format(*dataset.value_range)))
    if isinstance(dataset, HasLabels) and dataset.num_classes:
        found.about_data.append(("classes", f"{dataset.num_classes:,}"))
    if isinstance(dataset, HasReading):
        found.about_data.append(("read from", plain(dataset.describe_reading(), 1000)))
    rows = train.first(FINGERPRINTED).detach().float().cpu().contiguous()
    digest = hashlib.sha256(rows.numpy().tobytes()).hexdigest()
    found.fingerprint = f"{digest} (sha256 of the first {len(rows):,} of {len(train):,} training rows, as float32)"


def _sets_of(model: GEBM | None, dataset: Dataset | None, moved: Moved) -> KeptDraws:
    """Return the codes before and after as base and GEBM draws, and held-out data beside them."""
    x, energies = {"base": moved.before, "GEBM": moved.after}, {"base": moved.energy_before, "GEBM": moved.energy_after}
    labels = {} if moved.labels is None else {"base": moved.labels, "GEBM": moved.labels}
    if dataset is not None and model is not None:
        held_out = dataset.split("test")
        count = min(len(held_out), len(moved.before) if len(dataset.data_shape) == 3 else MOST_POINTS)
        some = torch.randperm(len(held_out), generator=stream(0, "report"))[:count].sort().values
        x["data"] = held_out.batch(some).float().cpu()
        if labels and isinstance(dataset, HasLabels):
            labels["data"] = dataset.labels("test")[some]
        if not model.conditional or "data" in labels:
            with torch.no_grad():
                given = labels["data"] if model.conditional else None
                energies["data"] = model.energy_at(x["data"].to(model.dtype), given).float().cpu()
    return KeptDraws(x, energies, labels)


def nearest_rows(dataset: Dataset, draws: Tensor, held_out: Tensor | None) -> Neighbours:
    """Search the training rows for those nearest to each draw; as many as can be read in `SEARCH_SECONDS`."""
    train = dataset.split("train")
    places = _places(train, MOST_SEARCHED)
    asked = draws[:256].flatten(1).double()
    others = asked[:0] if held_out is None else held_out[:256].flatten(1).double()
    queries, count = torch.cat([asked, others]), SHOWN_NEIGHBOURS
    best = torch.full((len(queries), count), torch.inf, dtype=torch.float64)
    index = torch.zeros((len(queries), count), dtype=torch.int64)
    began, searched = time.monotonic(), 0
    for part in places.split(500):
        rows = train.batch(part).flatten(1).double().cpu()
        distances = torch.cdist(queries, rows)
        both, which = torch.cat([best, distances], 1), torch.cat([index, part.expand(len(queries), -1)], 1)
        best, chosen = both.topk(count, dim=1, largest=False)
        index = which.gather(1, chosen)
        searched += len(part)
        if time.monotonic() - began > SEARCH_SECONDS:
            break
    shown = min(DRAWS_WITH_NEIGHBOURS, len(draws))
    known = min(count, searched)
    rows = train.batch(index[:shown, :known].reshape(-1)).float().cpu()
    rows = rows.reshape(shown, known, *dataset.data_shape)
    nearest = best[: len(asked), 0].float()
    return Neighbours(draws[:shown], rows, nearest, best[len(asked) :, 0].float(), searched, len(train))


def _places(train: Split, most: int) -> Tensor:
    """Return evenly spaced rows of a part, in a mixed order, so that a search cut short has seen all of it."""
    count = min(len(train), most)
    places = torch.arange(count) * len(train) // count
    return places[torch.randperm(count, generator=stream(0, "neighbours"))]
