"""A user's rows for a trained model: checked against the model and mapped into its space."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gebm_kit.core.arguments import check_choice, check_number, check_whole
from gebm_kit.core.errors import DataError
from gebm_kit.core.interfaces import Dataset, HasStandardisation
from gebm_kit.core.model import GEBM
from gebm_kit.core.units import HasUnits
from gebm_kit.engine.likelihood.run_data import known_data

if TYPE_CHECKING:
    from gebm_kit.engine.run_directory.calibrated import Beta
    from gebm_kit.engine.run_directory.run import Run


def model_of(
    run_or_model: Run | GEBM | str | Path,
    *,
    inverse_temperature: Beta | None,
    space: str | None,
    method: str | None,
    seed: int | None,
    device: torch.device | str | None,
) -> tuple[GEBM, Dataset | None, dict[str, Any]]:
    """Return the model, its dataset (None for a hand-built model) and the settings.

    Settings that are None come from the run's recipe; for a hand-built model, from the defaults.

    Raises:
        UsageError: it is neither a run, a path nor a model; a setting is not allowed.
    """
    from gebm_kit.engine.run_directory.calibrated import beta_for
    from gebm_kit.engine.run_directory.run import Run, subject_of

    check_whole("seed", seed)
    check_choice("space", space, ("standardised", "raw"))
    check_choice("log_partition", method, ("auto", "importance-sampling", "smc"))
    subject = subject_of(run_or_model)
    if inverse_temperature is not None:
        inverse_temperature = beta_for(subject, inverse_temperature)
    check_number("inverse_temperature (beta)", inverse_temperature)
    if isinstance(subject, Run):
        recipe, model, dataset = subject.recipe, subject.model, known_data(subject)
        space = space or recipe.nll.space
        method = method or recipe.eval.log_partition
        if inverse_temperature is None:
            inverse_temperature = beta_for(subject, recipe.sample.inverse_temperature)
        seed = recipe.eval.seed if seed is None else seed
        device = recipe.device if device is None else device
    else:
        model, dataset = subject, None
    settings = {
        "inverse_temperature": 1.0 if inverse_temperature is None else inverse_temperature,
        "space": space or "standardised",
        "method": method or "auto",
        "seed": seed or 0,
        "device": device,
    }
    return model, dataset, settings


def as_data(rows: Tensor, names: tuple[str, ...], source: str, model: GEBM, dataset: Dataset | None) -> Tensor:
    """Return rows as the model sees them, (N, *D) with N >= 1.

    For a dataset that standardises, rows are measurements. Their columns are matched by name where both sides have names,
    otherwise taken in order; rows without names are taken in order. Flat rows are reshaped to the data's shape.

    Args:
        rows: the user's rows, (N, ...).
        names: names of the columns, () without names.
        source: where the rows come from, for messages.

    Raises:
        DataError: there are no rows, the columns do not match, or a value is missing or not finite. The message names
            the row (from 1) and the column.
    """
    known: object = dataset
    if rows.ndim == 1 and math.prod(model.data_shape) == 1:
        rows = rows.unsqueeze(1)
    if rows.ndim < 2 or rows.numel() == 0:
        raise DataError(f"{source} holds an array of shape {tuple(rows.shape)}; rows of data points are needed")
    wanted = wanted_columns(dataset)
    if wanted is not None and rows.ndim == 2 and sorted(names) == sorted(wanted):  # in another order, perhaps
        rows, names = rows[:, columns_of(names, wanted, source)], wanted
    if isinstance(known, HasStandardisation):
        if rows.ndim != 2:
            raise DataError(f"{source} holds an array of shape {tuple(rows.shape)}; a table (rows, columns) is needed")
        rows = rows[:, columns_of(names or _numbers(rows.shape[1]), known.columns, source)]
        names = known.columns
    shape = tuple(model.data_shape)
    if rows.shape[1:] != shape:
        if math.prod(rows.shape[1:]) != math.prod(shape):
            listed = f"; the columns are {', '.join(names)}" if names and names != _numbers(len(names)) else ""
            raise DataError(
                f"{source} has {_described(tuple(rows.shape[1:]))}, the model was trained on {_described(shape)}{listed}",
                hint="Bring rows like those that the run was trained on.",
            )
        rows = rows.reshape(len(rows), *shape)
    _check_finite(rows, names, source)
    return known.standardised(rows) if isinstance(known, HasStandardisation) else rows


def wanted_columns(dataset: object) -> tuple[str, ...] | None:
    """Return the names of the columns that a model was trained on; None where they are only counted, or not known."""
    if isinstance(dataset, HasStandardisation):
        return dataset.columns
    names = dataset.units.columns if isinstance(dataset, HasUnits) else ()
    return None if names == _numbers(len(names)) else names


def columns_of(names: tuple[str, ...], wanted: tuple[str, ...], source: str) -> list[int]:
    """Return the indices of the ``wanted`` columns among ``names``.

    Columns are matched by name, and others are left out. Where the names of one side are only the numbers 1 to D,
    columns are taken in order, and both sides must have the same number.

    Raises:
        DataError: a column is missing, or the numbers of columns differ.
    """
    if names != _numbers(len(names)) and wanted != _numbers(len(wanted)):
        missing = [name for name in wanted if name not in names]
        if missing:
            listed, others = (", ".join(map(repr, some)) for some in (missing, [n for n in names if n not in wanted]))
            more = f"; other columns are {others}" if others else ""
            raise DataError(f"{source} has no column {listed}; the run was trained on {', '.join(wanted)}{more}")
        return [names.index(name) for name in wanted]
    if len(names) != len(wanted):
        raise DataError(
            f"{source} has {_described((len(names),))}, the run was trained on {len(wanted)}: {', '.join(wanted)}",
            hint="Leave out the others, or give the file a header with the columns' names.",
        )
    return list(range(len(names)))


def _numbers(num: int) -> tuple[str, ...]:
    """Return the numbers from 1 as names of columns."""
    return tuple(str(number + 1) for number in range(num))


def _check_finite(rows: Tensor, names: tuple[str, ...], source: str) -> None:
    """Raise DataError at the first value that is missing or not finite."""
    bad = (~torch.isfinite(rows.flatten(1))).nonzero()
    if not len(bad):
        return
    row, column = bad[0].tolist()
    value = float(rows.flatten(1)[row, column])
    what = "is missing (NaN)" if math.isnan(value) else f"holds {value:g}"
    name = repr(names[column]) if column < len(names) else str(column + 1)
    more = f" ({len(bad)} such values)" if len(bad) > 1 else ""
    raise DataError(
        f"{source}: row {row + 1}, column {name} {what}{more}",
        hint="--bad-rows skip (in Python bad_rows='skip') leaves out such rows; nothing is imputed here.",
    )


def _described(shape: tuple[int, ...]) -> str:
    """Describe the shape of a data point in words."""
    if len(shape) == 1:
        return f"{shape[0]} column{'' if shape[0] == 1 else 's'}"
    return f"data points of shape {shape}"
