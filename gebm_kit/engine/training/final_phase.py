"""The final phase's own loss and energy, built before training and taken into the model when that phase begins.

They are built at the start, so that a loss or an energy that does not fit is found before the first step. A new energy that
is fitted to the data beforehand is fitted then too. Until the phase begins, checkpoints hold their weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gebm_kit.config.build import build
from gebm_kit.config.model import DTYPES
from gebm_kit.config.schema import Recipe
from gebm_kit.core.contracts import check_state
from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Energy, Loss
from gebm_kit.core.model import GEBM
from gebm_kit.engine.process import data_parallel
from gebm_kit.engine.process.memory import bounded_tensors
from gebm_kit.engine.training.acceleration import channels_last
from gebm_kit.engine.training.base_update import check_needs, check_spaces
from gebm_kit.engine.training.model_negatives import chains_of
from gebm_kit.engine.training.negatives import NegativeChains


@dataclass(frozen=True, slots=True)
class FinalParts:
    """What the final phase does not share with the main phase.

    Attributes:
        loss: its own loss; None: that of the main phase.
        energy: its own energy; None: that of the main phase.
        negatives: its chains, or None.
    """

    loss: Loss | None
    energy: Energy | None
    negatives: NegativeChains | None

    def join(self, model: GEBM) -> None:
        """Put the energy into ``model``, and what the loss says about it."""
        if self.energy is not None:
            model.energy = self.energy
        if self.loss is not None:
            model.log_ratio = bool(self.loss.log_ratio)

    def tensors(self) -> dict[str, Tensor]:
        """Return the state for a checkpoint."""
        return {
            f"{name}.{key}": value for name, part in self._modules().items() for key, value in part.state_dict().items()
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the state that `tensors` returned.

        Raises:
            RuntimeError: it belongs to other parts.
        """
        for name, part in self._modules().items():
            beginning = f"{name}."
            part.load_state_dict({k.removeprefix(beginning): v for k, v in tensors.items() if k.startswith(beginning)})

    def _modules(self) -> dict[str, nn.Module]:
        return {name: part for name, part in (("loss", self.loss), ("energy", self.energy)) if part is not None}


def losses_of(main: Loss, parts: FinalParts | None) -> list[Loss]:
    """Return the losses of all phases."""
    return [main] if parts is None or parts.loss is None else [main, parts.loss]


def energies_of(model: GEBM, parts: FinalParts | None) -> list[Energy]:
    """Return the energies of all phases."""
    return [model.energy] if parts is None or parts.energy is None else [model.energy, parts.energy]


def build_final_parts(
    recipe: Recipe, model: GEBM, main_loss: Loss, facts: Mapping[str, Any], device: torch.device, rows: int
) -> FinalParts | None:
    """Build the loss and the energy that ``train.final`` names, with fresh weights; None if it has nothing of its own.

    Args:
        model: the model of the main phase, whose base stays.
        main_loss: the loss of the main phase.
        facts: what components may ask to be injected.
        rows: rows of a batch on this rank.

    Raises:
        UsageError: the loss can't train this model, or the energy does not fit the base.
        RecipeError, PluginError: as for `build`.
    """
    own_negatives = recipe.train.final.steps and recipe.train.final_negatives != recipe.train.negatives
    if recipe.final_loss is None and recipe.final_energy is None and not own_negatives:
        return None
    loss, energy, dtype = None, None, DTYPES[recipe.precision]
    if recipe.final_energy is not None:
        with bounded_tensors(device, "the energy of train.final"):
            energy = build("energy", recipe.final_energy, facts).to(device, dtype)
        check_state("energy", energy)
        data_parallel.synchronise_batch_norm(energy, device, rows)
        channels_last(energy)
    if recipe.final_loss is not None:
        loss = build("loss", recipe.final_loss, facts).to(device, dtype)
        check_state("loss", loss)
        check_needs(loss, recipe.train)
    whole = model if energy is None else GEBM(model.base, energy)
    used: Loss = main_loss if loss is None else loss
    if whole.num_classes != model.num_classes:
        main, final = (str(n or "none") for n in (model.num_classes, whole.num_classes))
        raise UsageError(
            f"a model has its classes in all phases or in none; here {main} in the main and {final} in the final phase",
            hint="Set conditional in both energy and train.final.energy, or in neither.",
        )
    check_spaces(whole, used)
    used.check(whole)
    negatives = chains_of(used, recipe.train, whole, facts["value_range"], device, dtype, final=True)
    return FinalParts(loss, energy, negatives)
