"""Log-densities of rows under a model whose base has a density, and their file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gebm_kit.core.errors import UsageError
from gebm_kit.core.files import write_atomic
from gebm_kit.core.html import Shown, cell
from gebm_kit.core.interfaces import Dataset, HasDensity
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.progress import OnProgress, counted, ignore
from gebm_kit.core.seeds import stream
from gebm_kit.engine.likelihood.class_densities import ByClass, ClassLogPartition, class_fields, scores_by_class
from gebm_kit.engine.likelihood.estimate_log_partition import Method, estimate_log_partition
from gebm_kit.engine.likelihood.log_partition import ROWS_AT_ONCE, LogPartition
from gebm_kit.engine.likelihood.model_fit import base_tilts, energies
from gebm_kit.engine.likelihood.nll import Space, check_space, log_base_density, log_det_of
from gebm_kit.engine.likelihood.rows_html import rows_sections
from gebm_kit.engine.likelihood.usable_rows import RowNumbers
from gebm_kit.engine.likelihood.user_rows import as_data
from gebm_kit.engine.process.devices import placed


@dataclass(frozen=True, repr=False)
class LogDensities(Shown):
    """Log-densities of N rows, in nats.

    Attributes:
        gebm: ``log q(x) = log b(x) - beta E(x) - A``, (N,) float64. An error in A shifts all of them equally.
        base: ``log b(x)``, (N,).
        tilt: ``beta E(x)``, (N,).
        log_partition: A with its error; of rows of a class, its A_y. None for rows of several classes, or of a class that is
            not given: ``log_partitions`` has each A_y.
        space: ``raw``: densities of the rows as given; ``standardised``: densities of the data that the model sees.
        inverse_temperature: beta.
        classes: of a model with classes, where the rows' class is not given, the same by class; else None. Then ``gebm`` is
            the mixture of the classes, and ``tilt`` is ``base - gebm``, which includes every A_y.
        log_partitions: of a model with classes, A_y by label.
        rows: numbers of these rows in what was given, and the rows that were left out.
    """

    gebm: Tensor
    base: Tensor
    tilt: Tensor
    log_partition: LogPartition | None
    space: Space
    inverse_temperature: float
    classes: ByClass | None = None
    log_partitions: Mapping[int, LogPartition] | None = None
    rows: RowNumbers = field(default_factory=RowNumbers)

    def __len__(self) -> int:
        return len(self.gebm)

    def _summary(self) -> str:
        mean = cell(float(self.gebm.mean())) if len(self) else "-"
        return f"LogDensities({len(self):,} rows, mean {mean} nats, {self.space}; beta {self.inverse_temperature:g})"

    def _sections(self) -> Iterator[str]:
        by_class = {} if self.classes is None else self.classes.columns()
        return rows_sections({"gebm": self.gebm, "base": self.base, "tilt": self.tilt, **by_class}, self.log_partition)

    def as_dict(self) -> dict[str, Any]:
        """Return what all rows share, as plain JSON."""
        return {
            "num_rows": len(self.gebm),
            "space": self.space,
            "inverse_temperature": self.inverse_temperature,
            "log_partition": None if self.log_partition is None else self.log_partition.as_dict(),
            **self.rows.as_dict(),
            **class_fields(self.classes, self.log_partitions),
        }

    def save(self, path: Path) -> None:
        """Write a .csv, completely or not at all.

        Each row has one line: its number in what was given, from 1, ``log_density``, ``log_base`` and ``energy`` (beta E),
        then the columns of ``classes``.

        Raises:
            UsageError: the path can't be written; RunFailed: the disk is full.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        by_class = {} if self.classes is None else self.classes.columns()
        writer.writerow(["row", "log_density", "log_base", "energy", *by_class])
        columns = (values.tolist() for values in (self.gebm, self.base, self.tilt, *by_class.values()))
        rows = zip(self.rows.of(range(len(self.gebm))), *columns, strict=True)
        writer.writerows([number, *map(repr, row)] for number, *row in rows)
        write_atomic(path, text.getvalue().encode())


def densities(
    model: GEBM,
    dataset: Dataset | None,
    rows: Tensor,
    *,
    inverse_temperature: float,
    space: Space,
    method: Method,
    seed: int,
    device: torch.device | str | None,
    names: tuple[str, ...] = (),
    source: str = "the data",
    block_size: int | None = None,
    labels: Tensor | None = None,
    numbers: RowNumbers | None = None,
    on_progress: OnProgress = ignore,
) -> LogDensities:
    """Compute the densities of `log_density`, with nothing left to a recipe.

    Args:
        labels: the class of each row, (N,), for a model with classes; None: not known.
        names: names of the rows' columns, () without names.
        source: where the rows come from, for messages.
        numbers: which rows these are of what was given; None: all.
    """
    numbers = numbers or RowNumbers()
    check_density(model, dataset, space)
    x = as_data(rows, names, source, model, dataset)
    log_det = None if dataset is None else log_det_of(dataset)
    shift = (log_det or 0.0) if space == "raw" else 0.0
    if model.conditional:
        estimate = ClassLogPartition(inverse_temperature, method, seed, block_size)
        found = scores_by_class(model, x, labels, estimate, device, shift, on_progress)
        assert found.log_density is not None
        assert found.log_base is not None
        assert found.energy is not None
        return LogDensities(
            found.log_density, found.log_base, found.energy, found.log_partition, space, inverse_temperature,
            found.classes, found.log_partitions, numbers,
        )  # fmt: skip
    with placed(model, device) as (where, dtype):
        generator = torch.Generator(where).manual_seed(stream(seed, "model fit").initial_seed())
        with LatentPotential(model, inverse_temperature, block_size=block_size or ROWS_AT_ONCE) as potential:
            log_base = log_base_density(model, x, where, dtype)
            assert log_base is not None
            tilt = inverse_temperature * energies(model, x, where, dtype, counted(on_progress, "rows", len(x)))
            first, second = base_tilts(potential, generator, dtype, on_progress)
            partition = estimate_log_partition(
                potential, first, second, generator, dtype, method=method, on_progress=on_progress
            )
    log_base = log_base + shift
    gebm = log_base - tilt - partition.value
    return LogDensities(gebm, log_base, tilt, partition, space, inverse_temperature, rows=numbers)


def check_density(model: GEBM, dataset: Dataset | None, space: Space) -> None:
    """Raise, before anything is computed, if the model has no density in this space.

    Raises:
        UsageError: the base has no density, or ``raw`` is asked for and the data's preprocessing is not known.
    """
    base: object = model.base
    if not isinstance(base, HasDensity):
        raise UsageError(
            f"the base {type(base).__name__} has no density, so the model has none either: its energy is known, and its "
            "density relative to the base is exp(-E - A)",
            hint="Train with a base that has one: `gebm-kit list base`; the flows come with the package gebm-kit-flows.",
        )
    if dataset is not None:
        check_space(dataset, space)
    elif space == "raw":
        raise UsageError(
            "space='raw' needs a run; a model built by hand sees its data as they are: space='standardised'"
        )
