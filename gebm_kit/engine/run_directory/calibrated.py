"""The calibrated inverse temperature of a run, where a recipe or a caller asks for it by the word ``calibrated``."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from gebm_kit.config.schema import CALIBRATED, Recipe
from gebm_kit.core.errors import UsageError, shown
from gebm_kit.core.model import GEBM
from gebm_kit.core.progress import warn
from gebm_kit.engine.run_directory.run import Run

Beta = float | Literal["calibrated"]
"""Inverse temperature as a caller gives it: a number, or the one that fits held-out data best."""


def is_calibrated(asked: object) -> bool:
    """Return whether an inverse temperature is the word ``calibrated``.

    Raises:
        UsageError: it is another word.
    """
    if isinstance(asked, str) and asked != CALIBRATED:
        raise UsageError(
            f"inverse_temperature (beta) must be a finite number >= 0 or {CALIBRATED!r}, got {shown(asked)}"
        )
    return isinstance(asked, str)


def beta_for(subject: Run | GEBM, asked: Beta) -> float:
    """Return the inverse temperature that a caller asks for; a number is returned as it is.

    Raises:
        UsageError: another word than ``calibrated``; a hand-built model; as for `calibrated_beta`.
    """
    if not is_calibrated(asked):
        return asked  # type: ignore[return-value]  # a number; its range is checked where it is used
    if isinstance(subject, Run):
        return calibrated_beta(subject)
    raise UsageError(
        "a model built by hand has no calibrated inverse temperature: give a number",
        hint="gk.evaluate(model, data=held_out).calibration finds one.",
    )


def calibrated_beta(run: Run) -> float:
    """Return the inverse temperature that the run's last evaluation found to fit held-out data best.

    Raises:
        UsageError: the run has no evaluation, its evaluation found none, or it evaluated another checkpoint.
    """
    evaluation = run.evaluation or {}
    found = evaluation.get("calibration") or {}
    beta = found.get("inverse_temperature")
    of, wanted = evaluation.get("checkpoint"), run.checkpoint.path.name
    how = f"`gebm-kit eval {run.path} --checkpoint {wanted}` calibrates it; a number as inverse_temperature needs none."
    if beta is None:
        why = found.get("reason") or "no evaluation has calibrated it"
        raise UsageError(f"{run.path} has no calibrated inverse temperature: {why}", hint=how)
    if of is not None and of != wanted:
        raise UsageError(
            f"the calibrated inverse temperature of {run.path}, {beta:g}, belongs to checkpoint {of}, not to {wanted}",
            hint=how,
        )
    if found.get("reason"):
        warn(f"the calibrated inverse temperature, {beta:g}, is doubtful: {found['reason']}")
    return float(beta)


def with_calibrated_beta(run: Run, recipe: Recipe) -> Recipe:
    """Return the recipe with the run's calibrated inverse temperature in place of the word, if it has the word.

    Raises:
        UsageError: as for `calibrated_beta`.
    """
    if recipe.sample.inverse_temperature != CALIBRATED:
        return recipe
    return replace(recipe, sample=replace(recipe.sample, inverse_temperature=calibrated_beta(run)))
