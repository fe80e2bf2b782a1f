"""Rollback to the last good checkpoint when updates keep being skipped, because loss or gradient is not finite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from gebm_kit.core import reduce
from gebm_kit.core.errors import CheckpointError, RunFailed
from gebm_kit.engine.run_directory.checkpoint import Checkpoint, list_checkpoints, read_checkpoint, remove_checkpoint
from gebm_kit.engine.training.non_finite import Skipped
from gebm_kit.engine.training.trainer import Trainer

WHAT_TO_TRY = "Lower optim.energy.lr, set train.clip_grad_norm=1, raise the penalty's weight, or use loss=logistic."


def exceeded(seen: Sequence[Skipped], limit: int) -> Skipped | None:
    """Return the first part that has had ``limit`` updates skipped in a row since the last reading, or None."""
    return next((part for part in seen if part.longest >= limit), None)


def failure(trainer: Trainer, part: Skipped) -> RunFailed:
    """Return the error that ends a run for good: it says what was seen, and what to try."""
    back = f"; going back {trainer.restores} times did not help" if trainer.restores else ""
    return RunFailed(
        f"training diverged: {part.longest} {part.part} updates in a row had been skipped by step {trainer.step}{back}. "
        f"{part}",
        hint=WHAT_TO_TRY,
    )


def go_back(
    trainer: Trainer,
    folder: Path,
    fresh: Callable[[], Trainer],
    begin: Callable[[Trainer, Checkpoint | None], None],
) -> Trainer:
    """Return a new trainer at the last good checkpoint in ``folder``, or at the start, with other random numbers ahead.

    A checkpoint is good unless the last two updates of a part before it were both skipped. A checkpoint is passed over if
    training already went back to it and has saved no new one since. The checkpoints after the chosen one are removed.

    An interrupted run saves a checkpoint between the regular ones. Such checkpoints are the last choice, so that a run goes
    back to where it would have gone without the interruption.

    Args:
        trainer: the trainer whose updates were skipped.
        folder: holds the checkpoints; of several ranks only the first reads it, for all of them.
        fresh: makes a trainer with fresh weights.
        begin: brings such a trainer to a checkpoint or, given None, to the start of training.
    """
    checkpoint = None
    if reduce.rank() == 0:
        checkpoint = _last_good(folder, trainer.settings.checkpoint_every)
        for path in list_checkpoints(folder):
            if checkpoint is None or path.name > checkpoint.path.name:
                remove_checkpoint(path)
    made = fresh()
    begin(made, checkpoint)
    made.restores = trainer.restores + 1
    made.went_back = True
    made.refresh_randomness()
    return made


def _last_good(folder: Path, every: int) -> Checkpoint | None:
    checkpoints = []
    for path in reversed(list_checkpoints(folder)):
        try:
            checkpoints.append(read_checkpoint(path))
        except CheckpointError:
            continue
    checkpoints.sort(key=lambda checkpoint: checkpoint.step % every > 0)  # a stable sort: the newest stay in front
    if checkpoints and checkpoints[0].state.get("went_back", False):
        del checkpoints[0]
    return next((checkpoint for checkpoint in checkpoints if not _was_skipping(checkpoint)), None)


def _was_skipping(checkpoint: Checkpoint) -> bool:
    return any(part["in_a_row"] > 1 for part in checkpoint.state.get("non_finite", {}).values())
