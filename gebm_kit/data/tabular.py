"""Tables of measurements for density estimation.

References:
    A note on the evaluation of generative models. L. Theis, A. van den Oord, M. Bethge, ICLR 2016.
    https://arxiv.org/abs/1511.01844 (Section 3.1: why measurements are dequantised before a density is fitted)
    Masked Autoregressive Flow for Density Estimation. G. Papamakarios et al., NeurIPS 2017.
    https://arxiv.org/abs/1705.07057 (the splits, a tenth for testing and a tenth of the rest for validation)
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
from torch import Tensor

from gebm_kit.core.components import Injected, Range, check_arguments
from gebm_kit.core.errors import DataError
from gebm_kit.core.interfaces import SplitName
from gebm_kit.core.paths import user_path
from gebm_kit.core.precision import check_single_precision
from gebm_kit.core.seeds import stream
from gebm_kit.core.stacked_rows import StackedRows
from gebm_kit.core.units import TableUnits
from gebm_kit.data.class_texts import class_indices
from gebm_kit.data.columns import Missing, check_finite, read_table, table_classes
from gebm_kit.data.grids import resolution
from gebm_kit.data.readings import reading
from gebm_kit.data.tensors import SPLITS, TensorDataset, in_words, range_in_words

MOST_VALID_ROWS = 1000
"""Most rows of the validation part: enough for a mean log-density, and the rest are better used for training."""

ROUNDING = 1e-14
"""Least spread of a column, as a share of its mean: less is what double precision makes of one value."""

Share = Annotated[float, Range(0, 1, low_open=True, high_open=True)]


class Tabular(TensorDataset):
    """Rows of D numbers, prepared for density estimation: dequantised, split, standardised by the training part alone.

    **Dequantised**: noise uniform on [-r/2, r/2] is added to a column whose values are multiples of r (`resolution`).
    Without the noise, a density could grow without bound on the repeated values. **Split**: a tenth of the rows is for
    testing, and a tenth of the rest, at most 1,000 rows, for validation; rows that are equal before the noise stay in the
    same part. **Standardised**: ``y = (x - mean) / std`` with mean and standard deviation of the training rows.
    Log-densities of y and x then differ by a constant: ``log p(x) = log p(y) + log_det`` with ``log_det = -sum log std``.

    Args:
        path: .csv (fields between commas, semicolons or tabs), .npz, .npy, .safetensors or (with pyarrow) .parquet, relative
            to the directory where the command is started.
        key: name of the array in a .npz or .safetensors file; without it the only array, or the one called ``x``.
        columns: the columns to keep, by name or by number from 1, in this order; None: all but row labels.
        where: conditions such as ``age >= 18`` or ``kind == 'red'``, one or a list; the rows that meet all are kept. None:
            all rows. A column of text may be named here.
        origin: where the file comes from, for the error if it is missing.
        dequantise, standardise: whether to do so.
        valid_fraction: share of the rows that are not for testing.
        test_fraction: share of all rows.
        seed: seed of the split and the noise.
        missing: ``refuse`` a missing value, or ``drop`` its row.
        header: whether the first line of a .csv holds names; None: judge by its fields.
        labels: a column of class labels, by name or by number from 1; it is left out of the data. The different whole
            numbers or texts in it, sorted, become classes 0 to K - 1, and name them. None: no labels.

    Attributes:
        columns: names of the columns, or their numbers from 1, as text, if the file has no names.
        mean, std: mean and standard deviation of the training rows after dequantisation, (D,) float64; 0 and 1 without
            ``standardise``.
        resolution: r of each column, (D,) float64; 0 where no noise was added.
        units: names, units and grids of the columns.
        log_det: log |det dy/dx|, in nats.

    Raises:
        DataError: the file can't be used: a missing or non-finite value, text, a constant column, too few rows. One message
            names all columns that can't be used, and its hint those that can.
        UsageError: an argument is out of its range.
    """

    _notes: tuple[str, ...]
    _kind: str
    how_to_label = "Name the column of classes: data.labels=COLUMN."

    def __init__(
        self,
        path: str,
        key: str | None = None,
        columns: list[str] | None = None,
        where: list[str] | str | None = None,
        origin: str | None = None,
        dequantise: bool = True,
        standardise: bool = True,
        valid_fraction: Share = 0.1,
        test_fraction: Share = 0.1,
        seed: int = 0,
        missing: Missing = "refuse",
        header: bool | None = None,
        labels: str | None = None,
        *,
        directory: Annotated[Path, Injected] = Path(),
    ) -> None:
        check_arguments(self, valid_fraction=valid_fraction, test_fraction=test_fraction, missing=missing)
        file = directory / user_path(path, error=DataError)
        table = read_table(
            file, key, columns, where, origin, missing=missing, header=header, varying=True, labels=labels
        )
        table.warn(file)
        self._notes, self._kind = table.notes(), table.kind
        classes = None if table.labels is None else table_classes(table, f"{file}, column {labels!r}")
        self._prepare(
            table.rows, table.columns, str(file), dequantise, standardise, valid_fraction, test_fraction, seed, classes
        )

    def _prepare(
        self,
        rows: Tensor,
        names: tuple[str, ...],
        source: str,
        dequantise: bool,
        standardise: bool,
        valid_fraction: float,
        test_fraction: float,
        seed: int,
        classes: tuple[Tensor, tuple[str, ...]] | None = None,
    ) -> None:
        check_density_rows(rows, names, source)
        self._source, self._before = source, range_in_words(rows).partition(" ")[2]
        self.columns = names
        measurements, steps = rows, resolution(rows)
        self.resolution = steps if dequantise else torch.zeros_like(steps)
        index = self._index(rows, valid_fraction, test_fraction, seed, source)
        noise = torch.rand(rows.shape, generator=stream(seed, "dequantise"), dtype=torch.float64) - 0.5
        rows = rows + noise * self.resolution
        train = rows[index["train"]]
        self.mean, self.std = torch.zeros_like(train[0]), torch.ones_like(train[0])
        if standardise:
            self.mean, self.std = train.mean(0), train.std(0, correction=0)
            # a spread as small as the rounding of the values
            still = (self.std <= ROUNDING * self.mean.abs()).nonzero().flatten().tolist()
            if still:
                raise DataError(
                    f"{source}: column {names[still[0]]!r} has one value in all training rows; leave it out"
                )
        check_range(self.mean, self.std, rows, names, source)
        if not standardise:
            check_single_precision(rows, names, source, "Leave standardise=true, which subtracts the mean first.")
        self.log_det = -float(self.std.log().sum())
        parts = {part: self.standardised(rows[where]) for part, where in index.items()}
        if classes is None:
            self._fill(parts)
        else:
            ids, called = classes
            labels = {part: ids[where] for part, where in index.items()}
            self._fill(parts, labels=labels, num_classes=len(called), class_names=called)
        units = TableUnits(names, tuple(self.mean.tolist()), tuple(self.std.tolist()))
        self.units = units.with_grid(measurements, steps.tolist())

    @staticmethod
    def of_rows(given: StackedRows, **parameters: Any) -> Tabular:
        """Return the dataset of rows in memory, with the parameters of one that don't name what is in a file."""
        return _GivenTable(given, **parameters)

    def _index(
        self, rows: Tensor, valid_fraction: float, test_fraction: float, seed: int, source: str
    ) -> dict[SplitName, Tensor]:
        return _parts(rows, valid_fraction, test_fraction, seed, source)

    def describe_reading(self) -> str:
        """Describe what was read, see `HasReading`."""
        noisy = int((self.resolution > 0).sum())
        after = range_in_words(*(self.split(part).rows for part in SPLITS))
        treated = [f"noise added to {noisy} column(s) on a grid" if noisy else "", *self._notes]
        return reading(
            self,
            self._source,
            f"{self._kind} {self._before}",
            after=after if self.std.eq(1).all() else f"standardised, {after}",
            notes=[f"columns: {in_words(self.columns)}", *treated],
        )

    def standardised(self, rows: Tensor) -> Tensor:
        """Return measurements as the model sees them; (N, D) -> (N, D) float32."""
        return ((rows.double() - self.mean) / self.std).float()

    def measured(self, rows: Tensor) -> Tensor:
        """Return rows that the model sees as measurements, on the grids of their columns; (N, D) -> (N, D) float64.

        The inverse of `standardised`: where a column's values are multiples of r, so are these. Nothing is clipped.
        """
        return self.units.measured(rows)


