"""Draws in a directory: shards of a bounded size, written one after another, and an index.

DIR/
  draws-00001-of-00020.safetensors   x (N, *D), z (N, Z), chain (N,), index (N,): the draw's place in the order of
  `Draws` index.json   shards with rows and sha256, shapes, types, diagnostics, the request; written once all shards are
  there state/       what is needed to resume; removed once all shards are there
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from gebm_kit.core.arguments import check_path
from gebm_kit.core.errors import DataError
from gebm_kit.core.files import write_atomic, write_json
from gebm_kit.core.model import GEBM
from gebm_kit.core.packing import load_tensors
from gebm_kit.core.paths import user_path
from gebm_kit.core.reading import read_file, read_json_file
from gebm_kit.core.units import HasMeasured, TableUnits
from gebm_kit.engine.sampling.blocks import Layout
from gebm_kit.engine.sampling.diagnostics import Diagnostics
from gebm_kit.engine.sampling.draw_files import diagnostics_from, draws_of, load_file
from gebm_kit.engine.sampling.draws import Draws, Part
from gebm_kit.engine.sampling.settings import SampleSettings
from gebm_kit.engine.sampling.streamed import StreamedDraws

INDEX = "index.json"
"""The file that lists the shards; a directory that has it is complete."""


TENSORS = ("x", "z", "chain", "index")
"""Names of a shard's tensors."""


SHARD_ROWS = 2**16
"""Most draws of a shard."""


SHARD_BYTES = 2**25
"""Most bytes of a shard, unless one state of each chain of a block is more.

Writing needs two to three times that memory.
"""


MOST_IN_MEMORY = 2**28
"""Most bytes of draws, 256 MiB, that the command line holds in memory to write one file."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A shard to write: its number from 0, how many shards there are, the unit whose draws it holds,
    and how many draws."""

    number: int
    count: int
    unit: int
    rows: int

    @property
    def name(self) -> str:
        width = max(5, len(str(self.count)))
        return f"draws-{self.number + 1:0{width}d}-of-{self.count:0{width}d}.safetensors"


def plan_shards(groups: Sequence[Sequence[int]]) -> list[list[Planned]]:
    """Number the shards, given the rows of each unit's shards, in order; empty shards are left out."""
    filled = [[rows for rows in group if rows > 0] for group in groups]
    count, planned, number = sum(map(len, filled)), [], 0
    for unit, group in enumerate(filled):
        planned.append([Planned(number + i, count, unit, rows) for i, rows in enumerate(group)])
        number += len(group)
    return planned


