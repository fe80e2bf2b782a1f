"""What commands that compute share: CPU threads, the run that is named, and its recipe with overrides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gebm_kit.cli.ui import Ui
    from gebm_kit.config.schema import Recipe
    from gebm_kit.engine.run_directory.run import Run


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
