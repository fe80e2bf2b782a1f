"""Draws streamed into a directory of shards, and the state saved beside them to resume after any interruption.

DIR/state/
  request.json           what was requested; resuming with another request is an error
  begun.safetensors      what all units share: the changes of warm-up to the sampler; written once warm-up is over
  unit-00001.safetensors a unit's state (chains, generator) and records at its last written shard, or where it was
  stopped

A shard is written before the state of its unit, so after a kill in between the same shard is written again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from gebm_kit.core.errors import CheckpointError, UsageError
from gebm_kit.core.files import (
    make_directory,
    remove_temporary_files,
    remove_tree,
    write_atomic,
    write_error,
    write_json,
)
from gebm_kit.core.packing import Record, packed, read_packed
from gebm_kit.core.plugins import component_name
from gebm_kit.core.reading import read_json_file
from gebm_kit.core.units import HasMeasured
from gebm_kit.engine.process.distributed import Ranks
from gebm_kit.engine.process.signals import StopSignals
from gebm_kit.engine.sampling.draws import Part
from gebm_kit.engine.sampling.interfaces import Outcome, SamplingJob, Saved, Unit
from gebm_kit.engine.sampling.saved_state import differences, model_digest, parameters
from gebm_kit.engine.sampling.shards import (
    INDEX,
    TENSORS,
    Filling,
    Planned,
    ShardedDraws,
    most_rows,
    open_draws,
    row_bytes,
    shard_of,
    write_index,
)

STATE = "state"
"""Folder of what is needed to resume; the files in it are listed at the top."""


REQUEST = "request.json"
"""The file in `STATE` that holds the request."""


BEGUN = "begun.safetensors"
"""The file in `STATE` with the result of warm-up."""


def check_directory(path: Path, *, resume: bool) -> None:
    """Check, before anything is computed, that draws can go to ``path``.

    Raises:
        UsageError: ``path`` is a file, or holds something that ``resume`` can't continue.
    """
    if os.path.lexists(path) and not os.path.isdir(path):
        raise UsageError(f"{path} is a file; draws without a suffix are streamed into a directory")
    try:
        if not os.path.isdir(path) or not os.listdir(path):
            return
    except OSError as error:
        raise write_error(path, error) from error
    ours = (path / STATE / REQUEST).exists() or (path / INDEX).exists()
    if not ours:
        raise UsageError(f"{path} is not empty", hint="Choose another place for the draws.")
    if not resume:
        what = "draws" if (path / INDEX).exists() else "an unfinished sampling"
        raise UsageError(
            f"{path} is not empty: it holds {what}", hint="Add --resume to continue it, or choose another place."
        )


def newest_unfinished(folder: Path) -> Path | None:
    """Find the directory in ``folder`` whose sampling was interrupted last; None when there is none."""
    found = [path.parent.parent for path in folder.glob(f"*/{STATE}/{REQUEST}")]
    return max(found, key=lambda path: (path / STATE).stat().st_mtime, default=None)


def finished(path: Path, request: Mapping[str, Any]) -> ShardedDraws | None:
    """Return the draws in ``path`` when all of them are there already, else None.

    Raises:
        UsageError: the draws belong to another request.
        DataError: the index is damaged.
    """
    if not (path / INDEX).exists():
        return None
    draws = open_draws(path)
    _require_same(path, draws.request, request)
    return draws


class Directory:
    """A `Keeper` that writes shards.

    Args:
        path: the directory, checked by `check_directory`.
        request: what is requested, as plain data.
        planned: the shards of each unit.
        stop: signals that end sampling.
    """

    def __init__(
        self,
        path: Path,
        request: Mapping[str, Any],
        planned: Sequence[Sequence[Planned]],
        ranks: Ranks,
        stop: StopSignals,
    ) -> None:
        self.path, self._request, self._planned, self._ranks, self._stop = path, dict(request), planned, ranks, stop
        self._state = path / STATE
        self._fillings: dict[int, Filling] = {}
        self._saved_at: dict[int, int] = {}
        self._began, self._earlier = time.perf_counter(), 0.0

    def seconds(self) -> float:
        """Return the seconds spent on these draws, including those of earlier processes."""
        return self._earlier + time.perf_counter() - self._began

    def open(self) -> None:
        """Create the directory, or check that what it holds belongs to the same request.

        Raises:
            UsageError: the request is another, or the directory can't be written.
            CheckpointError: the saved request is damaged.
        """
        if self._ranks.rank == 0:
            make_directory(self._state)
            known = self._state / REQUEST
            if known.exists():
                _require_same(self.path, _read_request(known), self._request)
            else:
                write_json(known, {"schema": 1, "request": self._request})
        self._ranks.wait()

    # --- a Keeper ------------------------------------------------------------------------------------------------

    def begun(self) -> Saved | None:
        if not (self._state / BEGUN).exists():
            return None
        tensors, record = _read_saved(self._state / BEGUN)
        self._earlier = max(self._earlier, record["seconds"])
        return tensors, record

    def begin(self, units: Sequence[Unit], shared: Callable[[], Saved]) -> None:
        for unit in units:
            self._save(unit)
        self._ranks.wait()
        if self._ranks.rank == 0:
            tensors, record = shared()
            write_atomic(self._state / BEGUN, packed(tensors, {**record, "seconds": self.seconds()}))

    def saved(self, number: int) -> tuple[int, Mapping[str, Tensor]] | None:
        if not self._unit(number).exists():
            return None
        tensors, record = _read_saved(self._unit(number), "step")
        waiting = {name: tensors.pop(f"waiting.{name}") for name in TENSORS if f"waiting.{name}" in tensors}
        try:
            self._filling(number).restore(record["shards"], waiting)
        except (ValueError, KeyError, TypeError, IndexError, RuntimeError) as error:
            raise CheckpointError(f"{self._unit(number)} is damaged: {type(error).__name__}: {error}") from error
        self._saved_at[number] = record["step"]
        self._earlier = max(self._earlier, record["seconds"])
        return record["step"], tensors

    def add(self, unit: Unit, part: Part) -> None:
        if self._filling(unit.number).add(part):
            self._save(unit)

    def check(self, unit: Unit | None) -> None:
        if not self._stop.received:
            return
        if unit is None:
            raise self._stop.interrupted("stopped before the end of warm-up; nothing of it is kept")
        self._save(unit)
        raise self._stop.interrupted(f"stopped while drawing; everything so far is saved in {self.path}")

    def finish(self, unit: Unit) -> None:
        if self._saved_at.get(unit.number) != unit.step:  # a block of which no draw is kept has no shard
            self._save(unit)

    def records(self, count: int) -> list[Mapping[str, Tensor]]:
        self._ranks.wait()
        return [read_packed(self._unit(number))[0] for number in range(count)]

    # --- the end -------------------------------------------------------------------------------------------------

    def draws(
        self, outcome: Outcome, value_range: tuple[float, float] | None, units: HasMeasured | None = None
    ) -> ShardedDraws:
        """Write the index, remove the saved state, and open the draws."""
        if self._ranks.rank == 0:
            records = [read_packed(self._unit(number))[1] for number in range(len(self._planned))]
            shards = [shard_of(entry) for record in records for entry in record["shards"]]
            write_index(self.path, shards, outcome.diagnostics, self._request, value_range, units)
            remove_tree(self._state)
            remove_temporary_files(self.path)
        self._ranks.wait()
        return replace(open_draws(self.path), records=tuple(outcome.records))

    def _save(self, unit: Unit) -> None:
        filling = self._filling(unit.number)
        waiting = {f"waiting.{name}": tensor for name, tensor in filling.waiting().items()}
        record = {"step": unit.step, "shards": [asdict(shard) for shard in filling.done], "seconds": self.seconds()}
        write_atomic(self._unit(unit.number), packed({**unit.state(), **unit.records(), **waiting}, record))
        self._saved_at[unit.number] = unit.step

    def _unit(self, number: int) -> Path:
        return self._state / f"unit-{number + 1:05d}.safetensors"

    def _filling(self, number: int) -> Filling:
        if number not in self._fillings:
            self._fillings[number] = Filling(self.path, self._planned[number])
        return self._fillings[number]


def _read_request(path: Path) -> dict[str, Any]:
    record = read_json_file(path, error=CheckpointError)
    if not isinstance(record, dict) or not isinstance(record.get("request"), dict):
        raise CheckpointError(f"{path} is damaged: it holds no request")
    return dict(record["request"])


def _read_saved(path: Path, *counts: str) -> tuple[dict[str, Tensor], Record]:
    """Read a saved state, whose record has the entries ``counts``, whole numbers, and ``seconds``.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    tensors, record = read_packed(path)
    found = [record.get(name) for name in counts]
    if not all(isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62 for value in found):
        raise CheckpointError(f"{path} is damaged: {', '.join(counts)} can't be {found}")
    if not isinstance(record.get("seconds"), int | float) or not isinstance(record.get("shards", []), list):
        raise CheckpointError(f"{path} is damaged: its seconds or its shards")
    return tensors, record


def _require_same(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    found = differences(dict(before), dict(now))
    if found:
        raise UsageError(
            f"{path} holds another sampling: {'; '.join(found)}",
            hint="Use the same model and settings, or choose another place for the draws.",
        )


def requested(job: SamplingJob) -> dict[str, Any]:
    """Describe a job as plain data: two jobs with the same description give the same draws."""
    settings, model = job.settings, job.potential.model
    return {
        "model": model_digest(model),
        "sampler": {"name": component_name("sampler", job.sampler), **parameters(job.sampler)},
        **asdict(settings),
        "block_size": job.layout.rows,
        "evaluated_at_once": job.layout.piece or job.layout.rows,
        "device": job.device.type,
        "dtype": str(job.dtype).removeprefix("torch."),
        "shard_rows": most_rows(row_bytes(model.data_shape, model.latent_dim, job.dtype)),
        **({} if job.starts is None else {"start": job.starts.digest}),
    }
