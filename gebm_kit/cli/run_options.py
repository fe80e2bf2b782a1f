"""Steps that commands share: setting CPU threads, finding the run, and applying overrides to its recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gebm_kit.cli.ui import Ui
    from gebm_kit.config.schema import Recipe
    from gebm_kit.engine.run_directory.run import Run
    from gebm_kit.engine.sampling.settings import SampleSettings


def set_up_cpu(threads: int | None) -> None:
    """Set the number of torch's CPU threads, and keep freed memory for reuse."""
    from gebm_kit.engine.process.devices import keep_freed_memory

    keep_freed_memory()
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def find_run(word: str | None, ui: Ui, checkpoint: str = "last") -> Run:
    """Open the run ``word`` at the given checkpoint; None: the newest finished run, which a note on stderr names."""
    from gebm_kit.engine.run_directory.run import load_run

    return load_run(named_or_newest(word, ui), checkpoint)


def named_or_newest(word: str | None, ui: Ui) -> str | Path:
    """Return ``word``, or the directory of the newest finished run, which a note on stderr names."""
    from gebm_kit.engine.run_directory.run import newest_run

    if word is not None:
        return word
    run = newest_run()
    ui.note(f"using the newest finished run, {run.path}")
    return run.path


def overridden_recipe(run: Run, overrides: Sequence[str]) -> Recipe:
    """Return the run's recipe with ``overrides`` applied.

    Raises:
        RecipeError: the overrides are not valid; all problems are listed at once.
    """
    from gebm_kit.config.load import load_recipe

    if not overrides:
        return run.recipe
    from gebm_kit.engine.run_directory.run import named_as_trained

    recipe = load_recipe(run.recipe_file, overrides, directory=run.recipe.directory, parts=run.parts)
    return named_as_trained(recipe)


def sampling_recipe(run: Run, overrides: Sequence[str]) -> Recipe:
    """Return `overridden_recipe` with the run's calibrated inverse temperature in place of the word ``calibrated``.

    Raises:
        UsageError: the run has none.
        RecipeError: as for `overridden_recipe`.
    """
    from gebm_kit.engine.run_directory.calibrated import with_calibrated_beta

    return with_calibrated_beta(run, overridden_recipe(run, overrides))


def overrides_with_sampler(run: Run, sampler: str | None, overrides: Sequence[str]) -> tuple[str, ...]:
    """Put ``--sampler`` in front of the overrides, so that ``sampler.step_size=0.1`` is a value of that sampler."""
    if sampler is None or sampler == run.recipe.sampler.name:
        return tuple(overrides)
    return (f"sampler={sampler}", *overrides)


def changed_settings(recipe: Recipe, changes: Mapping[str, Any]) -> SampleSettings:
    """Return the recipe's sampling settings, changed by the ``changes`` that are not None."""
    from gebm_kit.engine.sampling.settings import settings_of

    given = {name: value for name, value in changes.items() if value is not None}
    return dataclasses.replace(settings_of(recipe.sample), **given)
