"""Preparation before the first step: weights from another run (``train.init_from``), and parts fitted to the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gebm_kit.config.schema import Recipe
from gebm_kit.core.errors import CheckpointError
from gebm_kit.core.interfaces import Dataset, HasFitting
from gebm_kit.core.model import GEBM
from gebm_kit.core.progress import OnProgress, Progress, warn
from gebm_kit.core.seeds import stream
from gebm_kit.engine.process.distributed import Ranks
from gebm_kit.engine.run_directory.checkpoint import Checkpoint
from gebm_kit.engine.run_directory.run import load_run
from gebm_kit.engine.training.checkpoint_state import restore, share_state
from gebm_kit.engine.training.contract import check_training
from gebm_kit.engine.training.trainer import Trainer


def start_from(trainer: Trainer, recipe: Recipe) -> None:
    """Load the base and energy of the run that ``train.init_from`` names, if it names one.

    An energy that does not fit the recipe's leads to a warning.

    Raises:
        CheckpointError: there is no such run, or its base does not fit the recipe's.
    """
    if recipe.train.init_from is None:
        return
    other = load_run(recipe.directory / recipe.train.init_from)
    model: GEBM = other.model
    for part in ("base", "energy"):
        state = getattr(model, part).state_dict()
        misfit = _misfit(getattr(trainer.model, part).state_dict(), state)
        if not misfit:
            getattr(trainer.model, part).load_state_dict(state)
        elif part == "base":
            raise CheckpointError(f"train.init_from: the base of {other.path} does not fit the recipe's: {misfit}")
        else:
            warn(f"train.init_from: the energy of {other.path} does not fit; it starts afresh ({misfit})")
    if trainer.ema is not None:
        trainer.ema = trainer.new_average()


def _misfit(own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> str:
    """Say how two states differ, by the first tensor; "" where one can be loaded in place of the other.

    Nothing is copied: torch's own loading would copy the tensors that fit before it raises.
    """
    for name in [*own, *(name for name in other if name not in own)]:
        if name not in other or name not in own:
            return f"{name} is only in {'this recipe' if name in own else 'that run'}"
        if own[name].shape != other[name].shape:
            return f"{name} has shape {tuple(own[name].shape)} here and {tuple(other[name].shape)} there"
    return ""


def fit_energy(trainer: Trainer, dataset: Dataset, on_progress: OnProgress) -> None:
    """Fit the part of an energy that is learned from the data beforehand, unless loaded weights already contain it.

    That is the model's energy, and one that only the final phase has.

    Raises:
        UsageError: the energy can't be fitted to these data.
    """
    later = None if trainer.final is None else trainer.final.energy
    energies: dict[str, Any] = {"energy": trainer.model.energy, "final energy": later}
    for name, energy in energies.items():
        if isinstance(energy, HasFitting) and not energy.fitted:
            seed = stream(trainer.settings.seed, name, "fit").initial_seed()
            energy.fit(dataset, trainer.device, seed, lambda step, total: on_progress(Progress("fit", step, total)))


def begin(
    trainer: Trainer,
    checkpoint: Checkpoint | None,
    ranks: Ranks,
    dataset: Dataset,
    on_progress: OnProgress,
    *,
    check: bool = True,
) -> None:
    """Start every rank from the first rank's checkpoint or, without one, from the beginning of training.

    Args:
        check: whether the components are checked on one batch, which leaves no trace (`check_training`).
    """
    if checkpoint is not None:
        restore(trainer, checkpoint)
        note_ranks(checkpoint, ranks)
    elif ranks.rank == 0:
        start_from(trainer, trainer.recipe)
        fit_energy(trainer, dataset, on_progress)
    fresh = ranks.from_first("fresh" if checkpoint is None else "resumed") == "fresh"
    share_state(trainer, ranks)
    trainer.follow_average()
    if check:
        check_training(trainer, dataset)
    if fresh:
        trainer.initialise()


def note_ranks(checkpoint: Checkpoint, ranks: Ranks) -> None:
    """Warn if another number of processes resumes the run: training is the same, except for the rounding of sums."""
    before = int(checkpoint.state.get("ranks", 1))
    if before != ranks.size:
        warn(
            f"{checkpoint.path.name} was trained by {_processes(before)} and is resumed by {_processes(ranks.size)}: the "
            "batches stay the same, but sums are rounded in another order, so the weights will differ in the last bits"
        )


def _processes(count: int) -> str:
    return "one process" if count == 1 else f"{count} processes"
