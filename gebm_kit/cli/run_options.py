"""What commands that compute share: CPU threads, the run that is named, and its recipe with overrides."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gebm_kit.cli.ui import Ui
    from gebm_kit.config.schema import Recipe
    from gebm_kit.engine.run_directory.run import Run
    from gebm_kit.engine.sampling.settings import SampleSettings


def set_up_cpu(threads: int | None) -> None:
    """Let torch use that many CPU threads, and keep memory that was freed."""
    from gebm_kit.engine.process.devices import keep_freed_memory

    keep_freed_memory()
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def find_run(word: str | None, ui: Ui, checkpoint: str = "last") -> Run:
    """The run directory that was named, or the newest finished run, saying which; with the checkpoint that is asked for."""
    from gebm_kit.engine.run_directory.run import load_run, newest_run

    if word is not None:
        return load_run(word, checkpoint)
    run = newest_run()
    ui.note(f"using the newest finished run, {run.path}")
    return load_run(run.path, checkpoint)


def overridden_recipe(run: Run, overrides: Sequence[str]) -> Recipe:
    """The run's recipe with ``overrides`` on top.

    Raises:
        RecipeError: they are no valid overrides; all problems at once.
    """
    from gebm_kit.config.load import load_recipe

    if not overrides:
        return run.recipe
    return load_recipe(run.path / "resolved.yaml", overrides, directory=run.recipe.directory)


def overrides_with_sampler(run: Run, sampler: str | None, overrides: Sequence[str]) -> tuple[str, ...]:
    """Put ``--sampler`` in front of the overrides, so that ``sampler.step_size=0.1`` is a value of that sampler."""
    if sampler is None or sampler == run.recipe.sampler.name:
        return tuple(overrides)
    return (f"sampler={sampler}", *overrides)


def changed_settings(recipe: Recipe, changes: Mapping[str, Any]) -> SampleSettings:
    """Return the recipe's settings of sampling, with those ``changes`` that are not None."""
    from gebm_kit.engine.sampling.settings import settings_of

    given = {name: value for name, value in changes.items() if value is not None}
    return dataclasses.replace(settings_of(recipe.sample), **given)
