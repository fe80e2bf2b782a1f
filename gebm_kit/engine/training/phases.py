"""The phases of training: which one a cycle belongs to, its energy updates and its learning rates.

Training has up to three phases, in this order: pretraining of the base alone, the main phase, and a final phase of the
energy alone. Everything here is a pure function of the recipe and of the number of cycles already done.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from gebm_kit.config.schema import Recipe, TrainSection
from gebm_kit.engine.training.optimisers import rate


class Phase(enum.Enum):
    """A part of training with its own learners."""

    PRETRAINING = "pretraining"
    MAIN = "main"
    FINAL = "final"


@dataclass(frozen=True, slots=True)
class LearningRates:
    """The learning rates of one cycle; None where that part does not learn in its phase."""

    energy: float | None
    base: float | None


INITIAL_DRAWS = 4096
"""Most base draws from which a learned log-partition is initialised. They are enough to start from: training corrects the
estimate at every energy update."""

LEAST_DRAWS, SHARE = 500, 3
"""Base draws for a log-partition: no fewer than the first, and at most a third of those that the energy updates make, so
that they are never most of the work, whatever a draw costs."""


def phase_of(settings: TrainSection, step: int) -> Phase:
    """Return the phase of the cycle that follows ``step`` finished cycles."""
    if step < settings.pretrain_steps:
        return Phase.PRETRAINING
    return Phase.FINAL if step >= settings.main_end else Phase.MAIN


def num_energy_updates(settings: TrainSection, step: int) -> int:
    """Count the energy updates of the cycle that follows ``step`` finished cycles.

    In the main phase these are ``energy_steps``. The first ``start_steps`` cycles, and every ``start_every``-th one after
    them, have ``start_energy_steps`` instead, where both parts learn.
    """
    phase = phase_of(settings, step)
    if phase is Phase.PRETRAINING or settings.part == "base":
        return 0
    if phase is Phase.FINAL:
        return settings.final.energy_steps
    since = step - settings.pretrain_steps
    again = since and settings.start_every and since % settings.start_every == 0
    starting = (since < settings.start_steps or again) and settings.main_part == "both"
    return settings.start_energy_steps if starting else settings.energy_steps


def updates_base(settings: TrainSection, step: int) -> bool:
    """Tell whether the cycle that follows ``step`` finished cycles updates the base."""
    phase = phase_of(settings, step)
    return phase is Phase.PRETRAINING or (phase is Phase.MAIN and settings.main_part != "energy")


def learning_rates(recipe: Recipe, step: int) -> LearningRates:
    """Compute the learning rates of the cycle that follows ``step`` finished cycles, by its place in its phase."""
    settings = recipe.train
    phase = phase_of(settings, step)
    if phase is Phase.PRETRAINING:
        return LearningRates(None, rate(settings.pretrain.optimizer, step, settings.pretrain_steps))
    if phase is Phase.FINAL:
        final = settings.final
        return LearningRates(rate(final.optimizer, step - settings.main_end, final.steps), None)
    place = step - settings.pretrain_steps
    return LearningRates(
        rate(recipe.optim.energy, place, settings.steps), rate(recipe.optim.base, place, settings.steps)
    )


def samples_unseen_base(recipe: Recipe) -> bool:
    """Return whether the energy never meets the base that sampling uses: it would refine that base by accident."""
    running = recipe.train.main_part == "both" and recipe.train.base_update == "pathwise"
    return running and recipe.ema.decay > 0 and not recipe.train.final.steps


def affordable_draws(settings: TrainSection, updates: int, most: int) -> int:
    """Return how many base draws a log-partition may take beside so many updates of the energy."""
    return min(most, max(updates * settings.batch_size // SHARE, LEAST_DRAWS))


def initial_draws(settings: TrainSection) -> int:
    """Return how many base draws a learned log-partition is initialised from: whole batches, as batch norm needs them."""
    most = affordable_draws(settings, settings.total_steps * settings.energy_steps, INITIAL_DRAWS)
    return -(-most // settings.batch_size) * settings.batch_size
