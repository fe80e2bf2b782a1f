"""Your own arrays: npz, npy, safetensors, csv or parquet."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from gebm_kit.core.components import Injected, Range, check_arguments
from gebm_kit.core.errors import DataError, UsageError
from gebm_kit.core.interfaces import SplitName
from gebm_kit.core.paths import user_path
from gebm_kit.core.pixels import scale_bytes
from gebm_kit.core.stacked_rows import StackedRows
from gebm_kit.core.units import TableUnits
from gebm_kit.data.array_files import Found, checked, column_names, label_ids, read_arrays, scale
from gebm_kit.data.array_images import TOPS, Layout, Pixels, as_numbers, as_rows, facts
from gebm_kit.data.class_texts import class_indices
from gebm_kit.data.columns import Missing, open_table, read_table
from gebm_kit.data.grids import grid_of_some
from gebm_kit.data.readings import reading
from gebm_kit.data.table_reading import BadRows
from gebm_kit.data.tables import TABLE_SUFFIXES, load
from gebm_kit.data.tensors import TensorDataset, check_fractions, in_words, split_indices


class Arrays(TensorDataset):
    """Rows of an array, split at random into train, valid and test.

    Shapes: (N,) and (N, D) are N points; (N, H, W), (N, C, H, W) and (N, H, W, C) with C of 1 or 3 are N images (C, H, W).
    A shape that can be read in two ways, such as (N, 32, 3), is refused until ``layout`` chooses.

    Numbers: images of unsigned bytes are scaled from 0..255 to [-1, 1]; all other numbers are kept as they are, in single
    precision (``standardise`` is computed in double precision first). Images of other types whose numbers look like grey
    levels are refused until ``pixels`` chooses, and so are unsigned bytes of 0 and 1 alone.

    The split does not look for repeated rows: remove duplicates first, or equal rows may be in different parts.

    Args:
        path: .npz, .npy, .safetensors, .csv (UTF-8; commas, semicolons or tabs; with or without a header) or, with pyarrow,
            .parquet, relative to the directory where the command is started.
        key: name of the array in a .npz or .safetensors file; without it the only array, or the one called ``x``.
        labels: class labels: a name in the same archive, a column of a table (its number from 1 if there is no header), or
            for .npy the name of another .npy file beside it. They are ids: the K different ones, sorted, become classes 0 to
            K - 1, and name them. A column may hold whole numbers or text.
        valid_fraction, test_fraction: shares of the rows; the rest is for training.
        standardise: subtract the mean and divide by the standard deviation of the *training* rows: per column for points,
            per channel for images. A constant column is only centred.
        value_range: [low, high] that every value must lie in (checked); bases then end in a tanh with that range. None:
            unbounded.
        seed: seed of the split.
        layout: how the axes are read: ``points`` makes each row a vector, ``grey`` is (N, H, W), ``channels-first`` is
            (N, C, H, W), ``channels-last`` is (N, H, W, C).
        pixels: what the numbers are: ``byte`` (0..255), ``unit`` (0..1) and ``uint16`` (0..65535) are scaled to [-1, 1],
            ``keep`` keeps them.
        columns: the columns of a .csv or .parquet file to keep, by name or by number from 1; None: all but row labels.
        missing: ``refuse`` a missing value, or ``drop`` its row.
        header: whether the first line of a .csv holds names; None: judge by its fields.

    Attributes:
        units: names, units and grids of the columns, for points alone.

    Raises:
        DataError: the file or a value in it can't be used; the message names the row and the column.
        UsageError: parameters that contradict each other.
    """

    how_to_label = (
        "Name the labels, data.labels=...: an array of the same archive, a column of a table, or for .npy another .npy file "
        "beside it."
    )

    def __init__(
        self,
        path: str,
        key: str | None = None,
        labels: str | None = None,
        valid_fraction: Annotated[float, Range(0, 1, low_open=True, high_open=True)] = 0.1,
        test_fraction: Annotated[float, Range(0, 1, low_open=True, high_open=True)] = 0.2,
        standardise: bool = False,
        value_range: list[float] | None = None,
        seed: int = 0,
        layout: Layout = "auto",
        pixels: Pixels = "auto",
        columns: list[str] | None = None,
        missing: Missing = "refuse",
        header: bool | None = None,
        *,
        directory: Annotated[Path, Injected] = Path(),
    ) -> None:
        check_arguments(self, valid_fraction=valid_fraction, test_fraction=test_fraction, missing=missing)
        check_arguments(self, layout=layout, pixels=pixels)
        check_fractions(valid_fraction, test_fraction)
        interval = _interval(value_range, standardise)
        file, found = self._read(directory, path, key, labels, columns, missing, header)
        self._layout, self._pixels, self._file, self._notes = layout, pixels, file, list(found.notes)
        names, given_labels, classes = found.columns, found.labels, found.classes
        rows, kind = as_rows(found.rows, layout, file), found.kind
        del found  # the rows as they were, which may be as large as those of another type
        self._before = f"{kind or _type(rows)} in {_span(rows)}"
        decided = pixels == "auto" and (interval is not None or standardise) and rows.dtype != torch.uint8
        self._kept = decided or pixels == "keep"  # a range or standardise says that the numbers are measurements
        rows = as_numbers(rows, "keep" if decided else pixels, file)
        if rows.dtype == torch.uint8 or pixels not in ("auto", "keep"):
            if interval not in (None, (-1.0, 1.0)):
                raise UsageError(f"{file} holds grey levels, which are scaled to [-1, 1]; leave value_range out")
            interval = None if standardise else (-1.0, 1.0)
            rows = scale_bytes(rows) if standardise and rows.dtype == torch.uint8 else rows
        else:
            rows = checked(rows, interval, names, file, standardise)
        index = self._index(len(rows), valid_fraction, test_fraction, seed)
        parts: dict[SplitName, Tensor] = {part: rows[where] for part, where in index.items()}
        if standardise:
            parts = self._standardise(parts, rows, names)
        elif rows.ndim == 2:
            num = rows.shape[1]
            self._set_units(rows, TableUnits(column_names(names, num), (0.0,) * num, (1.0,) * num))
        split_labels: dict[SplitName, Tensor] | None = None
        if given_labels is not None:
            ids = label_ids(given_labels, len(rows), file)
            split_labels = {part: ids[where] for part, where in index.items()}
        count, called = (len(classes), classes) if classes else (None, None)
        self._fill(parts, value_range=interval, labels=split_labels, num_classes=count, class_names=called)
        self._after = "standardised, " * standardise + f"float32 in {_span(*parts.values())}"

    @staticmethod
    def of_rows(given: StackedRows, **parameters: Any) -> Arrays:
        """Return the dataset of rows in memory, with the parameters of one that don't name what is in a file."""
        return _GivenArrays(given, **parameters)

    def _read(
        self, directory: Path, path: str, key: str | None, labels: str | None, columns: list[str] | None,
        missing: Missing, header: bool | None,
    ) -> tuple[Path, Found]:  # fmt: skip
        file = directory / user_path(path, error=DataError)
        return file, read_arrays(file, key, labels, columns, missing, header)

    def _index(self, num: int, valid_fraction: float, test_fraction: float, seed: int) -> dict[SplitName, Tensor]:
        return split_indices(num, valid_fraction, test_fraction, seed)

    def describe_reading(self) -> str:
        """Return one line about what was read."""
        images = "" if len(self.data_shape) == 1 else f"pixels: {self._pixels}, layout: {self._layout}"
        columns = f"columns: {in_words(self.units.columns)}" if hasattr(self, "units") else ""
        notes = [images, columns, *self._notes]
        return reading(self, str(self._file), self._before, after=self._after, notes=notes)

    def standardised(self, rows: Tensor) -> Tensor:
        """Return measurements of a table as the model sees them; (N, D) -> (N, D) float32."""
        return self.units.seen(rows)

    def measured(self, rows: Tensor) -> Tensor:
        """Return rows of a table that the model sees as measurements, on the grids of their columns; (N, D) -> (N, D)
        float64. The inverse of `standardised`. Nothing is clipped.

        Raises:
            UsageError: the data are images.
        """
        if len(self.data_shape) != 1:
            raise UsageError(f"measured is for rows of a table; this data has the shape {tuple(self.data_shape)}")
        return self.units.measured(rows)

    @classmethod
    def rows_of_file(
        cls,
        file: Path,
        key: str | None,
        data_shape: Sequence[int],
        dataset: object,
        wanted: tuple[str, ...] | None,
        choose: Callable[[tuple[str, ...], tuple[str, ...], str], list[int]],
        bad_rows: BadRows = "stop",
    ) -> tuple[Tensor, tuple[str, ...], Mapping[int, str]]:
        """Read a user's rows for a model as they stand in the file, the names of their columns, and what is wrong with rows.

        Images of bytes are scaled to [-1, 1], as in training. Columns that are not wanted may hold anything.

        Args:
            data_shape: shape of a data point of the model.
            dataset: the data that the model was trained on, or None.
            wanted: names of their columns; None: all columns but row labels are read.
            choose: returns the indices of the wanted columns (second) among the names of a table (first); third: the file.
            bad_rows: ``skip``: rows of a table that can't be used hold NaN, and are named with the reason.

        Raises:
            DataError: the file can't be read.
        """
        if len(data_shape) != 1:
            if file.suffix.lower() not in TABLE_SUFFIXES:
                return cls.image_rows(load(file, key, None).rows, file, dataset), (), {}
            table = read_table(file, key, bad_rows=bad_rows)
            return cls.image_rows(table.rows, file, dataset), (), table.bad
        opened = open_table(file, key)
        row_labels = {opened.names[place] for place in (*opened.unnamed, *opened.nameless)} - {*(wanted or ())}
        names = tuple(name for name in opened.names if name not in row_labels)
        places = range(len(names)) if wanted is None else choose(names, wanted, str(file))
        table = read_table(file, key, [names[place] for place in places], bad_rows=bad_rows)
        return table.rows, table.columns, table.bad

    @classmethod
    def image_rows(cls, rows: Tensor, source: Path, dataset: object = None) -> Tensor:
        """Return rows as ``dataset`` reads its own if that is `Arrays`, otherwise as `Arrays` does by default.

        Raises:
            DataError: the rows are neither points nor images, or can be read in two ways.
        """
        if isinstance(dataset, Arrays):
            return dataset.as_read(rows, source)
        found = as_numbers(as_rows(rows, "auto", source), "auto", source)
        return scale_bytes(found) if found.dtype == torch.uint8 else found

    def _standardise(
        self, parts: dict[SplitName, Tensor], rows: Tensor, names: tuple[str, ...]
    ) -> dict[SplitName, Tensor]:
        """Standardise all parts by the training rows, and keep the units if the rows are those of a table."""
        mean, std = scale(parts["train"])
        if mean.ndim == 2:
            self.columns = column_names(names, mean.shape[1])
            self._set_units(rows, TableUnits(self.columns, tuple(mean[0].tolist()), tuple(std[0].tolist())))
            self.log_det = -sum(math.log(value) for value in self.units.std)
        return {name: ((part.double() - mean) / std).float() for name, part in parts.items()}

    def _set_units(self, rows: Tensor, units: TableUnits) -> None:
        """Keep the units of a table; ``rows`` are scaled where ``pixels`` says so, and the units undo that too."""
        if self._pixels in TOPS:
            half = TOPS[self._pixels] / 2
            rows = half * rows.double() + half if rows.dtype != torch.uint8 else rows
            units = replace(
                units,
                mean=tuple(half * value + half for value in units.mean),
                std=tuple(half * value for value in units.std),
            )
        self.units = units.with_grid(rows, grid_of_some(rows))

    def as_read(self, rows: Tensor, source: Path) -> Tensor:
        """Return rows of another file as these were read, but not standardised.

        Raises:
            DataError, UsageError: as in the constructor.
        """
        pixels: Pixels = "keep" if self._kept and rows.dtype != torch.uint8 else self._pixels
        found = as_numbers(as_rows(rows, self._layout, source), pixels, source)
        return scale_bytes(found) if found.dtype == torch.uint8 else found


