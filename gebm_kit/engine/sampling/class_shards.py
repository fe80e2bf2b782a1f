"""Draws of a model with classes, streamed into a directory: shards of each class in turn, and the order of all draws.

DIR/
  labels.safetensors   the class of each draw, (N,), in the order of `Draws`; written first, and what a resumption must match
  class-3/             shards of one class, as in any directory of draws; each is finished or resumed on its own
  classes.json         the classes with their directories and draws; written once all of them are there
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gebm_kit.core.arguments import check_path
from gebm_kit.core.classes import checked_labels
from gebm_kit.core.errors import CheckpointError, DataError, UsageError
from gebm_kit.core.files import make_directory, write_atomic, write_json
from gebm_kit.core.interfaces import Sampler
from gebm_kit.core.model import GEBM
from gebm_kit.core.packing import packed, read_packed
from gebm_kit.core.paths import user_path
from gebm_kit.core.reading import read_json_file
from gebm_kit.core.units import HasMeasured
from gebm_kit.engine.process.distributed import ALONE, Ranks
from gebm_kit.engine.sampling.by_class import counts_by_class, draw_by_class_to, merged, share_of, together
from gebm_kit.engine.sampling.diagnostics import Diagnostics
from gebm_kit.engine.sampling.draw import draw_into
from gebm_kit.engine.sampling.draws import Draws, is_directory
from gebm_kit.engine.sampling.draws_on_disk import newest_unfinished
from gebm_kit.engine.sampling.settings import SampleSettings, check_sampling
from gebm_kit.engine.sampling.shards import ShardedDraws, load_draws as load_plain, open_draws
from gebm_kit.engine.sampling.streamed import StreamedDraws

LABELS = "labels.safetensors"
"""The file with the class of each draw."""

CLASSES = "classes.json"
"""The index of the classes; a directory that has it is complete."""


@dataclass(frozen=True, repr=False)
class ClassShards(StreamedDraws):
    """Draws of classes in a directory; only the indices and the labels are in memory.

    Iterating yields one shard after another as `Draws` of one class, class by class. `load` returns all draws in the order
    of ``labels``.

    Attributes:
        path: the directory.
        labels: class of each draw, (N,) int64.
        parts: shards of each class, by label; a class may have a few draws more than are wanted, which are left out.
        diagnostics: diagnostics of all draws: sums of counts, and the worst of the classes.
        class_names, units, value_range: as in `Draws` and `ShardedDraws`.
    """

    path: Path
    labels: Tensor = field(repr=False)
    parts: Mapping[int, ShardedDraws]
    diagnostics: Diagnostics
    class_names: tuple[str, ...] | None = None
    units: HasMeasured | None = field(default=None, repr=False, compare=False)
    value_range: tuple[float, float] | None = None

    def __iter__(self) -> Iterator[Draws]:
        for label, part in self.parts.items():
            for draws in part.first(int((self.labels == label).sum())):
                if len(draws.x):
                    labels = torch.full((len(draws.x),), label)
                    yield replace(draws, diagnostics=self.diagnostics, labels=labels, class_names=self.class_names)

    @property
    def num_samples(self) -> int:
        """Number of draws."""
        return len(self.labels)

    @property
    def sampler_reason(self) -> str | None:
        """As in `Draws`."""
        return self.diagnostics.sampler_reason

    @property
    def num_shards(self) -> int:
        """Number of files that hold the draws."""
        return sum(part.num_shards for part in self.parts.values())

    @property
    def records(self) -> tuple[Mapping[str, Tensor], ...]:
        """What was recorded of the class with most draws, as in `Draws`."""
        return max(self.parts.values(), key=lambda part: part.num_samples).records

    @property
    def in_order(self) -> Tensor:
        """The class of each draw in the order of iteration, (N,)."""
        return self.labels.sort().values

    def pictures(self) -> Iterator[Tensor]:
        """Yield x of one shard after another, class by class."""
        return (draws.x for draws in self)

    def load(self) -> Draws:
        """Read all draws into memory.

        Raises:
            DataError: a shard is missing or damaged.
        """
        draws = together({label: part.load() for label, part in self.parts.items()}, self.labels, self.diagnostics.seed)
        return replace(draws, units=self.units, class_names=self.class_names, value_range=self.value_range)


def draw_by_class_out(
    out: str | Path,
    model: GEBM,
    sampler: Sampler,
    settings: SampleSettings,
    labels: Tensor,
    *,
    hint: str = "Continue with resume=True.",
    **place: Any,
) -> Draws | ClassShards:
    """Write draws of classes to a file, or, when ``out`` has no suffix, stream them into that directory.

    Raises:
        UsageError, RunFailed, Interrupted: as for `draw_by_class_to` and `gebm_kit.engine.sampling.draw.draw_into`.
    """
    if is_directory(out):
        return draw_by_class_into(out, model, sampler, settings, labels, hint=hint, **place)
    return draw_by_class_to(out, model, sampler, settings, labels, **place)


def draw_by_class_into(
    directory: str | Path,
    model: GEBM,
    sampler: Sampler,
    settings: SampleSettings,
    labels: Tensor,
    *,
    resume: bool = False,
    value_range: tuple[float, float] | None = None,
    units: HasMeasured | None = None,
    ranks: Ranks = ALONE,
    **place: Any,
) -> ClassShards:
    """Stream draws of classes into a directory, one class after another.

    The draws are those of `gebm_kit.engine.sampling.by_class.draw_by_class`, unless the sampler is a directive, which
    chooses by few draws where they are streamed. ``resume`` and the rest are as for
    `gebm_kit.engine.sampling.draw.draw_into`.

    Raises:
        UsageError, RunFailed, Interrupted: as for `draw_into`; or the directory holds draws of other classes.
    """
    assert model.num_classes is not None
    labels, path = checked_labels(labels, model.num_classes, settings.num_samples), user_path(directory)
    wanted = counts_by_class(labels)
    check_sampling(model.given(next(iter(wanted))), sampler, settings)
    with ranks.together():
        if ranks.rank == 0:
            _begin(path, labels, resume=resume)
        ranks.wait()
    for label, num in wanted.items():
        draw_into(
            path / f"class-{label}", model.given(label), sampler,
            share_of(settings, sampler, num, len(labels), label),
            resume=True, value_range=value_range, units=units, ranks=ranks, warns=False, **place,
        )  # fmt: skip
    with ranks.together():
        if ranks.rank == 0 and not (path / CLASSES).exists():
            names = None if model.class_names is None else list(model.class_names)
            record = {str(label): {"directory": f"class-{label}", "draws": num} for label, num in wanted.items()}
            write_json(
                path / CLASSES,
                {
                    "schema": 1,
                    "num_samples": len(labels),
                    "seed": settings.seed,
                    "class_names": names,
                    "classes": record,
                },
            )
        ranks.wait()
    draws = open_classes(path)
    draws.diagnostics.warn()
    return draws


def _begin(path: Path, labels: Tensor, *, resume: bool) -> None:
    """Create the directory, or check that what it holds is to be continued.

    Raises:
        UsageError: it is a file, or holds something else, or draws that are not to be continued.
    """
    if os.path.lexists(path) and not os.path.isdir(path):
        raise UsageError(f"{path} is a file; draws without a suffix are streamed into a directory")
    known = path / LABELS
    if not known.exists():
        if os.path.isdir(path) and os.listdir(path):
            raise UsageError(f"{path} is not empty", hint="Choose another place for the draws.")
        make_directory(path)
        write_atomic(known, packed({"labels": labels}, {}))
        return
    if not resume:
        what = "draws" if (path / CLASSES).exists() else "an unfinished sampling"
        raise UsageError(
            f"{path} is not empty: it holds {what}", hint="Add --resume to continue it, or choose another place."
        )
    if not torch.equal(_read_labels(path), labels):
        raise UsageError(
            f"{path} holds another sampling: of other classes",
            hint="Use the same model and settings, or choose another place for the draws.",
        )


def _read_labels(path: Path) -> Tensor:
    try:
        labels = read_packed(path / LABELS)[0].get("labels")
    except CheckpointError as error:
        raise DataError(error.message) from error
    if labels is None or labels.dtype != torch.int64 or labels.ndim != 1:
        raise DataError(f"{path / LABELS} is damaged: it holds no labels")
    return labels


def open_classes(path: str | Path) -> ClassShards:
    """Open the draws of classes in a directory.

    Raises:
        DataError: an index is missing or damaged.
    """
    path = user_path(path)
    if not (path / CLASSES).exists():
        raise DataError(
            f"{path} holds no draws: it has no {CLASSES}, as sampling was interrupted",
            hint="Resume with the same command and --resume.",
        )
    labels, record = _read_labels(path), read_json_file(path / CLASSES)
    try:
        wanted = {int(label): int(one["draws"]) for label, one in record["classes"].items()}
        names = record["class_names"]
        class_names = None if names is None else tuple(map(str, names))
        seed = int(record["seed"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path / CLASSES} is damaged: {type(error).__name__}: {error}") from error
    parts = {label: open_draws(path / f"class-{label}") for label in wanted}
    if counts_by_class(labels) != wanted:
        raise DataError(f"{path / CLASSES} is damaged: its draws are not those of {LABELS}")
    if short := [label for label, part in parts.items() if part.num_samples < wanted[label]]:
        raise DataError(f"{path / CLASSES} is damaged: class {short[0]} has fewer draws than it says")
    first = next(iter(parts.values()))
    found = merged({label: part.diagnostics for label, part in parts.items()}, len(labels), seed)
    return ClassShards(path, labels, parts, found, class_names, first.units, first.value_range)


def load_draws(path: str | Path) -> Draws:
    """Read all draws of a file or directory that sampling wrote into memory, in the same order.

    Raises:
        DataError: the file or directory is missing, unfinished or damaged.
    """
    check_path("draws", path)
    path = user_path(path)
    return open_classes(path).load() if (path / LABELS).exists() else load_plain(path)


def newest_to_resume(folder: Path) -> Path | None:
    """Find the directory in ``folder`` whose sampling was interrupted last, of classes or not; None when there is none."""
    found = [place.parent for place in folder.glob(f"*/{LABELS}") if not (place.parent / CLASSES).exists()]
    plain = newest_unfinished(folder)
    return max([*found, *([] if plain is None else [plain])], key=lambda place: place.stat().st_mtime, default=None)
