"""The calibrated inverse temperature of a run, where a recipe or a caller asks for it by the word ``calibrated``."""

from __future__ import annotations

from dataclasses import replace

from gebm_kit.config.schema import CALIBRATED, Recipe
from gebm_kit.core.errors import UsageError
from gebm_kit.engine.run_directory.run import Run


def calibrated_beta(run: Run) -> float:
    """Return the inverse temperature that the run's last evaluation found to fit held-out data best.

    Raises:
        UsageError: the run has no evaluation, or its evaluation found none.
    """
    found = (run.evaluation or {}).get("calibration") or {}
    beta = found.get("inverse_temperature")
    if beta is None:
        why = found.get("reason") or "no evaluation has calibrated it"
        raise UsageError(
            f"{run.path} has no calibrated inverse temperature: {why}",
            hint=f"`gebm-kit eval {run.path}` calibrates a run; a number as inverse_temperature needs none.",
        )
    return float(beta)


def with_calibrated_beta(run: Run, recipe: Recipe) -> Recipe:
    """Return the recipe with the run's calibrated inverse temperature in place of the word, if it has the word.

    Raises:
        UsageError: as for `calibrated_beta`.
    """
    if recipe.sample.inverse_temperature != CALIBRATED:
        return recipe
    return replace(recipe, sample=replace(recipe.sample, inverse_temperature=calibrated_beta(run)))
