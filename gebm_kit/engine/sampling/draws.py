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
from gebm_kit.core.reading import parse_json, read_file
from gebm_kit.engine.sampling.diagnostics import Diagnostics
from gebm_kit.engine.sampling.recorder import equipartition_sums

SUFFIXES = (".safetensors", ".npz")
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
    """

    x: Tensor
    z: Tensor
    chain: Tensor
    diagnostics: Diagnostics
    records: tuple[Mapping[str, Tensor], ...] = field(default=(), repr=False)

    @property
    def num_shards(self) -> None:
        """None: the draws are in one piece, unlike `ShardedDraws`."""
        return None

    def pictures(self) -> Iterator[Tensor]:
        """Yield x in one piece; `ShardedDraws` yields it in several."""
        yield self.x

    def save(self, path: str | Path, value_range: tuple[float, float] | None = None) -> Path:
        """Write x, z and chain, with the diagnostics as JSON, to a .safetensors file (in its metadata) or a .npz file.

        The file appears whole or not at all. Missing directories are created.

        Args:
            value_range: (low, high) of the data, stored with the diagnostics, to turn x into pictures later.

        Raises:
            UsageError: the suffix is another, or the file can't be written.
            RunFailed: the disk is full.
        """
        path = Path(path)
        check_output(path)
        tensors = {"x": self.x, "z": self.z, "chain": self.chain}
        metadata = {"schema": "1", "diagnostics": json.dumps(self.diagnostics.as_dict())}
        if value_range is not None:
            metadata["value_range"] = json.dumps([float(v) for v in value_range])
        if path.suffix == ".npz":
            buffer = io.BytesIO()
            arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
            np.savez(buffer, allow_pickle=False, **arrays, **{k: np.array(v) for k, v in metadata.items()})
            content = buffer.getvalue()
        else:
            from safetensors.torch import save

            content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
        make_directory(path.parent)
        write_atomic(path, content)
        return path


def check_output(path: str | Path) -> None:
    """Check, before anything is computed, that `Draws.save` can write to ``path``.

    Raises:
        UsageError: the suffix is not in `SUFFIXES`, or ``path`` is a directory.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UsageError(
            f"draws are written to {' or '.join(SUFFIXES)} files, not to {path.name!r}",
            hint="A name without a suffix is a directory, into which draws are streamed.",
        )
    if path.is_dir():
        raise UsageError(f"{path} is a directory; name a file")


def is_directory(out: str | Path) -> bool:
    """Return whether draws are streamed into a directory: ``out`` has no suffix."""
    return not Path(out).suffix


def load_file(path: Path) -> Draws:
    """Read what `Draws.save` wrote.

    Raises:
        DataError: the file is missing or damaged, or holds something else.
    """

    def damaged(text: str) -> DataError:
        return DataError(f"{path} holds no draws: {text.removeprefix(str(path)).lstrip(' :')}")

    if not os.path.lexists(path):
        raise DataError(f"{path} does not exist")
    try:
        if path.suffix == ".npz":
            with NpzArchive(path, error=damaged) as file:
                tensors = {name: torch.from_numpy(file.read(name)) for name in ("x", "z", "chain")}
                text = str(file.read("diagnostics"))
        else:
            content = read_file(path, error=damaged)
            tensors = load_tensors(content, path, damaged)
            length = int.from_bytes(content[:8], "little")
            header = parse_json(content[8 : 8 + length], name="its header", error=damaged)
            text = (header.get("__metadata__") or {})["diagnostics"]
        diagnostics = parse_json(text, name="their diagnostics", error=damaged)
        return draws_of(tensors, diagnostics_from(diagnostics))
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(f"{type(error).__name__}: {error}") from error


def draws_of(tensors: Mapping[str, Tensor], diagnostics: Diagnostics) -> Draws:
    """Build draws from the tensors of a file.

    Raises:
        KeyError, ValueError: a tensor is missing, or they don't have one row for each draw.
    """
    x, z, chain = (tensors[name] for name in ("x", "z", "chain"))
    if x.dim() < 1 or z.dim() != 2 or chain.dim() != 1 or not len(x) == len(z) == len(chain):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (x, z, chain))
        raise ValueError(f"x, z and chain have shapes {shapes}, which do not belong together")
    return Draws(x, z, chain, diagnostics)


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


_FIELD_TYPES: dict[str, Any] = {"int": int, "float": int | float, "str": str, "dict": dict}
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
    """Decoded states, on the CPU: x (N, *D), z in the base's coordinates (N, Z), and `equipartition_sums` (3,)."""

    x: Tensor
    z: Tensor
    balance: Tensor


def decode(potential: LatentPotential, z: Tensor, rows: int) -> Decoded:
    """Decode states in normal coordinates, (N, Z), into ``x = G(z)``,
    ``rows`` at a time as the chains were evaluated."""
    x, codes, balances = [], [], []
    for part in z.split(rows):
        x.append(potential.data(part).cpu())
        codes.append(potential.prior.from_normal(part).cpu())
        balances.append(equipartition_sums(part, potential.value_and_grad(part).grad).cpu())
    return Decoded(torch.cat(x), torch.cat(codes), torch.stack(balances).sum(0))
