"""Draws as other libraries take them: a data frame of pandas, and InferenceData of ArviZ."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gebm_kit.core.errors import PluginError
from gebm_kit.core.units import HasMeasured, TableUnits
from gebm_kit.engine.sampling.table_files import whole_columns

if TYPE_CHECKING:
    from pandas import DataFrame
    from xarray import DataTree


def frame_of(
    x: Tensor, chain: Tensor, units: HasMeasured | None, labels: Sequence[str] | Sequence[int] | None
) -> DataFrame:
    """Return draws as a data frame with one line for each.

    Args:
        x: (N, *D); images and other shapes are flattened.
        chain: (N,), for the column ``chain``.
        units: names and units of a table; None: the columns are x0, x1, ...
        labels: the class of each draw, for the column ``label``; None: no classes.

    Raises:
        PluginError: pandas is missing.
    """
    pandas = _library("pandas", "draws.to_frame()", "frames")
    flat = x.detach().cpu().flatten(1) if x.ndim > 1 else x.detach().cpu().unsqueeze(1)
    names = [f"x{place}" for place in range(flat.shape[1])]
    if units is not None:
        flat, names = units.measured(flat), column_names(units) or names
    values = flat.float() if flat.dtype == torch.bfloat16 else flat
    frame = pandas.DataFrame(values.numpy(), columns=names)
    if units is not None:
        whole = zip(names, whole_columns(units, flat), strict=True)
        frame = frame.astype({name: "int64" for name, is_whole in whole if is_whole})
    if labels is not None:
        frame[_free("label", names)] = list(labels)
    frame[_free("chain", names)] = chain.cpu().numpy()
    return frame


def inference_data(
    x: Tensor,
    z: Tensor,
    chain: Tensor,
    labels: Tensor | None,
    units: HasMeasured | None,
    trace: Tensor | None,
    attributes: Mapping[str, Any],
) -> DataTree:
    """Return draws as ArviZ takes them, with the dimensions chain and draw first.

    Args:
        x, z, chain, labels: as in `gebm_kit.engine.sampling.draws.Draws`: the newest state of each chain comes first.
        units: names and units of a table, or None.
        trace: what the kit's diagnostics are computed from, (steps, chains, quantities), or None; the last is the potential.
        attributes: what is noted with the draws.

    Raises:
        PluginError: arviz-base or xarray is missing.
    """
    _library("xarray", "draws.to_arviz()", "arviz")
    arviz = _library("arviz_base", "draws.to_arviz()", "arviz")
    order = by_chain(chain)
    values = x.detach().cpu().flatten(1) if units is not None else x.detach().cpu()
    values = values if units is None else units.measured(values)
    groups = {"posterior": {"x": _array(values[order]), "z": _array(z.detach().cpu()[order])}}
    if labels is not None:
        groups["sample_stats"] = {"label": labels.cpu()[order].numpy()}
    if trace is not None and len(trace):
        states = trace.transpose(0, 1)
        groups["trace"] = {"z": _array(states[..., :-1]), "potential": _array(states[..., -1])}
    names = None if units is None else column_names(units)
    named = {} if names is None else {"coords": {"column": names}, "dims": {"x": ["column"]}}
    about = {"posterior": dict(attributes)}
    # there may be more chains than draws of each, of which ArviZ would warn
    return arviz.from_dict(groups, attrs=about, check_conventions=False, **named)


def by_chain(chain: Tensor) -> Tensor:
    """Return where the draws of each chain are, the oldest first; (N,) -> (chains, draws).

    Of each chain the newest draws are taken, as many as the chain with the fewest has.
    """
    order = torch.argsort(chain.cpu(), stable=True)  # within a chain the newest first, as draws come
    _, counts = chain.cpu()[order].unique_consecutive(return_counts=True)
    kept = int(counts.min()) if len(counts) else 0
    firsts = counts.cumsum(0) - counts
    return order[firsts[:, None] + torch.arange(kept).flip(0)]


def column_names(units: HasMeasured) -> list[str] | None:
    """Return the names of a table's columns; None where they are only counted."""
    names = list(units.columns)
    return None if names == list(TableUnits.unchanged(len(names)).columns) else names


def _free(name: str, taken: Sequence[str]) -> str:
    """Return ``name``, or with a number behind it if the data have a column of that name."""
    others = (f"{name}_{number}" for number in itertools.count(2))
    return next(word for word in itertools.chain([name], others) if word not in taken)


def _array(tensor: Tensor) -> Any:
    """Return an array: in double precision, in which the kit's R-hat is computed, but for images, which may be large."""
    if tensor.ndim <= 3:
        return tensor.double().numpy()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _library(name: str, what: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise PluginError(
            f"{what} needs {name.replace('_', '-')}, which is not installed",
            hint=f"Install it with `pip install 'gebm-kit[{extra}]'`.",
        ) from error
