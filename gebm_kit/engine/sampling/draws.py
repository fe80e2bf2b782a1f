"""What a sampling call returns: draws with their diagnostics, and the files that hold them."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gebm_kit.core.archives import NpzArchive
from gebm_kit.core.errors import DataError, UsageError
from gebm_kit.core.files import make_directory, write_atomic
from gebm_kit.core.model import LatentPotential
from gebm_kit.core.packing import load_tensors
from gebm_kit.core.paths import user_path
from gebm_kit.core.reading import parse_json, read_file
from gebm_kit.core.units import HasMeasured, TableUnits
from gebm_kit.engine.sampling.chains import Chains
from gebm_kit.engine.sampling.diagnostics import Diagnostics
from gebm_kit.engine.sampling.recorder import equipartition_sums, slope
from gebm_kit.engine.sampling.table_files import TABLE_SUFFIXES, check_table, table_content

SUFFIXES = (".safetensors", ".npz", *TABLE_SUFFIXES)
"""Formats that `Draws.save` writes."""


@dataclass(frozen=True, slots=True)
class Draws:
    """Draws of the model, all on the CPU.

    The last states of all chains come first, then their states ``thin`` steps earlier, and so on. The first draws are
    therefore from different chains.

    Attributes:
        x: (N, *D).
        z: latent codes in the base's own coordinates, ``x = G(z)``, (N, Z).
        chain: index of the chain that each draw comes from, (N,) int64.
        diagnostics: how good the draws are.
        records: what the recorders of all blocks recorded, for figures; see
            `gebm_kit.engine.sampling.recorder.Recorder`.
        units: names and units of the columns, for a run on a table; ``units.measured(x)`` is in the units of its file.
        chains: the ends of the chains, to continue them from; kept by `draw` where it is asked for.
        labels: class of each draw, (N,) int64, of a model with classes; otherwise None.
        class_names: what the classes are called, in the order of their indices; None where they have no names.
    """

    x: Tensor
    z: Tensor
    chain: Tensor
    diagnostics: Diagnostics
    records: tuple[Mapping[str, Tensor], ...] = field(default=(), repr=False)
    units: HasMeasured | None = field(default=None, repr=False, compare=False)
    chains: Chains | None = field(default=None, repr=False, compare=False)
    labels: Tensor | None = field(default=None, repr=False)
    class_names: tuple[str, ...] | None = field(default=None, repr=False, compare=False)

    @property
    def sampler_reason(self) -> str | None:
        """Why `auto` drew with this sampler, in one sentence; None when the sampler was named."""
        return self.diagnostics.sampler_reason

    @property
    def num_shards(self) -> None:
        """None: the draws are in one piece, unlike `ShardedDraws`."""
        return None

    def pictures(self) -> Iterator[Tensor]:
        """Yield x in one piece; `ShardedDraws` yields it in several."""
        yield self.x

    def save(self, path: str | Path, value_range: tuple[float, float] | None = None) -> Path:
        """Write the draws to a file.

        A .safetensors or .npz file holds x as the model makes it, z, chain and any labels, with the diagnostics as JSON
        (in the metadata of .safetensors) and, for a table, its ``units`` as JSON: ``columns``, ``mean`` and ``std``,
        where ``mean + std x`` are measurements. Names of classes are the JSON list ``class_names``. numpy has no bfloat16,
        so a .npz holds such draws in single precision, which changes no value.
        A .csv or .parquet file is a table of these measurements, with the columns' names. Draws of classes have the name
        of the class, or its index, in a last column.

        The file appears whole or not at all. Missing directories are created.

        Args:
            value_range: (low, high) of the data, stored with the diagnostics, to turn x into pictures later.

        Raises:
            UsageError: the suffix is another, or the file can't be written.
            RunFailed: the disk is full.
        """
        path = user_path(path)
        check_output(path, tuple(self.x.shape[1:]))
        if path.suffix in TABLE_SUFFIXES:
            make_directory(path.parent)
            write_atomic(path, table_content(path, self.x, self.units, self._classes()))
            return path
        tensors = {"x": self.x, "z": self.z, "chain": self.chain}
        if self.labels is not None:
            tensors["labels"] = self.labels
        metadata = {"schema": "1", "diagnostics": json.dumps(self.diagnostics.as_dict())}
        if value_range is not None:
            metadata["value_range"] = json.dumps([float(v) for v in value_range])
        if isinstance(self.units, TableUnits):  # a dataset's own `measured` can't be written to a file
            metadata["units"] = json.dumps(self.units.as_dict())
        if self.class_names is not None:
            metadata["class_names"] = json.dumps(self.class_names)
        if path.suffix == ".npz":
            buffer = io.BytesIO()
            arrays = {name: _array(tensor) for name, tensor in tensors.items()}
            np.savez(buffer, allow_pickle=False, **arrays, **{k: np.array(v) for k, v in metadata.items()})
            content = buffer.getvalue()
        else:
            from safetensors.torch import save

            content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
        make_directory(path.parent)
        write_atomic(path, content)
        return path

    def _classes(self) -> list[str] | None:
        """Return the class of each draw as text; None without classes."""
        if self.labels is None:
            return None
        return [str(k) if self.class_names is None else self.class_names[k] for k in self.labels.tolist()]


def _array(tensor: Tensor) -> np.ndarray:
    """Return a tensor as a numpy array; in single precision, which holds every value, if numpy lacks its type."""
    known = tensor.dtype in (torch.float16, torch.float32, torch.float64) or not tensor.is_floating_point()
    return np.asarray((tensor if known else tensor.float()).numpy())


def check_output(path: str | Path, data_shape: tuple[int, ...] | None = None) -> None:
    """Check, before anything is computed, that `Draws.save` can write to ``path``.

    Args:
        data_shape: shape of a draw; None: unknown.

    Raises:
        UsageError: the suffix is not in `SUFFIXES`, or fits no draws of that shape; ``path`` is a directory.
    """
    path = user_path(path)
    if path.suffix not in SUFFIXES:
        raise UsageError(
            "draws are written to .safetensors or .npz files, those of a table also to .csv or .parquet, not to "
            f"{path.name!r}",
            hint="A name without a suffix is a directory, into which draws are streamed.",
        )
    if path.is_dir():
        raise UsageError(f"{path} is a directory; name a file")
    if path.suffix in TABLE_SUFFIXES and data_shape is not None:
        check_table(path, data_shape)


def is_directory(out: str | Path) -> bool:
    """Return whether draws are streamed into a directory: ``out`` has no suffix."""
    return not user_path(out).suffix


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
        else:
            content = read_file(path, error=damaged)
            tensors = load_tensors(content, path, damaged)
            length = int.from_bytes(content[:8], "little")
            header = parse_json(content[8 : 8 + length], name="its header", error=damaged)
            metadata = header.get("__metadata__") or {}
            text, units = metadata["diagnostics"], metadata.get("units", "null")
            names = metadata.get("class_names", "null")
        diagnostics = parse_json(text, name="their diagnostics", error=damaged)
        found = parse_json(units, name="their units", error=damaged)
        draws = draws_of(tensors, diagnostics_from(diagnostics), None if found is None else TableUnits.from_dict(found))
        return dataclasses.replace(
            draws, class_names=_names(parse_json(names, name="their classes", error=damaged), draws)
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


def draws_of(tensors: Mapping[str, Tensor], diagnostics: Diagnostics, units: HasMeasured | None) -> Draws:
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
    return Draws(x, z, chain, diagnostics, units=units, labels=labels)


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


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive draws in the order of `Draws`, on the CPU.

    Attributes:
        start: index of the first one among all draws.
        x, z, chain: as in `Draws`.
    """

    start: int
    x: Tensor
    z: Tensor
    chain: Tensor


@dataclass(frozen=True, slots=True)
class Decoded:
    """Decoded states, on the CPU: x (N, *D), z in the base's coordinates (N, Z), `equipartition_sums` and `slope`."""

    x: Tensor
    z: Tensor
    balance: Tensor
    slope: Tensor


def decode(potential: LatentPotential, z: Tensor, rows: int) -> Decoded:
    """Decode states in normal coordinates, (N, Z), into ``x = G(z)``,
    ``rows`` at a time as the chains were evaluated."""
    x, codes, balances, slopes = [], [], [], []
    for part in z.split(rows):
        x.append(potential.data(part).cpu())
        codes.append(potential.prior.from_normal(part).cpu())
        tilt, grad = potential.tilt_and_grad(part)
        balances.append(equipartition_sums(part, grad + part).cpu())
        slopes.append(slope(tilt, grad).cpu())
    return Decoded(torch.cat(x), torch.cat(codes), torch.stack(balances).sum(0), torch.stack(slopes).amax(0))