def kernel_rows(layout: Layout, settings: SampleSettings, row_bytes: int) -> list[list[int]]:
    """Return the rows of each block's shards: as many of its kept states as fit, the oldest first."""
    states = max(1, most_rows(row_bytes) // layout.rows)
    groups = []
    for block in range(layout.num_blocks):
        ages = range(settings.kept - 1, -1, -1)
        left = settings.num_samples - layout.first(block)
        rows = [max(0, min(layout.kept(block), left - age * layout.chains)) for age in ages]
        groups.append([sum(rows[i : i + states]) for i in range(0, len(rows), states)])
    return groups


def island_rows(groups: Sequence[range], particles: int, num_samples: int) -> list[list[int]]:
    """Return the rows of each group's shards: every group of islands has one shard."""
    return [[min(group.stop * particles, num_samples) - group.start * particles] for group in groups]


def most_rows(row_bytes: int) -> int:
    """Return how many draws a shard has room for."""
    return max(1, min(SHARD_ROWS, SHARD_BYTES // row_bytes))


def too_many(num_samples: int, model: GEBM) -> bool:
    """Return whether so many draws take more than `MOST_IN_MEMORY`;
    then they are streamed, unless a file was requested."""
    return num_samples * row_bytes(model.data_shape, model.latent_dim, model.dtype) > MOST_IN_MEMORY


def row_bytes(data_shape: tuple[int, ...], latent_dim: int, dtype: torch.dtype) -> int:
    """Return the bytes of one draw: x and z of ``dtype``, chain and index."""
    numbers = functools.reduce(lambda a, b: a * b, data_shape, 1) + latent_dim
    return numbers * dtype.itemsize + 16


_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors")
"""Names of shards; none can lead out of the directory."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A written shard: its file, its numbers of draws and bytes, and the sha256 of the file."""

    file: str
    rows: int
    bytes: int
    sha256: str


class Filling:
    """The draws of a unit of work, gathered until a shard is full.

    Attributes:
        done: shards written so far.
        rows: draws that wait for the next shard.
    """

    def __init__(self, folder: Path, planned: Sequence[Planned]) -> None:
        self._folder, self._planned = folder, planned
        self.done: list[Shard] = []
        self.rows = 0
        self._tensors: dict[str, Tensor] = {}

    def add(self, part: Part) -> bool:
        """Store draws of one shard, and write the shard when it is full. Returns whether it was written.

        Raises:
            UsageError: the place can't be written.
            RunFailed: the disk is full.
        """
        found = {"x": part.x, "z": part.z, "chain": part.chain}
        found["index"] = torch.arange(part.start, part.start + len(part.x))
        shard = self._planned[len(self.done)]
        for name, rows in found.items():
            if name not in self._tensors:
                self._tensors[name] = rows.new_empty(shard.rows, *rows.shape[1:])
            self._tensors[name][self.rows : self.rows + len(rows)] = rows
        self.rows += len(part.x)
        if self.rows < shard.rows:
            return False
        content = safetensors.torch.save(self._tensors, {"schema": "1"})
        write_atomic(self._folder / shard.name, content)
        self.done.append(Shard(shard.name, shard.rows, len(content), hashlib.sha256(content).hexdigest()))
        self._tensors, self.rows = {}, 0
        return True

    def waiting(self) -> dict[str, Tensor]:
        """Return the draws that wait, by name."""
        return {name: tensor[: self.rows] for name, tensor in self._tensors.items()}

    def restore(self, done: Sequence[Mapping[str, Any]], waiting: Mapping[str, Tensor]) -> None:
        """Resume from another process's ``done`` and `waiting`."""
        self.done = [shard_of(entry) for entry in done]
        if waiting:
            shard = self._planned[len(self.done)]
            self.rows = len(waiting["index"])
            for name, rows in waiting.items():
                self._tensors[name] = rows.new_empty(shard.rows, *rows.shape[1:])
                self._tensors[name][: self.rows] = rows


@dataclass(frozen=True, repr=False)
class ShardedDraws(StreamedDraws):
    """Draws in a directory; only the index is in memory.

    Iterating yields the shards as `Draws`, one after another. `load` returns all draws in the order of `Draws`: the
    last states of all chains first.

    Attributes:
        path: the directory.
        num_samples: draws in all shards.
        shards: the files.
        diagnostics: diagnostics of all draws.
        request: what was requested: model, sampler, settings.
        value_range: (low, high) of the data, or None.
        units: as in `Draws`.
        records: as in `Draws`, when this process made the draws; empty when they were read from the directory.
    """

    path: Path
    num_samples: int
    shards: tuple[Shard, ...]
    diagnostics: Diagnostics
    request: Mapping[str, Any] = field(repr=False)
    value_range: tuple[float, float] | None = None
    records: tuple[Mapping[str, Tensor], ...] = field(default=(), repr=False, compare=False)
    units: HasMeasured | None = field(default=None, repr=False, compare=False)

    def __iter__(self) -> Iterator[Draws]:
        for shard in self.shards:
            yield draws_of(self._read(shard), self.diagnostics, self.units, self.value_range)

    def first(self, num: int) -> Iterator[Draws]:
        """Yield one shard after another with those of its draws that are among the first ``num`` in the order of `Draws`."""
        for shard in self.shards:
            tensors = self._read(shard)
            kept = tensors["index"] < num
            kept_rows = {name: rows[kept] for name, rows in tensors.items()}
            yield draws_of(kept_rows, self.diagnostics, self.units, self.value_range)

    @property
    def sampler_reason(self) -> str | None:
        """As in `Draws`."""
        return self.diagnostics.sampler_reason

    @property
    def num_shards(self) -> int:
        """Number of files that hold the draws."""
        return len(self.shards)

    def pictures(self) -> Iterator[Tensor]:
        """Yield x of one shard after another."""
        return (draws.x for draws in self)

    def load(self) -> Draws:
        """Read all draws into memory.

        Raises:
            DataError: a shard is missing or damaged.
        """
        found: dict[str, Tensor] = {}
        if sum(shard.rows for shard in self.shards) != self.num_samples:
            raise DataError(f"{self.path / INDEX} is damaged: its shards do not hold {self.num_samples:,} draws")
        for shard in self.shards:
            tensors = self._read(shard)
            places = tensors.pop("index")
            for name, rows in tensors.items():
                if name not in found:
                    found[name] = rows.new_empty(self.num_samples, *rows.shape[1:])
                try:
                    found[name][places] = rows
                except (IndexError, RuntimeError) as error:
                    raise DataError(f"{self.path / shard.file} does not fit the other shards: {error}") from error
        about: dict[str, Any] = {"units": self.units, "value_range": self.value_range}
        return Draws(found["x"], found["z"], found["chain"], self.diagnostics, self.records, **about)

    def _read(self, shard: Shard) -> dict[str, Tensor]:
        path = self.path / shard.file
        content = read_file(path)
        if hashlib.sha256(content).hexdigest() != shard.sha256:
            raise DataError(f"{path} is damaged: its sha256 is not the one in {INDEX} ({len(content):,} bytes)")
        tensors = load_tensors(content, path, DataError)
        if tensors.keys() != set(TENSORS) or any(t.dim() < 1 or len(t) != shard.rows for t in tensors.values()):
            raise DataError(f"{path} is damaged: it does not hold {', '.join(TENSORS)} of {shard.rows:,} draws")
        return tensors


def write_index(
    folder: Path,
    shards: Sequence[Shard],
    diagnostics: Diagnostics,
    request: Mapping[str, Any],
    value_range: tuple[float, float] | None,
    units: HasMeasured | None = None,
) -> None:
    """Write ``index.json``, which makes the directory complete.

    Raises:
        UsageError: the place can't be written.
        RunFailed: the disk is full.
    """
    example = safetensors.torch.load_file(folder / shards[0].file)
    num_samples = sum(shard.rows for shard in shards)
    tensors = {
        name: {
            "shape": [num_samples, *example[name].shape[1:]],
            "dtype": str(example[name].dtype).removeprefix("torch."),
        }
        for name in TENSORS
    }
    record = {
        "schema": 1,
        "num_samples": num_samples,
        "tensors": tensors,
        "value_range": value_range,
        **({"units": units.as_dict()} if isinstance(units, TableUnits) else {}),
        "request": dict(request),
        "diagnostics": diagnostics.as_dict(),
        "shards": [asdict(shard) for shard in shards],
    }
    write_json(folder / INDEX, record)


def open_draws(path: str | Path) -> ShardedDraws:
    """Open the draws in a directory.

    Raises:
        DataError: the index is missing or damaged.
    """
    path = user_path(path)
    if not os.path.lexists(path / INDEX):
        unfinished = os.path.isdir(path / "state")
        raise DataError(
            f"{path} holds no draws: it has no {INDEX}" + (", as sampling was interrupted" if unfinished else ""),
            hint="Resume with the same command and --resume." if unfinished else "",
        )
    record = read_json_file(path / INDEX)
    try:
        value_range = record["value_range"]
        return ShardedDraws(
            path=path,
            num_samples=_count(record["num_samples"]),
            shards=tuple(shard_of(entry) for entry in record["shards"]),
            diagnostics=diagnostics_from(record["diagnostics"]),
            request=dict(record["request"]),
            value_range=None if value_range is None else (float(value_range[0]), float(value_range[1])),
            units=TableUnits.from_dict(record["units"]) if "units" in record else None,
        )
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
        raise DataError(f"{path / INDEX} is damaged: {type(error).__name__}: {error}") from error


def shard_of(entry: Mapping[str, Any]) -> Shard:
    """Return the shard that an index or a saved state describes.

    Raises:
        ValueError, TypeError, KeyError: an entry is missing or has another type, or the file lies elsewhere.
    """
    file, digest = entry["file"], entry["sha256"]
    if not isinstance(file, str) or not _SHARD_NAME.fullmatch(file) or not isinstance(digest, str):
        raise ValueError(f"{str(file)[:80]!r} is not the name of a shard")
    return Shard(file, _count(entry["rows"]), _count(entry["bytes"]), digest)


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**62:
        raise ValueError(f"{str(value)[:80]!r} is not a number of rows or bytes")
    return value


def load_draws(path: str | Path) -> Draws:
    """Read all draws of a file or directory that sampling wrote into memory, in the same order.

    Raises:
        DataError: the file or directory is missing, unfinished or damaged.
    """
    check_path("draws", path)
    path = user_path(path)
    return open_draws(path).load() if os.path.isdir(path) else load_file(path)
