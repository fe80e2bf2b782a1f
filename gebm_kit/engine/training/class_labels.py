"""Classes in training: labels of the data, labels of base draws by the data's frequencies, and what does not serve them.

The pair (x, y) is trained on as one: y has the same law for data and base draws, so the energy learns the log-ratio of
``p(x | y)`` and ``b(x | y)``, with one A for all classes. The model of each class then has a log-partition A_y of its own
(`gebm_kit.engine.likelihood.class_log_partitions`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gebm_kit.config.schema import Recipe
from gebm_kit.core import reduce
from gebm_kit.core.attribution import describe
from gebm_kit.core.classes import is_conditional
from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Dataset, Energy, Loss, Penalty
from gebm_kit.core.model import GEBM
from gebm_kit.engine.datasets.batches import Feed
from gebm_kit.engine.datasets.class_rows import labels_of


class ClassLabels:
    """Labels for the batches of a model with classes; of a model without classes all labels are None.

    The model's ``class_weights`` become the frequencies of the training part.

    Args:
        model: the model.
        dataset: its data.
        feed: the feed of its training rows.

    Raises:
        UsageError: the model has classes, and the data have no labels or another number of classes.
    """

    def __init__(self, model: GEBM, dataset: Dataset, feed: Feed) -> None:
        self._feed = feed
        self._cumulated: Tensor | None = None
        if model.num_classes is None:
            return
        labels = labels_of(dataset, "train", model.num_classes)
        counts = torch.bincount(labels, minlength=model.num_classes).double()
        model.class_weights.copy_(counts / counts.sum())
        feed.labels = labels.to(feed.device)
        # the last end is exactly 1, above every number in [0, 1)
        self._cumulated = (counts.cumsum(0) / counts.sum()).to(feed.device)

    def of_data(self) -> Tensor | None:
        """Return the labels of this rank's part of the batch of data that the feed gave last, (B,)."""
        return None if self._cumulated is None else self._feed.last_labels()

    def drawn(self, generator: torch.Generator, num: int | None = None) -> Tensor | None:
        """Draw the labels of this rank's part of ``num`` base draws by the data's frequencies, (B,); None: of a batch."""
        if self._cumulated is None:
            return None
        size, device = (num or self._feed.batch_size,), self._cumulated.device
        numbers = torch.rand(size, generator=generator, device=device, dtype=torch.float64)
        return reduce.share(torch.searchsorted(self._cumulated, numbers, right=True))


def check_classes(
    model: GEBM, recipe: Recipe, losses: Sequence[Loss], penalties: Sequence[Penalty], energies: Sequence[Energy]
) -> None:
    """Refuse, before the first step, what a model with classes can't be trained with.

    Args:
        losses: of all phases.
        penalties: of all phases.
        energies: of all phases.

    Raises:
        UsageError: a loss, a penalty or a setting does not serve classes; or a loss reads labels, and there are none.
    """
    if not model.conditional:
        for loss in losses:
            if named := sorted({"labels", "base_labels"} & (frozenset(loss.needs) | frozenset(loss.base_needs))):
                raise UsageError(
                    f"the loss {type(loss).__name__} reads {named[0]!r}, and the model has no classes",
                    hint="Set conditional to true in base or energy.",
                )
        return
    instead = "Use kale, kale-dv, smile, flo, logistic, relativistic, hinge or wasserstein."
    for loss in losses:
        if not loss.serves_classes:
            raise UsageError(f"{describe(loss, 'loss')} does not serve models with classes", hint=instead)
    for penalty in penalties if any(is_conditional(energy) for energy in energies) else ():
        if not penalty.serves_classes or "negatives" in penalty.needs:
            raise UsageError(
                f"{describe(penalty, 'penalty')} does not serve energies with classes"
                + (" on negatives" if penalty.serves_classes else ""),
                hint="Use r1, or r2 at base draws.",
            )
    train = recipe.train
    settings = {
        "train.negatives.share": (train.negatives.share, 0),
        "train.final.negatives.share": (train.final_negatives.share if train.final.steps else 0, 0),
        "train.base_update": (train.base_update, "pathwise"),
    }
    if recipe.sample.inverse_temperature == "calibrated":
        raise UsageError(
            "sample.inverse_temperature is calibrated, which does not serve models with classes; give a number"
        )
    for key, (seen, allowed) in settings.items():
        if seen != allowed:
            raise UsageError(f"{key} is {seen}, which does not serve models with classes; allowed: {allowed}")