class _GivenArrays(Arrays):
    """Arrays that are in memory already."""

    def __init__(self, given: StackedRows, **parameters: Any) -> None:
        self._given = given
        super().__init__(given.source, **parameters)

    def _read(
        self, directory: Path, path: str, key: str | None, labels: str | None, columns: list[str] | None,
        missing: Missing, header: bool | None,
    ) -> tuple[Path, Found]:  # fmt: skip
        given = self._given
        ids, classes = (None, ()) if given.labels is None else class_indices(given.labels, f"labels of {given.source}")
        return Path(given.source), Found(given.rows, given.columns, ids, classes, given.notes)

    def _index(self, num: int, valid_fraction: float, test_fraction: float, seed: int) -> dict[SplitName, Tensor]:
        given = self._given
        return given.parts(split_indices(given.counts["train"], valid_fraction, test_fraction, seed))


def _type(rows: Tensor) -> str:
    return str(rows.dtype).removeprefix("torch.")


def _span(*parts: Tensor) -> str:
    """Write the range of all numbers."""
    spans = [facts(part) for part in parts if part.numel()]
    low, high = min((span[0] for span in spans), default=math.nan), max((span[1] for span in spans), default=math.nan)
    if parts[0].dtype == torch.uint8 and len(parts) > 1:  # rows of a dataset, which are scaled when read
        low, high = low / 127.5 - 1, high / 127.5 - 1
    digits = 6 if f"{low:g}" != f"{high:g}" else 15
    return f"[{low:.{digits}g}, {high:.{digits}g}]"


def _interval(value_range: list[float] | None, standardise: bool) -> tuple[float, float] | None:
    if value_range is None:
        return None
    if standardise:
        raise UsageError("standardised data has no fixed range: give either standardise or value_range, not both")
    if len(value_range) != 2 or not value_range[0] < value_range[1]:
        raise UsageError(f"value_range is [low, high] with low < high, got {value_range}")
    return float(value_range[0]), float(value_range[1])
