"""Scores that tell rows unlike the data under a trained model: energies and, if the base has a density, log-densities."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from gebm_kit.core.errors import UsageError
from gebm_kit.core.files import write_atomic
from gebm_kit.core.html import Shown
from gebm_kit.core.interfaces import Dataset, HasDensity
from gebm_kit.core.model import GEBM, LatentPotential
from gebm_kit.core.paths import user_path
from gebm_kit.core.progress import OnProgress, counted, ignore
from gebm_kit.engine.likelihood.class_densities import (
    ByClass,
    ClassLogPartition,
    class_fields,
    labels_of_rows,
    scores_by_class,
)
from gebm_kit.engine.likelihood.estimate_log_partition import Method
from gebm_kit.engine.likelihood.log_densities import check_density, densities
from gebm_kit.engine.likelihood.log_partition import ROWS_AT_ONCE, LogPartition
from gebm_kit.engine.likelihood.model_fit import energies
from gebm_kit.engine.likelihood.nll import Space
from gebm_kit.engine.likelihood.ranking import MOST_RANKED, RankBy, contradictions, far_from_data, rank_by
from gebm_kit.engine.likelihood.row_sources import Rows, sourced
from gebm_kit.engine.likelihood.rows_html import rows_sections
from gebm_kit.engine.likelihood.usable_rows import BadRows, RowNumbers, usable_rows
from gebm_kit.engine.likelihood.user_rows import as_data, model_of
from gebm_kit.engine.process.devices import placed
from gebm_kit.engine.process.progress_bar import check_progress, progress_shown

if TYPE_CHECKING:
    from gebm_kit.engine.run_directory.calibrated import Beta
    from gebm_kit.engine.run_directory.run import Run


SCORE_SUFFIXES = (".csv", ".npz")
"""Files that `RowScores.save` writes."""


@dataclass(frozen=True, repr=False)
class RowScores(Shown):
    """Scores of N rows.

    Attributes:
        energy: ``beta E(x)``, (N,) float64, up to a constant; high where the model does not expect data. Of a model with
            classes ``beta E(x, y)`` where the rows' class is given; else ``-log q(x) / b(x)`` of the mixture of its classes,
            None where that is not known.
        log_density: ``log q(x) = log b(x) - beta E(x) - A`` in nats, (N,); None where the base has no density.
        log_base: ``log b(x)``, (N,), or None.
        log_partition: A with its error, or None; of rows of one class, its A_y.
        space: the space of the densities, ``raw`` or ``standardised``; None without densities.
        inverse_temperature: beta.
        classes: of a model with classes, where the rows' class is not given: the rows under each class, and the
            probabilities of the classes; else None.
        log_partitions: of a model with classes, every A_y that was needed, by label.
        rows: numbers of the scored rows in what was given, and the rows that were left out.
        warnings: sentences about rows whose energy contradicts their density, or is a guess.
    """

    energy: Tensor | None
    log_density: Tensor | None
    log_base: Tensor | None
    log_partition: LogPartition | None
    space: Space | None
    inverse_temperature: float
    classes: ByClass | None = None
    log_partitions: Mapping[int, LogPartition] | None = None
    rows: RowNumbers = field(default_factory=RowNumbers)
    warnings: tuple[str, ...] = ()

    @property
    def rank_by(self) -> RankBy | None:
        """The column that ranks rows by how little they belong, and why; None where neither density nor energy is known."""
        return rank_by(self.energy, self.log_density)

    def most_unlikely(self, num: int = MOST_RANKED) -> list[int]:
        """Return the numbers, from 1, of the rows that belong least by `rank_by`, the most unlikely one first.

        Raises:
            UsageError: neither density nor energy is known.
        """
        by = self.rank_by
        if by is None:
            raise UsageError("these rows have neither a density nor an energy to rank by; see their values by class")
        values = self.columns()[by.column]
        return self.rows.of((values if by.lowest_first else -values).argsort(stable=True)[:num].tolist())

    def __len__(self) -> int:
        return len(next(iter(self.columns().values())))

    def _summary(self) -> str:
        return f"RowScores({len(self):,} rows: {', '.join(self.columns())}; beta {self.inverse_temperature:g})"

    def _sections(self) -> Iterator[str]:
        return rows_sections(self.columns(), self.log_partition)

    def columns(self) -> dict[str, Tensor]:
        """Return the available ones of ``energy``, ``log_density`` and ``log_base``, by name, then those of ``classes``."""
        named = {"energy": self.energy, "log_density": self.log_density, "log_base": self.log_base}
        found = {name: values for name, values in named.items() if values is not None}
        return found if self.classes is None else found | self.classes.columns()

    def as_dict(self) -> dict[str, Any]:
        """Return what all rows share, and the means over them, as plain JSON."""
        return {
            "num_rows": len(self),
            "columns": list(self.columns()),
            "mean_energy": None if self.energy is None else self.energy.mean().item(),
            "mean_log_density": None if self.log_density is None else self.log_density.mean().item(),
            "inverse_temperature": self.inverse_temperature,
            "space": self.space,
            "log_partition": None if self.log_partition is None else self.log_partition.as_dict(),
            "rank_by": None if self.rank_by is None else self.rank_by.as_dict(),
            "most_unlikely": [] if self.rank_by is None else self.most_unlikely(),
            "warnings": list(self.warnings),
            **self.rows.as_dict(),
            **class_fields(self.classes, self.log_partitions),
        }

    def save(self, path: str | Path) -> None:
        """Write a .csv (row number from 1, then `columns`) or a .npz (an array for each column), completely or not at all.

        Rows keep the numbers that they had in what was given. A .npz has them, as ``row``, where rows were left out.

        Raises:
            UsageError: another suffix, or the path can't be written.
            RunFailed: the disk is full.
        """
        place = check_score_output(path)
        columns = {name: values.tolist() for name, values in self.columns().items()}
        if place.suffix.lower() == ".npz":
            archive, arrays = io.BytesIO(), {name: np.array(values) for name, values in columns.items()}
            if self.rows.numbers is not None:
                arrays["row"] = self.rows.numbers.numpy()
            np.savez(archive, **arrays)  # type: ignore[arg-type]  # numpy's stub takes a name for allow_pickle
            write_atomic(place, archive.getvalue())
            return
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["row", *columns])
        rows = zip(self.rows.of(range(len(self))), *columns.values(), strict=True)
        writer.writerows([number, *map(repr, row)] for number, *row in rows)
        write_atomic(place, text.getvalue().encode())


def check_score_output(path: str | Path) -> Path:
    """Check the path of a file for scores, and return it.

    Raises:
        UsageError: the suffix is not one of `SCORE_SUFFIXES`.
    """
    place = user_path(path)
    if place.suffix.lower() not in SCORE_SUFFIXES:
        raise UsageError(f"scores are written to {' or '.join(SCORE_SUFFIXES)}, got {place}")
    return place


def score(
    run_or_model: Run | GEBM | str | Path,
    rows: Rows,
    *,
    labels: int | Sequence[int] | Tensor | np.ndarray | None = None,
    inverse_temperature: Beta | None = None,
    space: Space | None = None,
    log_partition: Method | None = None,
    seed: int | None = None,
    device: str | None = None,
    bad_rows: BadRows = "stop",
    progress: bool | None = None,
    on_progress: OnProgress | None = None,
) -> RowScores:
    """Compute the energies of ``rows`` (N, *D) and, if the base has a density, their log-densities in nats.

    Rows are a tensor or an array (N, *D), a data frame, or the path of a file, as `gebm-kit score RUN FILE` reads it. For
    a run whose dataset standardises, all of them are measurements like those in its file. For any other run or model,
    tensors and arrays are data as the model sees it. Columns of frames and files are matched by name with the run's data.
    Arguments that are None come from the run's recipe; for a hand-built model, from the defaults.

    Rows of a model with classes are scored as points of the class in ``labels``. Without ``labels`` they are scored under
    every class, with the probability of each where Bayes' rule gives one:
    see `gebm_kit.engine.likelihood.class_densities`.

    Args:
        labels: of a model with classes, one class for all rows or the class of each, (N,); None: not known.
        inverse_temperature: beta; ``calibrated``: what the run's last evaluation found.
        space: the space of the log-densities; ``raw`` needs a dataset that states the Jacobian of its preprocessing.
        log_partition: how A is estimated, as in the recipe key ``eval.log_partition``.
        seed: seed of the base draws and populations behind A.
        bad_rows: ``skip`` leaves out rows that are not finite, with a warning; the others keep their numbers (`rows`).
        progress: True: show progress; False: do not; None: on a terminal or in a notebook.
        on_progress: called with each `gebm_kit.core.progress.Progress`; nothing is shown then.

    Raises:
        UsageError: neither a run nor a model; rows of another type; ``space="raw"`` for a base without a density
            or a dataset that states no Jacobian; labels of a model without classes, or not one class for each row.
        DataError: rows that do not fit the model or are not finite.
    """
    check_progress(progress, on_progress)
    model, dataset, settings = model_of(
        run_or_model,
        inverse_temperature=inverse_temperature,
        space=space,
        method=log_partition,
        seed=seed,
        device=device,
    )
    if space == "raw":  # only the argument raises; a recipe's ``nll.space`` is ignored where there is no density
        check_density(model, dataset, space)
    given = sourced(rows, "rows", model.data_shape, dataset, bad_rows)
    classes = labels_of_rows(model, labels, len(given.rows) if given.rows.ndim else 0)
    kept, numbers = usable_rows(given.rows, bad_rows, names=given.names, source=given.source, known=given.bad)
    classes = None if classes is None else numbers.chosen(classes)
    about = {"names": given.names, "source": given.source, "numbers": numbers, **settings}
    with progress_shown(progress, on_progress) as report:
        return row_scores(model, dataset, kept, labels=classes, on_progress=report, **about)


def row_scores(
    model: GEBM,
    dataset: Dataset | None,
    rows: Tensor,
    *,
    inverse_temperature: float,
    space: Space,
    method: Method,
    seed: int,
    device: str | None,
    names: tuple[str, ...] = (),
    source: str = "the data",
    block_size: int | None = None,
    labels: Tensor | None = None,
    numbers: RowNumbers | None = None,
    on_progress: OnProgress = ignore,
) -> RowScores:
    """Compute the scores of `score`, with nothing left to a recipe.

    Args:
        labels: the class of each row, (N,), for a model with classes; None: not known.
        names: names of the rows' columns, () without names.
        source: where the rows come from, for messages.
        numbers: which rows these are of what was given; None: all.
    """
    base: object = model.base
    numbers = numbers or RowNumbers()
    if isinstance(base, HasDensity):
        found = densities(
            model,
            dataset,
            rows,
            inverse_temperature=inverse_temperature,
            space=space,
            method=method,
            seed=seed,
            device=device,
            names=names,
            source=source,
            block_size=block_size,
            labels=labels,
            on_progress=on_progress,
        )
        return RowScores(
            found.tilt, found.gebm, found.base, found.log_partition, space, inverse_temperature,
            found.classes, found.log_partitions, numbers,
            tuple(contradictions(found.tilt, found.gebm, found.base, numbers)),
        )  # fmt: skip
    x = as_data(rows, names, source, model, dataset)
    far = tuple(far_from_data(x, dataset, numbers))
    if model.conditional:
        estimate = ClassLogPartition(inverse_temperature, method, seed, block_size)
        scored = scores_by_class(model, x, labels, estimate, device, on_progress=on_progress)
        of_classes = (scored.classes, scored.log_partitions)
        return RowScores(scored.energy, None, None, None, None, inverse_temperature, *of_classes, numbers, far)
    with (
        placed(model, device) as (where, dtype),
        LatentPotential(model, inverse_temperature, block_size=block_size or ROWS_AT_ONCE),
    ):
        tilt = inverse_temperature * energies(model, x, where, dtype, counted(on_progress, "rows", len(x)))
    return RowScores(tilt, None, None, None, None, inverse_temperature, rows=numbers, warnings=far)
