"""Which score ranks rows by how little they belong, and where the energy contradicts the density."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gebm_kit.core.interfaces import Dataset, HasUnits
from gebm_kit.engine.datasets.held_out import evenly_spaced_rows
from gebm_kit.engine.likelihood.usable_rows import RowNumbers, in_words

UNLIKELY = 0.01
"""Share of rows that a base expects least, among which low energies are looked for."""

LOW = 0.1
"""Share of rows whose energies count as low."""

FEW = 20
"""Rows below which quartiles say little."""

FAR = 10.0
"""Nats below the median that make a row of few stand out; of more, three times the distance of the quartiles (Tukey)."""

OUTSIDE = 0.5
"""How far a value lies beyond the training data, relative to their range, for the energy to be a guess."""

MOST_RANKED = 10
"""Most rows that are named as the most unlikely ones."""

BY_DENSITY = (
    "the density of the model falls off where the base's does, so that a row far from all data ranks as unlikely; the "
    "energy alone compares the data with the base, and says nothing about rows far from both"
)
BY_ENERGY = (
    "the base has no density, so there is nothing else; the energy compares the data with the base, and says nothing about "
    "rows far from both: such a row may have any energy, even the lowest"
)


@dataclass(frozen=True, slots=True)
class RankBy:
    """The column to rank rows by.

    Attributes:
        column: its name.
        lowest_first: whether the lowest values are the most unlikely rows, as for a log-density.
        reason: why this one, in a sentence.
    """

    column: str
    lowest_first: bool
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {
            "column": self.column,
            "most_unlikely": "lowest" if self.lowest_first else "highest",
            "reason": self.reason,
        }


def rank_by(energy: Tensor | None, log_density: Tensor | None) -> RankBy | None:
    """Return the column to rank by: the log-density, or the energy of a model without one; None without both."""
    if log_density is not None:
        return RankBy("log_density", True, BY_DENSITY)
    return None if energy is None else RankBy("energy", False, BY_ENERGY)


def contradictions(
    energy: Tensor | None, log_density: Tensor | None, log_base: Tensor | None, rows: RowNumbers
) -> list[str]:
    """Say where the energy contradicts the density of the base; one sentence for each kind of contradiction.

    A row stands out if it is among the 1 % that the base expects least, and its log-density lies below the lower quartile by
    more than three times the distance of the quartiles (of fewer than 20 rows: 10 nats below the median).
    """
    if energy is None or log_density is None or log_base is None or len(energy) < 2:
        return []
    count, said = len(energy), []
    stand_out = _lowest(log_base, UNLIKELY) & (log_base < _fence(log_base))
    low = stand_out & _lowest(energy, LOW)
    if bool(low.any()):
        named, least = _rows(low, rows, log_base), max(1, math.ceil(UNLIKELY * count))
        said.append(
            f"{named}: among the {least:,} of {count:,} rows that the base expects least, and among the {LOW:.0%} with the "
            "lowest energies. By the energy they would pass as typical; rank by log_density"
        )
    lifted = stand_out & (log_density > float(np.quantile(log_density.numpy(), LOW)))
    if bool(lifted.any()):
        said.append(
            f"{_rows(lifted, rows, log_base)}: the base all but excludes them, and the energy lifts their log_density above "
            f"that of {LOW:.0%} of the rows. Where a row is far from all data the energy is a guess: look at log_base too"
        )
    return said


def far_from_data(x: Tensor, dataset: Dataset | None, rows: RowNumbers) -> list[str]:
    """Say which rows lie far outside the range of the training data in some column, where an energy is a guess.

    Args:
        x: rows as the model sees them, (N, D); nothing is said of other shapes.
        dataset: the data of the run; None, or their units alone: the rows are not known.
    """
    if not isinstance(dataset, Dataset) or x.ndim != 2:
        return []
    train = evenly_spaced_rows(dataset.split("train"), "train data").double()
    low, high = train.amin(0), train.amax(0)
    reach = OUTSIDE * (high - low)
    outside = (x.double() < low - reach) | (x.double() > high + reach)
    far = outside.any(1)
    if not bool(far.any()):
        return []
    first = int(far.nonzero()[0])
    column = int(outside[first].nonzero()[0])
    known: object = dataset
    name, ends, value = str(column + 1), torch.stack([low, high]), x[first : first + 1].double()
    if isinstance(known, HasUnits):
        name, ends, value = known.units.columns[column], known.units.scaled(ends), known.units.scaled(value)
    number, least, most = rows.of([first])[0], float(ends[0, column]), float(ends[1, column])
    return [
        f"{_rows(far, rows)}: far outside the training data (row {number}: {float(value[0, column]):.6g} in column "
        f"{name!r}, which goes from {least:.6g} to {most:.6g}). The energy is a guess there, and may be low: "
        "take such rows for unlikely whatever it is"
    ]


def _rows(which: Tensor, rows: RowNumbers, order: Tensor | None = None) -> str:
    """Name rows; those with the lowest values of ``order`` first."""
    places = which.nonzero().flatten()
    places = places if order is None else places[order[places].argsort(stable=True)]
    numbers = rows.of(places.tolist())
    return f"{'row' if len(numbers) == 1 else f'{len(numbers):,} rows,'} {in_words([str(n) for n in numbers])}"


def _lowest(values: Tensor, share: float) -> Tensor:
    """Return which values are among the lowest ``share``, at least one; NaN counts as low."""
    values = values.nan_to_num(nan=-math.inf)
    return values <= values.kthvalue(max(1, math.ceil(share * len(values)))).values


def _fence(values: Tensor) -> float:
    finite = values[values.isfinite()]
    if len(finite) < FEW:
        return float(finite.median()) - FAR if len(finite) else -math.inf
    low, high = (float(value) for value in np.quantile(finite.numpy(), [0.25, 0.75]))
    return low - 3 * (high - low)
