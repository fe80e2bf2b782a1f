"""Checkpoints: tensors in safetensors, the rest in JSON, a sha256 for every file, and no pickle.

A checkpoint is a directory ``checkpoints/step-0003000`` that is written under another name, synced and renamed, so that a
kill at any instant leaves the previous one whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from gebm_kit.core.errors import CheckpointError
from gebm_kit.engine.files import plain, writing

_WRITING = ".writing-"
"""What the name of a checkpoint begins with until it is whole."""

PARTS = ("model", "loss", "optim", "ema", "rng")
"""Parts that every checkpoint has; ``negatives`` comes with a loss that keeps chains."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        path: its directory.
        step: cycles trained.
        tensors: part name (`PARTS`) to tensors by name, on the CPU.
        state: plain data.
    """

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], *, keep: int
) -> Path:
    """Write ``folder/step-NNNNNNN`` whole, then remove all but the last ``keep`` and what a killed process left unfinished.

    Raises:
        UsageError, RunFailed: the disk is full, or the place not writable; what was there before is untouched.
    """
    final = folder / f"step-{step:07d}"
    temporary = folder / f"{_WRITING}{final.name}-{os.getpid()}"
    with writing(final):
        try:
            if temporary.exists():  # of a killed process that had this one's number
                shutil.rmtree(temporary)
            temporary.mkdir(parents=True)
            sums = {}
            for part, named in tensors.items():
                content = safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in named.items()})
                sums[f"{part}.safetensors"] = hashlib.sha256(content).hexdigest()
                _write_synced(temporary / f"{part}.safetensors", content)
            record = {"schema": 1, "step": step, "sha256": sums, "state": plain(dict(state))}
            record["sha256_of_the_rest"] = _digest(record)
            _write_synced(temporary / "state.json", json.dumps(record, indent=2).encode())
            _sync_directory(temporary)
            if final.exists():
                shutil.rmtree(final)
            os.rename(temporary, final)
            _sync_directory(folder)
        finally:
            if temporary.exists():
                shutil.rmtree(temporary, ignore_errors=True)
    for old in [*list_checkpoints(folder)[:-keep], *folder.glob(f"{_WRITING}*")]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(p for p in folder.glob("step-*") if p.is_dir()) if folder.is_dir() else []


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and verify one checkpoint.

    Raises:
        CheckpointError: a file is missing, truncated or altered; the message names it.
    """
    try:
        record = json.loads((path / "state.json").read_text(encoding="utf-8"))
        expected = record.pop("sha256_of_the_rest")
        step, sums, state = int(record["step"]), dict(record["sha256"]), dict(record["state"])
        if _digest(record) != expected:
            raise ValueError("its content is not what was written")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path / 'state.json'} is missing or damaged: {_reason(error)}") from error
    tensors = {}
    for name, expected in sums.items():
        file = path / name
        try:
            content = file.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{file} can't be read: {_reason(error)}") from error
        if hashlib.sha256(content).hexdigest() != expected:
            raise CheckpointError(
                f"{file} is damaged: its sha256 is not the one that was written ({len(content):,} bytes)"
            )
        try:
            tensors[file.stem] = safetensors.torch.load(content)
        except safetensors.SafetensorError as error:
            raise CheckpointError(f"{file} is not a safetensors file: {error}") from error
    return Checkpoint(path, step, tensors, state)


def newest_whole(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and what is wrong with the newer ones (one line each)."""
    complaints: list[str] = []
    for path in reversed(list_checkpoints(folder)):
        try:
            return read_checkpoint(path), complaints
        except CheckpointError as error:
            complaints.append(str(error))
    return None, complaints


def flatten_optimizer(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """Tensors of an optimiser's state as ``prefix.INDEX.NAME``. Hyper-parameters come from the recipe instead."""
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {
        f"{prefix}.{index}.{name}": value
        for index, entries in state.items()
        for name, value in entries.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, prefix: str, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `flatten_optimizer`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        head, _, rest = key.partition(".")
        if head == prefix:
            index, _, name = rest.partition(".")
            state.setdefault(int(index), {})[name] = value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _write_synced(path: Path, content: bytes) -> None:
    with open(path, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(record: Mapping[str, Any]) -> str:
    """sha256 of what a JSON object says, however it is laid out."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
