"""Which checkpoint of a run to sample and evaluate: the last, the best by the recipe's metric, or one by its step."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from gebm_kit.core.errors import CheckpointError, UsageError
from gebm_kit.core.progress import warn
from gebm_kit.engine.checkpoint import Checkpoint, list_checkpoints, newest_whole, read_checkpoint, read_state, step_of

LAST, BEST = "last", "best"
_STEP = re.compile(r"step-(\d+)")


def check_word(word: str) -> str:
    """``word`` itself.

    Raises:
        UsageError: it is none of last, best, step-N.
    """
    if word not in (LAST, BEST) and not _STEP.fullmatch(word):
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
