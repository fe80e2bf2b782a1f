"""What a program must return to be a scorer, checked on a few rows when it is loaded. Each failure has its own message."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gebm_kit.core.errors import UsageError
from gebm_kit.core.programs import Program, reason

TRIAL_ROWS = 4
"""Rows on which a scorer is tried: another number than any that its author may have fixed by accident."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a scorer is tried on.

    Attributes:
        data_shape: ``*D``.
        value_range: (low, high) of the data, from which trial rows are drawn evenly; None: they are standard normal.
        target: class whose log-probability is the score; None: the program returns the score.
        device: where to compute.
    """

    data_shape: tuple[int, ...]
    value_range: tuple[float, float] | None
    target: int | None
    device: torch.device


@torch.no_grad()
def check_scorer(program: Program, prepared: Callable[[Tensor], Tensor], reading: Reading) -> None:
    """Check that a program takes data and returns one number, or logits, for each row.

    Values that are not finite are allowed here: trial rows are noise, not data.

    Args:
        program: the program.
        prepared: turns data into what the program expects.
        reading: what it is tried on.

    Raises:
        UsageError: the program fails a check; the message names it.
    """
    generator = torch.Generator().manual_seed(0)
    if reading.value_range is None:
        x = torch.randn(TRIAL_ROWS, *reading.data_shape, generator=generator)
    else:
        low, high = reading.value_range
        x = low + (high - low) * torch.rand(TRIAL_ROWS, *reading.data_shape, generator=generator)
    for num in (TRIAL_ROWS, 1):
        rows = prepared(x[:num].to(reading.device)).to(program.dtype)
        given = rows.clone()
        with torch.random.fork_rng(devices=[reading.device] if reading.device.type == "cuda" else []):
            found = called(program, rows)
        if not torch.equal(given, rows):
            raise UsageError(
                f"{program.path} changes the rows that it is given in place",
                hint="Export it without operations in place on its input (mul_, clamp_, ...).",
            )
        score_of(program, found, num, reading.target)


def called(program: Program, rows: Tensor) -> Any:
    """Return what a program returns for rows.

    Raises:
        UsageError: it fails.
    """
    try:
        return program(rows)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever its author wrote
        count = f"{len(rows)} row{'s' if len(rows) > 1 else ''}"
        raise UsageError(
            f"{program.path} fails on {count} of shape {list(rows.shape[1:])}: {reason(error)}",
            hint="energy.resize, energy.input_shape and energy.input_range say what it expects; it must accept batches of "
            "any size.",
        ) from error


def score_of(program: Program, found: Any, num: int, target: int | None) -> Tensor:
    """Return the score in what a program returned for ``num`` rows, (num,).

    Raises:
        UsageError: it returned another shape or type, or the class does not exist.
    """
    if not isinstance(found, Tensor):
        raise UsageError(
            f"{program.path} returns a {type(found).__name__}, but must return one tensor",
            hint="Export a module that returns only the scores, or the logits.",
        )
    if not found.is_floating_point():
        raise UsageError(
            f"{program.path} returns {found.dtype}, but must return floating-point numbers",
            hint="Export it without the conversion at its end (argmax, byte, int).",
        )
    shape = tuple(found.shape)
    if target is None:
        if shape in ((num,), (num, 1)):
            return found.reshape(num)
        logits = len(shape) == 2 and shape[0] == num
        raise UsageError(
            f"{program.path} returns shape {list(shape)} for {num} rows; it must return one number a row, [{num}]",
            hint=f"If these are logits of {shape[1]} classes, set energy.target to one of 0 to {shape[1] - 1}."
            if logits
            else "Export a module that returns one number for each row.",
        )
    if len(shape) != 2 or shape[0] != num or shape[1] < 2:
        raise UsageError(
            f"{program.path} returns shape {list(shape)} for {num} rows; energy.target needs logits of at least two "
            f"classes, [{num}, classes]",
            hint="Leave energy.target out if it returns one number a row.",
        )
    if target >= shape[1]:
        raise UsageError(
            f"energy.target={target} does not exist: {program.path} has {shape[1]} classes, 0 to {shape[1] - 1}"
        )
    return found.log_softmax(1)[:, target]
