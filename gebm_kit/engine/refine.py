"""Refining a generator: the words of ``gebm-kit refine`` as overrides, the choice of beta, and draws before and after.

Protocol. Like every run, the run is evaluated at inverse temperature 1 against the test part. Beta is then chosen on the
validation part, by the first value of the recipe's first metric. The values 1, 2, 3, 5, 8 are tried in turn, with
`CHOICE_SETS` sets of draws each, until one is worse than the one before; the best is chosen. If it is not 1, the GEBM is
evaluated at it against the test part, with fresh draws, and the result names the beta. Test data take no part in the
choice.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gebm_kit.config.schema import CALIBRATED
from gebm_kit.core.errors import CheckpointError, UsageError
from gebm_kit.core.files import make_directory, write_json
from gebm_kit.core.interfaces import HasSource
from gebm_kit.core.progress import OnProgress, ignore, warn
from gebm_kit.core.reading import read_json_file
from gebm_kit.engine.datasets.guess import data_word
from gebm_kit.engine.evaluation.evaluation import Evaluation, score_recipe
from gebm_kit.engine.evaluation.inverse_temperature import Choice, choose_beta
from gebm_kit.engine.figures.run_figures import GRID_SIDE, image_grid
from gebm_kit.engine.run_directory.calibrated import calibrated_beta
from gebm_kit.engine.run_directory.run import remove_leftovers
from gebm_kit.engine.run_directory.run_files import is_evaluation
from gebm_kit.engine.run_directory.values import is_number, is_optional_number

if TYPE_CHECKING:
    from gebm_kit.engine.run_directory.run import Run


RECIPE = "refine"
"""Short name of the shipped recipe."""


FILE = "refined.json"
"""File of a run directory that records what was chosen and found."""


# --- words -----------------------------------------------------------------------------------------------------------
def recipe_words(generator: str, data: str | None, latent: str | None = None) -> list[str]:
    """Return the overrides of the recipe `RECIPE` that name the generator's file, the data and a latent code's shape.

    Args:
        generator: path of the generator's file.
        data: name of a registered dataset, a folder in MNIST's format, any other folder (of images), or a file of
            arrays; None: other overrides name the data.
        latent: shape of a latent code, such as ``100`` or ``100x1x1``; None: no override.

    Raises:
        UsageError: the kind of data can't be guessed, or ``latent`` is not a shape.
    """
    words = [f"base.path={json.dumps(generator)}"]
    if latent is not None:
        sizes = latent.replace(",", "x").split("x")
        if not all(size.isdecimal() and int(size) > 0 for size in sizes):
            raise UsageError(f"--latent is a shape such as 100 or 100x1x1, got {latent!r}")
        words.append(f"base.latent_shape=[{', '.join(sizes)}]")
    if data is not None:
        words.append(data_word(data))
    return words


def refine(run: Run, *, device: torch.device | str | None = None, on_progress: OnProgress = ignore) -> dict[str, Any]:
    """Choose beta for a trained run, evaluate the run at it, and write ``refined.json`` and ``figures/refine.png``.

    If the recipe sets ``sample.inverse_temperature`` to a value other than 1, nothing is chosen: the run's own evaluation
    is at that beta.

    Returns:
        The content of ``refined.json``: ``step``, ``generator`` (``path``, ``sha256``), ``chosen_by`` (name of the value;
        None: beta was given), ``reference_part``, ``tried`` (each ``inverse_temperature``, ``value``), ``base_value`` (of
        the base's draws), ``inverse_temperature``, and ``evaluation`` at it, as the JSON of ``gebm-kit eval``.
    """
    recipe, model, dataset = run.recipe, run.model, run.dataset
    base = model.base
    source = {"path": recipe.base.parameters.get("path"), "sha256": getattr(base, "source_sha256", None)}
    found: dict[str, Any] = {"step": run.step, "generator": source if isinstance(base, HasSource) else None}
    given = recipe.sample.inverse_temperature
    if given != 1.0:
        if given == CALIBRATED:  # an evaluation at the calibrated beta, or at 1 where there is none
            given = calibrated_beta(run) if run.evaluation is None else run.evaluation["inverse_temperature"]
        found |= {"chosen_by": None, "reference_part": None, "tried": [], "base_value": None}
        found |= {"inverse_temperature": given, "evaluation": run.evaluation}
        return _written(run, found)
    choice = choose_beta(model, dataset, recipe, device=device, on_progress=on_progress)
    beta = choice.best.inverse_temperature
    evaluation: Evaluation | None = None
    if beta != 1.0:
        hotter = replace(recipe, sample=replace(recipe.sample, inverse_temperature=beta))
        evaluation = score_recipe(
            model, dataset, hotter, device=device, training_seconds=run.training_seconds, on_progress=on_progress
        )
    draw_before_after(run, choice)
    found |= {
        "chosen_by": choice.name,
        "reference_part": "valid",
        "tried": [trial.as_dict() for trial in choice.trials],
    }
    found |= {"base_value": choice.base, "inverse_temperature": beta}
    found["evaluation"] = run.evaluation if evaluation is None else evaluation.as_dict()
    return _written(run, found)


def refined(run: Run) -> dict[str, Any] | None:
    """Return what `refine` found for the run at its current step, or None."""
    path = run.path / FILE
    if not os.path.lexists(path):
        return None
    try:
        found = read_json_file(path, error=CheckpointError)
    except CheckpointError as error:
        warn(f"{error.message}; beta is chosen again")
        return None
    if not _is_result(found):
        warn(f"{path} is damaged; beta is chosen again")
        return None
    return dict(found) if found["step"] == run.step else None


def _is_result(found: Any) -> bool:
    """Return whether a value has the form of what `refine` returns."""
    if (
        not isinstance(found, dict)
        or not {"step", "chosen_by", "tried", "inverse_temperature", "evaluation"} <= found.keys()
    ):
        return False
    tried, generator = found["tried"], found.get("generator")
    trials = isinstance(tried, list) and all(
        isinstance(trial, dict)
        and is_number(trial.get("inverse_temperature"))
        and is_optional_number(trial.get("value"))
        for trial in tried
    )
    return (
        trials
        and is_number(found["inverse_temperature"])
        and (found["chosen_by"] is None or isinstance(found["chosen_by"], str))
        and (generator is None or (isinstance(generator, dict) and {"path", "sha256"} <= generator.keys()))
        and (found.get("evaluation") is None or is_evaluation(found["evaluation"]))
    )


def draw_before_after(run: Run, choice: Choice) -> Path | None:
    """Draw ``figures/refine.png``: data, the generator, the GEBM at 1 and at the chosen beta; None: data are not images."""
    if len(run.model.data_shape) != 3:
        return None
    rows = run.dataset.split("test").first(GRID_SIDE**2)
    panels = {"data": rows, "before: the generator": choice.base_draws}
    shown = {trial.inverse_temperature: trial.draws for trial in (choice.trials[0], choice.best)}
    panels |= {f"after: GEBM, beta = {beta:g}": draws for beta, draws in shown.items()}
    make_directory(run.figures)
    return image_grid(run.figures / "refine.png", panels, run.value_range)


def _written(run: Run, found: dict[str, Any]) -> dict[str, Any]:
    remove_leftovers(run)
    write_json(run.path / FILE, {"schema": 1, **found})
    return found
