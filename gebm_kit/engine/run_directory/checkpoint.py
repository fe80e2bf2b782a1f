"""Checkpoints: tensors in safetensors, the rest in JSON, a sha256 for every file, and no pickle.

A checkpoint is a directory ``checkpoints/step-0003000``. It is written under another name, synced and renamed, so that a
kill at any instant leaves the previous checkpoint whole. A checkpoint is also renamed before it is removed, so that a
directory with a checkpoint's name is always complete.
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
"""Prefix of a checkpoint's name until it is completely written."""


_REPLACED = ".replaced-"
"""Prefix of its name while another of the same step replaces it; until then, this one is the checkpoint."""


_REMOVING = ".removing-"
"""Prefix of its name while it is being removed."""


_STEP_NAME = re.compile(r"step-(\d+)")

TENSOR_PARTS = ("model", "loss", "optim", "ema", "rng")
"""Parts of every checkpoint. Losses that keep chains add ``negatives``, and early stopping adds ``best-base``. A final phase
with a loss or energy of its own adds ``final`` until it begins."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Content of a checkpoint.

    Attributes:
        path: its directory.
        step: cycles trained.
        tensors: part name (`TENSOR_PARTS`) to tensors by name, on the CPU.
        state: plain data, such as counters.
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
    """Write ``folder/step-NNNNNNN`` atomically, then remove checkpoints that are no longer kept, and unfinished ones.

    Args:
        folder: created if it does not exist; its parent must exist.
        keep: how many of the last checkpoints are kept. Later steps than this one are removed: the run resumed from an older
            checkpoint because they were damaged.
        best: the step of another checkpoint to keep, or None.

    Raises:
        UsageError, RunFailed: the disk is full, or the folder is not writable; earlier checkpoints are untouched.
    """
    final = folder / _name(step)
    temporary = folder / f"{_WRITING}{final.name}-{os.getpid()}"
    with writing(final):
        try:
            if not folder.is_dir():
                folder.mkdir()
                sync_directory(folder.parent)
            if temporary.exists():  # left by a killed process that had the same process id
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
    """Remove all checkpoints except the last ``keep`` up to ``step`` and that of step ``best``, and all unfinished ones."""
    for path in list_checkpoints(folder):
        if path.name.startswith(_REPLACED):  # a kill came before its replacement was renamed
            os.rename(path, folder / _name(step_of(path)))
    paths = list_checkpoints(folder)
    stay = {*[p for p in paths if step_of(p) <= step][-keep:], folder / _name(step if best is None else best)}
    for path in paths:
        if path not in stay:
            remove_checkpoint(path)
    for path in folder.glob(f"{_REPLACED}*"):  # their replacements are in place
        shutil.rmtree(path, ignore_errors=True)
    remove_unfinished(folder)


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint; a kill at any instant leaves it whole or gone under its name."""
    going = path.with_name(f"{_REMOVING}{path.name}-{os.getpid()}")
    os.rename(path, going)
    shutil.rmtree(going, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Remove checkpoints that a killed process was writing or removing."""
    for beginning in (_WRITING, _REMOVING):
        for path in folder.glob(f"{beginning}*"):
            shutil.rmtree(path, ignore_errors=True)


def amend_checkpoint(folder: Path, step: int, changes: Mapping[str, Any]) -> None:
    """Change entries of a checkpoint's plain state; do nothing if there is no checkpoint of that step.

    Only ``state.json`` is written, atomically.

    Raises:
        CheckpointError: ``state.json`` is damaged.
        UsageError, RunFailed: ``state.json`` can't be written; the checkpoint is unchanged.
    """
    path = folder / _name(step)
    if path.is_dir():
        record = _read_record(path)
        record["state"] |= plain(dict(changes))
        write_atomic(path / "state.json", _signed(record))


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the finished checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    found = {p.name: p for p in folder.glob("step-*") if _STEP_NAME.fullmatch(p.name) and p.is_dir()}
    for path in folder.glob(f"{_REPLACED}step-*"):
        found.setdefault(path.name.removeprefix(_REPLACED).rpartition("-")[0], path)
    return [found[name] for name in sorted(found, key=lambda name: int(name.removeprefix("step-")))]


def step_of(path: Path) -> int:
    """Return the step in a checkpoint's name."""
    match = _STEP_NAME.search(path.name)
    assert match is not None
    return int(match[1])


def _name(step: int) -> str:
    return f"step-{step:07d}"


def read_state(path: Path) -> dict[str, Any]:
    """Read and verify the plain state of a checkpoint, without its tensors.

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
    """Return the newest checkpoint that verifies, and one line for each newer one on what is wrong with it."""
    complaints: list[str] = []
    paths = list_checkpoints(folder)
    while paths:
        path = paths.pop()
        try:
            return read_checkpoint(path), complaints
        except CheckpointError as error:
            if path.exists():
                complaints.append(str(error))
            else:  # a run in training has replaced it: look again
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
    """Return the sha256 of a JSON object's content, whatever its layout."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"


LAST, BEST = "last", "best"
"""Words for a checkpoint, besides ``step-N``: the newest that is whole, and the best (`best_record`)."""


def check_word(word: str) -> str:
    """Return ``word``.

    Raises:
        UsageError: ``word`` is not last, best or step-N.
    """
    if word not in (LAST, BEST) and not _STEP_NAME.fullmatch(word):
        raise UsageError(f"checkpoint {word!r} is not known; allowed: {LAST}, {BEST}, step-N (such as step-3000)")
    return word


def chosen_checkpoint(folder: Path, word: str, hint: str) -> Checkpoint:
    """Return the checkpoint in ``folder`` that ``word`` asks for, verified.

    ``last`` is the newest whole checkpoint: a warning names what is damaged in newer ones. ``best`` and ``step-N`` have no
    such substitute.

    Args:
        hint: how to resume training, for messages.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
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
    """Return ``metric``, ``value`` and ``step`` of the best checkpoint, as recorded in the newest readable one.

    Raises:
        CheckpointError: no checkpoint is recorded as the best.
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
        hint="Use the last one, or train with train.keep_best.metric=NAME train.eval_every=N.",
    )