class _GivenTable(Tabular):
    """A table that is in memory already."""

    def __init__(
        self,
        given: StackedRows,
        dequantise: bool = True,
        standardise: bool = True,
        valid_fraction: Share = 0.1,
        test_fraction: Share = 0.1,
        seed: int = 0,
    ) -> None:
        check_arguments(self, valid_fraction=valid_fraction, test_fraction=test_fraction)
        self._given, self._notes, self._kind = given, given.notes, str(given.rows.dtype).removeprefix("torch.")
        classes = None if given.labels is None else class_indices(given.labels, f"labels of {given.source}")
        self._prepare(
            given.rows,
            given.columns,
            given.source,
            dequantise,
            standardise,
            valid_fraction,
            test_fraction,
            seed,
            classes,
        )

    def _index(
        self, rows: Tensor, valid_fraction: float, test_fraction: float, seed: int, source: str
    ) -> dict[SplitName, Tensor]:
        return self._given.parts(_parts(self._given.given_rows(), valid_fraction, test_fraction, seed, source))


class RedWine(Tabular):
    """1,599 red wines (vinho verde), 11 physicochemical measurements, shipped with the kit; prepared like ``tabular``.

    240 rows repeat another row; equal rows stay in the same part.

    Args:
        dequantise, standardise: whether to do so.
        seed: seed of the split and the noise.

    References:
        Wine Quality. P. Cortez et al., UCI Machine Learning Repository, 2009 (CC BY 4.0). https://doi.org/10.24432/C56S3T

    Raises:
        DataError: the installed file is damaged.
    """

    how_to_label = (
        "These wines have no classes: use a dataset with labels, such as digits, or tabular with data.labels."
    )

    def __init__(self, dequantise: bool = True, standardise: bool = True, seed: int = 0) -> None:
        file = resources.files("gebm_kit.data") / "files" / "redwine.npz"
        try:
            with resources.as_file(file) as path, np.load(path, allow_pickle=False) as archive:
                rows, names = torch.from_numpy(archive["x"]), tuple(str(name) for name in archive["columns"])
        except Exception as error:  # a missing file, a bad zip, a missing key: all mean a broken installation
            raise DataError(
                f"the red wines shipped with gebm-kit can't be read: {error}", hint="Reinstall gebm-kit."
            ) from error
        self._notes, self._kind = (), str(rows.dtype).removeprefix("torch.")
        self._prepare(rows, names, "redwine", dequantise, standardise, 0.1, 0.1, seed)


