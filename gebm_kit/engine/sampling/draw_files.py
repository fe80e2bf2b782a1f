"""Reading draws back from the files that `Draws.save` writes."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gebm_kit.core.archives import NpzArchive
from gebm_kit.core.errors import DataError
from gebm_kit.core.packing import load_tensors
from gebm_kit.core.reading import parse_json, read_file
from gebm_kit.core.units import HasMeasured, TableUnits
from gebm_kit.engine.sampling.diagnostics import Diagnostics
from gebm_kit.engine.sampling.draws import Draws
from gebm_kit.engine.sampling.table_files import TABLE_SUFFIXES


def load_file(path: Path) -> Draws:
    """Read what `Draws.save` wrote, but for tables.

    Raises:
        DataError: the file is missing or damaged, or holds something else.
    """

    def damaged(text: str) -> DataError:
        return DataError(f"{path} holds no draws: {text.removeprefix(str(path)).lstrip(' :')}")

    if path.suffix in TABLE_SUFFIXES:
        raise DataError(
            f"{path} is a table of draws, without latent codes and diagnostics; .safetensors and .npz hold both"
        )
    if not os.path.lexists(path):
        raise DataError(f"{path} does not exist")
    try:
        if path.suffix == ".npz":
            with NpzArchive(path, error=damaged) as file:
                tensors = {name: torch.from_numpy(file.read(name)) for name in _TENSORS if name in file.names}
                text = str(file.read("diagnostics"))
                units = str(file.read("units")) if "units" in file.names else "null"
                names = str(file.read("class_names")) if "class_names" in file.names else "null"
                span = str(file.read("value_range")) if "value_range" in file.names else "null"
        else:
            content = read_file(path, error=damaged)
            tensors = load_tensors(content, path, damaged)
            length = int.from_bytes(content[:8], "little")
            header = parse_json(content[8 : 8 + length], name="its header", error=damaged)
            metadata = header.get("__metadata__") or {}
            text, units = metadata["diagnostics"], metadata.get("units", "null")
            names, span = metadata.get("class_names", "null"), metadata.get("value_range", "null")
        diagnostics = parse_json(text, name="their diagnostics", error=damaged)
        found = parse_json(units, name="their units", error=damaged)
        draws = draws_of(tensors, diagnostics_from(diagnostics), None if found is None else TableUnits.from_dict(found))
        limits = parse_json(span, name="their value range", error=damaged)
        return dataclasses.replace(
            draws,
            class_names=_names(parse_json(names, name="their classes", error=damaged), draws),
            value_range=None if limits is None else (float(limits[0]), float(limits[1])),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(f"{type(error).__name__}: {error}") from error


def _names(found: Any, draws: Draws) -> tuple[str, ...] | None:
    """Return the names of classes in a file.

    Raises:
        ValueError: they are no texts, or there is none for a label.
    """
    if found is None:
        return None
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise ValueError("class_names is not a list of texts")
    if draws.labels is None or (
        len(draws.labels) and not 0 <= int(draws.labels.min()) <= int(draws.labels.max()) < len(found)
    ):
        raise ValueError("class_names do not belong to the labels")
    return tuple(found)


_TENSORS = ("x", "z", "chain", "labels")
"""Tensors of a file of draws; only a model with classes has labels."""


def draws_of(
    tensors: Mapping[str, Tensor],
    diagnostics: Diagnostics,
    units: HasMeasured | None,
    value_range: tuple[float, float] | None = None,
) -> Draws:
    """Build draws from the tensors of a file.

    Raises:
        KeyError, ValueError: a tensor is missing, or they don't have one row for each draw.
    """
    x, z, chain = (tensors[name] for name in ("x", "z", "chain"))
    labels = tensors.get("labels")
    if labels is not None and (labels.dtype != torch.int64 or tuple(labels.shape) != (len(x),)):
        raise ValueError(f"labels are {labels.dtype} of shape {tuple(labels.shape)} for {len(x)} draws")
    if x.dim() < 1 or z.dim() != 2 or chain.dim() != 1 or not len(x) == len(z) == len(chain):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (x, z, chain))
        raise ValueError(f"x, z and chain have shapes {shapes}, which do not belong together")
    return Draws(x, z, chain, diagnostics, units=units, labels=labels, value_range=value_range)


def diagnostics_from(found: Mapping[str, Any]) -> Diagnostics:
    """Read back `Diagnostics.as_dict`: None becomes NaN again where a number belongs.

    Raises:
        TypeError: a field without default is missing, or has another type.
    """
    values: dict[str, Any] = {}
    for known in dataclasses.fields(Diagnostics):
        if known.name in found:
            value = found[known.name]
            value = math.nan if value is None and known.type == "float" else value
            if not isinstance(value, _FIELD_TYPES[str(known.type).partition("[")[0]]):
                raise TypeError(f"{known.name} is not of type {known.type}")
            values[known.name] = value
    return Diagnostics(**values)


_FIELD_TYPES: dict[str, Any] = {"int": int, "float": int | float, "str": str, "dict": dict, "str | None": str | None}
"""Types of values for each type of a field of `Diagnostics`."""
