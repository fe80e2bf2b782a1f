"""Resuming a run: which run, whether the recipe is still the same, and the command that resumes it."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import torch

from gebm_kit.config.build import resolved
from gebm_kit.config.schema import Recipe
from gebm_kit.core.errors import GebmKitError, RunFailed, UsageError
from gebm_kit.core.files import atomic_file
from gebm_kit.core.paths import user_path
from gebm_kit.core.progress import warn
from gebm_kit.core.trust import trust_words
from gebm_kit.engine.process.torchrun import launcher
from gebm_kit.engine.run_directory.checkpoint import newest_whole
from gebm_kit.engine.run_directory.create import is_unmade
from gebm_kit.engine.run_directory.log_rows import LOG, MAX_LINE, lines_of, open_log, parsed
from gebm_kit.engine.run_directory.run import Run, open_run, unfinished_runs
from gebm_kit.engine.run_directory.run_files import is_exported

CHANGEABLE = (
    "train.steps",
    "train.log_every",
    "train.eval_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.keep_best.metric",
    "loggers",
)
"""Keys that a resumed run may change, besides the device and everything under `AFTERWARDS`."""


KEEPS_LENGTH = "a run with a final phase keeps its length"
"""What is wrong with another ``train.steps``: the final phase has begun at the end of the first ones."""

AFTERWARDS = ("sampler.", "sample.", "eval.", "nll.")
"""Sections that only say what is done with the trained model: draws, evaluation, likelihood."""


def find_run(recipe: Recipe, out: str | Path | None) -> Run | None:
    """Return the run to resume, or None if a new one must be started.

    It is the run in ``out``. Without ``out``, it is the newest unfinished run of this very recipe.

    Raises:
        CheckpointError: ``out`` holds something that is not a run.
        UsageError: ``out`` is an exported folder.
    """
    if out is not None:
        path = user_path(out)
        if is_exported(path):
            raise UsageError(
                f"{path} is an exported folder, which can't be trained further", hint="Choose another --out."
            )
        return None if is_unmade(path) else open_run(path, parts=recipe.parts)
    found = next((run for run in unfinished_runs(recipe.name) if _is_of(run, recipe)), None)
    return found and open_run(found.path, parts=recipe.parts)


def _is_of(run: Run, recipe: Recipe) -> bool:
    """Return whether the run was trained with this recipe; one that can't be read, say for a missing plugin, was not."""
    try:
        return not differences(run.recipe, recipe)
    except GebmKitError as error:
        warn(f"{run.path} is passed over: {error.message.splitlines()[0]}")
        return False


def is_done(run: Run, recipe: Recipe) -> bool:
    """Return whether nothing is left to do: the run is finished, whole, and what the recipe asks for."""
    return run.state == "finished" and resolved(run.recipe) == resolved(recipe) and _is_whole(run)


def check_same(old: Recipe, new: Recipe) -> None:
    """Refuse to resume under a recipe that would have trained something else.

    Raises:
        UsageError: the recipes differ; the message lists the differences, one a line.
    """
    found = differences(old, new)
    if found:
        hint = "Resume with the run's own resolved.yaml, or start afresh with another --out."
        if len(found) == 1 and found[0].endswith(KEEPS_LENGTH):
            hint = "For more steps start a new run from this one's weights: train.init_from, or gk.fit on the same modules."
        raise UsageError("\n  ".join(["the run was trained with another recipe:", *found]), hint=hint)


def differences(old: Recipe, new: Recipe) -> list[str]:
    """Return the differing keys that a resumed run can't change, each with its values then and now."""
    before, after = _leaves(resolved(old)), _leaves(resolved(new))
    found = [
        f"{key}: {before.get(key)!r} in the run, {after.get(key)!r} now"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
        and key not in CHANGEABLE
        and key != "device"
        and not key.startswith(AFTERWARDS)
    ]
    if old.train.steps != new.train.steps and old.train.final.steps:
        found.append(f"train.steps: {old.train.steps} in the run, {new.train.steps} now; {KEEPS_LENGTH}")
    return found


def check_place(run: Run) -> None:
    """Check, before a checkpoint is written, that the run directory is still there; warn if its checkpoints are gone.

    Raises:
        RunFailed: the run directory is gone, and with it what sampling needs besides a checkpoint.
    """
    if not (run.path / "resolved.yaml").is_file():
        raise RunFailed(
            f"{run.path} was removed while training", hint="Start again, and keep other programs from removing it."
        )
    if not run.checkpoints.is_dir():
        warn(f"{run.checkpoints} was removed while training, with all checkpoints; training continues and remakes it")


def drop_rows_after(run: Run, step: int) -> None:
    """Remove the log rows after ``step``, which a resumed run writes again, and damaged rows, with a warning."""
    path = run.path / LOG
    if not os.path.lexists(path):
        return
    kept = 0
    damaged = []
    with open_log(run.path) as log, atomic_file(path) as new:
        for number, line in enumerate(lines_of(log), 1):
            row = parsed(line)
            if row is None and (line.endswith(b"\n") or len(line) == MAX_LINE):  # otherwise cut off by a kill
                damaged.append(number)
            if row is not None and row["step"] <= step:
                new.write(line if line.endswith(b"\n") else line + b"\n")
                kept += 1
    if damaged:
        lines = f"line {damaged[0]}" + (f" and {len(damaged) - 1} more" if damaged[1:] else "")
        warn(f"{path} is damaged in {lines}; the other {kept} row(s) up to step {step} are kept")


def resume_command(recipe: Recipe, run: Run, device: str | None = None) -> str:
    """Return the command that resumes the run, quoted for a shell: the one that started it, with ``--resume``.

    It names the number of threads, because the last bits of a sum on the CPU depend on it. A run on the caller's own objects
    is resumed by a call in Python.
    """
    if recipe.parts:
        return f"gk.fit(..., out={str(run.path)!r}, resume=True)"
    source = str(recipe.path) if recipe.path else recipe.name
    words = [*launcher(), "train", source, *recipe.overrides, "--out", str(run.path), "--resume"]
    words += ["--device", device] if device else []
    return shlex.join([*words, *trust_words(), "--threads", str(torch.get_num_threads())])


def _is_whole(run: Run) -> bool:
    """Return whether the newest checkpoint can be read; if not, training makes it again."""
    found, complaints = newest_whole(run.checkpoints)
    return found is not None and not complaints


def _leaves(value: Any, key: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {
            k: v for name, item in value.items() for k, v in _leaves(item, f"{key}.{name}" if key else name).items()
        }
    return {key: value}
