"""Checkpoints: tensors in safetensors, the rest in JSON, a sha256 for every file, and no pickle.

A checkpoint is a directory ``checkpoints/step-0003000``. It is written under another name, synced and renamed, so that a
kill at any instant leaves the previous checkpoint whole. A checkpoint is also renamed before it is removed, so that a
directory with a checkpoint's name is always complete.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from gebm_kit.core.errors import CheckpointError, UsageError, shown
from gebm_kit.core.files import plain, refuse_links, remove_tree, sync_directory, write_atomic, writing
from gebm_kit.core.packing import load_tensors
from gebm_kit.core.progress import warn
from gebm_kit.core.reading import read_file
from gebm_kit.engine.run_directory.checkpoint_record import RECORD, read_record, signed

_WRITING = ".writing-"
"""Prefix of a checkpoint's name until it is completely written."""


_REPLACED = ".replaced-"
"""Prefix of its name while another of the same step replaces it; until then, this one is the checkpoint."""


_REMOVING = ".removing-"
"""Prefix of its name while it is being removed."""


_STEP_NAME = re.compile(r"step-([0-9]{1,18})")

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
    refuse_links(folder)
    final = folder / _name(step)
    temporary = folder / f"{_WRITING}{final.name}-{os.getpid()}"
    with writing(final):
        try:
            if not folder.is_dir():
                folder.mkdir()
                sync_directory(folder.parent)
            remove_tree(temporary)  # left by a killed process that had the same process id
            temporary.mkdir()
            sums = {}
            for part, named in tensors.items():
                content = safetensors.torch.save(_apart(named))
                sums[f"{part}.safetensors"] = hashlib.sha256(content).hexdigest()
                _write_synced(temporary / f"{part}.safetensors", content)
            record = {"schema": 1, "step": step, "sha256": sums, "state": plain(dict(state))}
            _write_synced(temporary / RECORD, signed(record))
            sync_directory(temporary)
            if os.path.lexists(final):
                os.rename(final, folder / f"{_REPLACED}{final.name}-{os.getpid()}")
            os.rename(temporary, final)
            sync_directory(folder)
        finally:
            remove_tree(temporary)
        _remove_all_but(folder, step, keep, best)
    return final


def _apart(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors on the CPU, none of which shares memory with another: layers may share their weights."""
    found, used = {}, set()
    for name, tensor in named.items():
        plain_tensor = tensor.detach().cpu().contiguous()
        storage = plain_tensor.untyped_storage()
        whole = storage.nbytes() == plain_tensor.numel() * plain_tensor.element_size()
        if storage.data_ptr() in used or not whole:  # safetensors refuses the one, and would write all of the other
            plain_tensor = plain_tensor.clone()
        else:
            used.add(storage.data_ptr())
        found[name] = plain_tensor
    return found


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
        remove_tree(path)
    remove_unfinished(folder)


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint; a kill at any instant leaves it whole or gone under its name."""
    going = path.with_name(f"{_REMOVING}{path.name}-{os.getpid()}")
    os.rename(path, going)
    remove_tree(going)


def remove_unfinished(folder: Path) -> None:
    """Remove checkpoints that a killed process was writing or removing."""
    for beginning in (_WRITING, _REMOVING):
        for path in folder.glob(f"{beginning}*"):
            remove_tree(path)


def amend_checkpoint(folder: Path, step: int, changes: Mapping[str, Any]) -> None:
    """Change entries of a checkpoint's plain state; do nothing if there is no checkpoint of that step.

    Only ``state.json`` is written, atomically.

    Raises:
        CheckpointError: ``state.json`` is damaged.
        UsageError, RunFailed: ``state.json`` can't be written; the checkpoint is unchanged.
    """
    path = folder / _name(step)
    if path.is_dir():
        record = read_record(path, step)
        record["state"] |= plain(dict(changes))
        write_atomic(path / RECORD, signed(record))


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the finished checkpoints, oldest first."""
    if not os.path.isdir(folder):
        return []
    found = {p.name: p for p in folder.glob("step-*") if _STEP_NAME.fullmatch(p.name) and os.path.isdir(p)}
    for path in folder.glob(f"{_REPLACED}step-*"):
        name = path.name.removeprefix(_REPLACED).rpartition("-")[0]
        if _STEP_NAME.fullmatch(name) and os.path.isdir(path):
            found.setdefault(name, path)
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
    return dict(read_record(path, step_of(path))["state"])


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and verify one checkpoint.

    Raises:
        CheckpointError: a file is missing, truncated or altered; the message names it.
    """
    record = read_record(path, step_of(path))
    tensors = {}
    for name, expected in record["sha256"].items():
        file = path / name
        content = read_file(file, error=CheckpointError)
        if hashlib.sha256(content).hexdigest() != expected:
            raise CheckpointError(
                f"{file} is damaged: its sha256 is not the one that was written ({len(content):,} bytes)"
            )
        tensors[file.stem] = load_tensors(content, file, CheckpointError)
    return Checkpoint(path, record["step"], tensors, record["state"])


def newest_whole(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest checkpoint that verifies, and one line for each newer one on what is wrong with it."""
    complaints: list[str] = []
    paths = list_checkpoints(folder)
    while paths:
        path = paths.pop()
        try:
            return read_checkpoint(path), complaints
        except CheckpointError as error:
            if os.path.lexists(path):
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


LAST, BEST = "last", "best"
"""Words for a checkpoint, besides ``step-N``: the newest that is whole, and the best (`best_record`)."""


def check_word(word: str) -> str:
    """Return ``word``.

    Raises:
        UsageError: ``word`` is not last, best or step-N.
    """
    if word not in (LAST, BEST) and not _STEP_NAME.fullmatch(word):
        raise UsageError(f"checkpoint {shown(word)} is not known; allowed: {LAST}, {BEST}, step-N (such as step-3000)")
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
