"""Training a recipe: the result is a run directory with a trained model, an evaluation and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gebm_kit.config.load import load_recipe
from gebm_kit.config.schema import Recipe
from gebm_kit.core.arguments import check_flag, check_path, check_words
from gebm_kit.core.attribution import attributed
from gebm_kit.core.errors import UsageError
from gebm_kit.core.progress import OnProgress
from gebm_kit.engine.process import data_parallel
from gebm_kit.engine.process.devices import resolve_device
from gebm_kit.engine.process.distributed import joined_ranks
from gebm_kit.engine.process.progress_bar import check_progress, progress_shown
from gebm_kit.engine.process.torchrun import local_device, restarted
from gebm_kit.engine.reporting.write import written_if_due
from gebm_kit.engine.run_directory.lock import RunLock
from gebm_kit.engine.run_directory.run import Run, named_as_trained
from gebm_kit.engine.training.loop import TrainingRequest, run_training


def train(
    recipe: str | Path | Recipe,
    overrides: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    resume: bool = False,
    device: str | None = None,
    progress: bool | None = None,
    on_progress: OnProgress | None = None,
) -> Run:
    """Train a recipe and evaluate the result.

    Under torchrun, or in a process group that the caller made, the ranks share every batch: call `train` on all of them.
    Only the first rank writes, and only it needs access to the run directory. If torchrun restarted the processes after
    one of them failed, the run is resumed.

    Args:
        recipe: path, short name of a shipped recipe, or a checked Recipe.
        overrides: ``key=value`` words that change the recipe.
        out: the run directory; None: a new one under ``runs/<recipe>/``.
        resume: continue the run in ``out`` (without ``out``: the newest unfinished run of the recipe), or start one if
            there is none.
        device: overrides the recipe's device.
        progress: True: show progress; False: do not; None: on a terminal or in a notebook.
        on_progress: called regularly with a `gebm_kit.core.progress.Progress`; nothing is shown then.

    Returns:
        The finished run. Its directory is on the machine of the first rank, which the other ranks may not see.

    Raises:
        UsageError, RecipeError, DataError, PluginError, CheckpointError: the run was not started.
        RunFailed: the loss is no longer finite, or the disk is full; earlier checkpoints are whole.
        Interrupted: Ctrl-C or SIGTERM; the state is saved and the hint says how to resume.
    """
    if not isinstance(recipe, Recipe):
        check_path("recipe, where it is no Recipe,", recipe)
    if out is not None:
        check_path("out", out)
    check_words("overrides", overrides)
    check_flag("resume", resume)
    check_progress(progress, on_progress)
    device = None if device is None else str(device)
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, overrides)
    elif overrides:
        raise UsageError("overrides apply to a recipe file, and this recipe is already built")
    recipe = named_as_trained(recipe)
    where = resolve_device(local_device(device or recipe.device))
    with (
        joined_ranks(where, "training") as ranks,
        RunLock(active=ranks.rank == 0) as lock,
        attributed(),
        data_parallel.voice(ranks),
        ranks.together(),
        progress_shown(progress, on_progress) as report,
    ):
        data_parallel.check_ranks(recipe, device, ranks)
        request = TrainingRequest(recipe, out, resume or restarted(), device, report)
        run = run_training(request, where, ranks, lock)
        if ranks.rank == 0:
            written_if_due(run, where)
        return run