def check_density_rows(rows: Tensor, names: tuple[str, ...], source: str) -> None:
    """Raise if a density can't be fitted to the rows.

    Raises:
        DataError: a value is missing or not finite, there are too few rows, or a column is constant. The message names row
            and column.
    """
    check_finite(rows, names, source)
    if len(rows) < 3:
        what = "one row" if len(rows) == 1 else f"{len(rows)} rows"
        raise DataError(f"{source} has {what}; train, valid and test need one each")
    still = (rows == rows[:1]).all(0).nonzero().flatten().tolist()
    if still:
        listed = ", ".join(repr(names[column]) for column in still)
        raise DataError(
            f"{source}: column {listed} is constant ({float(rows[0, still[0]]):g}), so it has no density",
            hint="Leave it out: columns=[...].",
        )


def check_range(mean: Tensor, std: Tensor, rows: Tensor, names: tuple[str, ...], source: str) -> None:
    """Raise if a column is too large to be standardised, or for single precision without that.

    Raises:
        DataError: the message names the columns.
    """
    single = ((rows - mean) / std).float()
    wrong = (~(single.isfinite().all(0) & mean.isfinite() & std.isfinite())).nonzero().flatten().tolist()
    if wrong:
        listed = ", ".join(repr(names[column]) for column in wrong)
        largest = float(rows[:, wrong[0]].abs().max())
        raise DataError(f"{source}: the values of column {listed} are too large (up to {largest:g}); take another unit")


def _parts(rows: Tensor, valid: float, test: float, seed: int, source: str) -> dict[SplitName, Tensor]:
    """Return a random partition into parts of the wanted sizes, as nearly as possible with equal rows kept together."""
    _, group = torch.unique(rows, dim=0, return_inverse=True)
    sizes = torch.bincount(group)
    if len(sizes) < 3:
        raise DataError(f"{source} has {len(sizes)} different rows; train, valid and test need one each")
    num_test = max(1, round(test * len(rows)))
    num_valid = max(1, min(round(valid * (len(rows) - num_test)), MOST_VALID_ROWS))
    order = torch.randperm(len(sizes), generator=stream(seed, "split"))
    ends = sizes[order].cumsum(0)
    first = max(1, int((ends <= num_test).sum()))
    second = max(first + 1, int((ends <= num_test + num_valid).sum()))
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    where = place[group]
    parts = {"test": where < first, "valid": (where >= first) & (where < second), "train": where >= second}
    found = {name: mask.nonzero().flatten() for name, mask in parts.items()}
    if not len(found["train"]):
        raise DataError(
            f"{source}: nothing is left to train on after a test part of {test:g} and a valid part of {valid:g}"
        )
    return cast(dict[SplitName, Tensor], found)
