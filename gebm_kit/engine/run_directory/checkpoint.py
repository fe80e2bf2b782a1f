"""Checkpoints: tensors in safetensors, the rest in JSON, a sha256 for every file, and no pickle.

A checkpoint is a directory ``checkpoints/step-0003000`` that is written under another name, synced and renamed, so that a
kill at any instant leaves the previous one whole. What is to go is renamed before it is taken apart, so that under the name
of a checkpoint there never is half of one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from gebm_kit.core.errors import CheckpointError, UsageError
from gebm_kit.core.files import plain, sync_directory, write_atomic, writing
from gebm_kit.core.progress import warn

_WRITING = ".writing-"
"""What the name of a checkpoint begins with until it is whole."""


_REPLACED = ".replaced-"
"""What it begins with while another of the same step takes its place; until that is there, this is the checkpoint."""


_REMOVING = ".removing-"
"""What it begins with while it is taken apart."""


_STEP_NAME = re.compile(r"step-(\d+)")

TENSOR_PARTS = ("model", "loss", "optim", "ema", "rng")
"""Parts that every checkpoint has; ``negatives`` comes with a loss that keeps chains, ``best-base`` with early stopping."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        path: its directory.
        step: cycles trained.
        tensors: part name (`TENSOR_PARTS`) to tensors by name, on the CPU.
        state: plain data.
    """

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    *,
    keep: int,
    best: int | None = None,
) -> Path:
    """Write ``folder/step-NNNNNNN`` whole, then remove what is no longer kept and what a killed process left unfinished.

    Args:
        folder: made if it is not there; its parent must be.
        keep: how many of the last checkpoints stay. Later steps are those of a run that went on from an older checkpoint,
            because they were damaged: they go.
        best: the step of one that stays besides.

    Raises:
        UsageError, RunFailed: the disk is full, or the place not writable; what was there before is untouched.
    """
    final = folder / _name(step)
    temporary = folder / f"{_WRITING}{final.name}-{os.getpid()}"
    with writing(final):
        try:
            if not folder.is_dir():
                folder.mkdir()
                sync_directory(folder.parent)
            if temporary.exists():  # of a killed process that had this one's number
                shutil.rmtree(temporary)
            temporary.mkdir()
            sums = {}
            for part, named in tensors.items():
                content = safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in named.items()})
                sums[f"{part}.safetensors"] = hashlib.sha256(content).hexdigest()
                _write_synced(temporary / f"{part}.safetensors", content)
            record = {"schema": 1, "step": step, "sha256": sums, "state": plain(dict(state))}
            _write_synced(temporary / "state.json", _signed(record))
            sync_directory(temporary)
            if final.exists():
                os.rename(final, folder / f"{_REPLACED}{final.name}-{os.getpid()}")
            os.rename(temporary, final)
            sync_directory(folder)
        finally:
            if temporary.exists():
                shutil.rmtree(temporary, ignore_errors=True)
        _remove_all_but(folder, step, keep, best)
    return final


def _remove_all_but(folder: Path, step: int, keep: int, best: int | None) -> None:
    """Remove all checkpoints but the last ``keep`` up to ``step`` and that of the step ``best``, and all unfinished ones."""
    for path in list_checkpoints(folder):
        if path.name.startswith(_REPLACED):  # a kill came before its successor had the name
            os.rename(path, folder / _name(step_of(path)))
    paths = list_checkpoints(folder)
    stay = {*[p for p in paths if step_of(p) <= step][-keep:], folder / _name(step if best is None else best)}
    for path in paths:
        if path not in stay:
            remove_checkpoint(path)
    for path in folder.glob(f"{_REPLACED}*"):  # of which there is another one now
        shutil.rmtree(path, ignore_errors=True)
    remove_unfinished(folder)


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint; at no instant is there half of one under its name."""
    going = path.with_name(f"{_REMOVING}{path.name}-{os.getpid()}")
    os.rename(path, going)
    shutil.rmtree(going, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed process was writing or taking apart."""
    for beginning in (_WRITING, _REMOVING):
        for path in folder.glob(f"{beginning}*"):
            shutil.rmtree(path, ignore_errors=True)


def amend_checkpoint(folder: Path, step: int, changes: Mapping[str, Any]) -> None:
    """Change entries of the plain state of a checkpoint, if there is one of that step.

    Its ``state.json`` is replaced in one piece, and nothing else touched.

    Raises:
        CheckpointError: that file is damaged.
        UsageError, RunFailed: it can't be written; the checkpoint is as it was.
    """
    path = folder / _name(step)
    if path.is_dir():
        record = _read_record(path)
        record["state"] |= plain(dict(changes))
        write_atomic(path / "state.json", _signed(record))


def list_checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    found = {p.name: p for p in folder.glob("step-*") if _STEP_NAME.fullmatch(p.name) and p.is_dir()}
    for path in folder.glob(f"{_REPLACED}step-*"):
        found.setdefault(path.name.removeprefix(_REPLACED).rpartition("-")[0], path)
    return [found[name] for name in sorted(found, key=lambda name: int(name.removeprefix("step-")))]


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint."""
    match = _STEP_NAME.search(path.name)
    assert match is not None
    return int(match[1])


def _name(step: int) -> str:
    return f"step-{step:07d}"


def read_state(path: Path) -> dict[str, Any]:
    """The plain state of a checkpoint, verified, without its tensors.

    Raises:
        CheckpointError: ``state.json`` is missing, truncated or altered.
    """
    return dict(_read_record(path)["state"])


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and verify one checkpoint.

    Raises:
        CheckpointError: a file is missing, truncated or altered; the message names it.
    """
    record = _read_record(path)
    step, sums, state = int(record["step"]), dict(record["sha256"]), dict(record["state"])
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
    paths = list_checkpoints(folder)
    while paths:
        path = paths.pop()
        try:
            return read_checkpoint(path), complaints
        except CheckpointError as error:
            if path.exists():
                complaints.append(str(error))
            else:  # a run that is being trained has put newer ones in its place
                paths = list_checkpoints(folder)
                complaints.clear()
    return None, complaints


def _write_synced(path: Path, content: bytes) -> None:
    with open(path, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
        expected = record.pop("sha256_of_the_rest")
        record |= {"step": int(record["step"]), "sha256": dict(record["sha256"]), "state": dict(record["state"])}
        if _digest(record) != expected:
            raise ValueError("its content is not what was written")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path / 'state.json'} is missing or damaged: {_reason(error)}") from error
    return record


def _signed(record: Mapping[str, Any]) -> bytes:
    return json.dumps({**record, "sha256_of_the_rest": _digest(record)}, indent=2).encode()


def _digest(record: Mapping[str, Any]) -> str:
    """sha256 of what a JSON object says, however it is laid out."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"


LAST, BEST = "last", "best"
"""Words for a checkpoint, besides ``step-N``: the newest that is whole, and the best (`best_record`)."""


def check_word(word: str) -> str:
    """``word`` itself.

    Raises:
        UsageError: it is none of last, best, step-N.
    """
    if word not in (LAST, BEST) and not _STEP_NAME.fullmatch(word):
        raise UsageError(f"checkpoint {word!r} is not known; allowed: {LAST}, {BEST}, step-N (such as step-3000)")
    return word


def chosen_checkpoint(folder: Path, word: str, hint: str) -> Checkpoint:
    """The checkpoint in ``folder`` that ``word`` asks for, verified.

    ``last`` is the newest one that is whole: a warning names what is damaged in newer ones. Nothing takes the place of the
    others, which are asked for by name.

    Args:
        hint: how training goes on.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    if word == LAST:
        found, complaints = newest_whole(folder)
        if found is None and not complaints:
            raise CheckpointError(f"{folder.parent} has no checkpoint yet", hint=hint)
        if found is None:
            raise CheckpointError(f"no checkpoint of {folder.parent} is whole: {complaints[0]}", hint=hint)
        for complaint in complaints:
            warn(f"{complaint}; checkpoint {found.path.name} is used instead. {hint}")
        return found
    step = best_record(folder)["step"] if word == BEST else int(word.removeprefix("step-"))
    paths = {step_of(path): path for path in list_checkpoints(folder)}
    if step not in paths:
        there = ", ".join(path.name for path in paths.values()) or "none"
        raise CheckpointError(f"{folder.parent} has no checkpoint of step {step}; there are: {there}")
    return read_checkpoint(paths[step])


def best_record(folder: Path) -> dict[str, Any]:
    """``metric``, ``value`` and ``step`` of the best checkpoint, as the newest readable one knows it.

    Raises:
        CheckpointError: none is marked as the best.
    """
    for path in reversed(list_checkpoints(folder)):
        try:
            record = read_state(path).get("best")
        except CheckpointError:
            continue
        if record:
            return dict(record)
        break
    raise CheckpointError(
        f"{folder.parent} has no best checkpoint: none was evaluated by train.keep_best.metric",
        hint="Take the last one, or train with train.keep_best.metric=NAME train.eval_every=N.",
    )
