"""Early stopping of the pretraining phase: training continues from the weights with the lowest validation loss.

References:
    Early Stopping - But When? L. Prechelt, in: Neural Networks: Tricks of the Trade, 1998.
    https://doi.org/10.1007/978-3-642-35289-8_5
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gebm_kit.config.schema import TrainSection
from gebm_kit.core import reduce
from gebm_kit.core.classes import is_conditional, own_loss
from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Base, Dataset, HasPretraining
from gebm_kit.core.model import GEBM
from gebm_kit.core.seeds import stream
from gebm_kit.engine.datasets.class_rows import labels_of
from gebm_kit.engine.datasets.held_out import evenly_spaced, evenly_spaced_rows

ROWS_AT_ONCE = 1024
"""Validation rows in one forward evaluation of the base's loss."""


class BestBase:
    """The base's weights with the lowest validation loss so far, by the base's own loss.

    Args:
        dataset: source of the validation rows: at most `held_out.MAX_ROWS`, evenly spaced.
        every: cycles between two evaluations; one more follows the last cycle of the phase.
        last: last cycle of the phase.
        seed: seed of the loss's noise, if it has any; every evaluation uses the same noise.
        device, dtype: device and dtype of the rows.
        num_classes: number of classes of a conditional base, whose loss takes the rows' labels; None for any other base.

    Attributes:
        loss: lowest loss, in the units of the base's loss (nats for flows and VAEs); infinite before the first evaluation.
        step: number of cycles done when the lowest loss was found.
        tensors: the weights with the lowest loss; empty before the first evaluation.

    Raises:
        UsageError: the dataset has no validation rows, or no labels where they are needed.
    """

    def __init__(
        self,
        dataset: Dataset,
        every: int,
        last: int,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        num_classes: int | None = None,
    ) -> None:
        split = dataset.split("valid")
        if not len(split):
            raise UsageError(
                "train.pretrain.eval_every needs validation rows, and the data have none",
                hint="Give the dataset a validation part, or set train.pretrain.eval_every=0.",
            )
        self.rows = evenly_spaced_rows(split, "validation part").to(device, dtype)
        self.labels: Tensor | None = None
        if num_classes is not None:
            labels = labels_of(dataset, "valid", num_classes)
            self.labels = labels[evenly_spaced(len(labels))].to(device)
        self.loss, self.step = float("inf"), 0
        self.tensors: dict[str, Tensor] = {}
        self._every, self._last = every, last
        self._seed = stream(seed, "validation").initial_seed()

    def due(self, step: int) -> bool:
        """Return whether the base is evaluated after cycle ``step``."""
        return step == self._last or (step < self._last and step % self._every == 0)

    def look(self, base: Base, step: int) -> dict[str, Tensor]:
        """Evaluate the base after cycle ``step``, keep its weights if they are the best, and return scalars for the log.

        The caller passes the base in eval mode, with the weights that training would continue from. The earliest of equal
        losses stays, and a NaN loss is never the best. Training's random streams do not advance.
        """
        loss = self._loss(base)
        if float(loss) < self.loss:
            self.loss, self.step = float(loss), step
            self.tensors = {name: value.detach().clone() for name, value in base.state_dict().items()}
        best = torch.tensor(float(self.step))
        return {"base_valid_loss": loss, "base_best_step": best}

    @torch.no_grad()
    def _loss(self, base: Base) -> Tensor:
        assert isinstance(base, HasPretraining)
        device = self.rows.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self._seed)
            labels = None if self.labels is None else self.labels.split(ROWS_AT_ONCE)
            sums = [
                own_loss(base, rows, None if labels is None else labels[part]).double() * len(rows)
                for part, rows in enumerate(self.rows.split(ROWS_AT_ONCE))
            ]
        # averaged over ranks, which have the same rows and weights, so that all ranks choose the same weights
        return reduce.mean((torch.stack(sums).sum() / len(self.rows)).reshape(1))

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint's plain state stores; its tensors are `tensors`."""
        return {"loss": self.loss, "step": self.step} if self.tensors else {}

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Resume from a checkpoint's `state` and `tensors`."""
        if state:
            self.loss, self.step = float(state["loss"]), int(state["step"])
            self.tensors = {name: value.to(self.rows.device) for name, value in tensors.items()}


def best_base(
    settings: TrainSection, model: GEBM, dataset: Dataset, device: torch.device, dtype: torch.dtype
) -> BestBase | None:
    """Make the memory of the best base, or return None where nothing is evaluated in pretraining.

    Raises:
        UsageError: as for `BestBase`.
    """
    first = settings.pretrain
    if not (settings.pretrain_steps and first.eval_every):
        return None
    num_classes = model.num_classes if is_conditional(model.base) else None
    return BestBase(dataset, first.eval_every, first.steps, settings.seed, device, dtype, num_classes)
