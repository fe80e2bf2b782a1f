"""Classes in training: labels of the data, labels of base draws by the data's frequencies, and what does not serve them.

With ``data.class_weights`` w the law of (x, y) to learn is ``w_y p(x | y)``: rows of each class are fed in its share, and
base draws get their labels by w.

The pair (x, y) is trained on as one: y has the same law for data and base draws, so the energy learns the log-ratio of
``p(x | y)`` and ``b(x | y)``, with one A for all classes. The model of each class then has a log-partition A_y of its own
(`gebm_kit.engine.likelihood.class_log_partitions`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gebm_kit.config.build import data_facts, how_to_label
from gebm_kit.config.class_keys import ClassWeights, shares
from gebm_kit.config.schema import Recipe
from gebm_kit.core import reduce
from gebm_kit.core.attribution import describe
from gebm_kit.core.class_names import class_names_of, titled
from gebm_kit.core.classes import is_conditional
from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Dataset, Energy, Loss, Penalty
from gebm_kit.core.model import GEBM
from gebm_kit.core.progress import warn
from gebm_kit.engine.datasets.batches import Feed
from gebm_kit.engine.datasets.class_rows import labels_of

MOST_NAMED = 10
"""Most classes that a message names."""


class ClassLabels:
    """Labels for the batches of a model with classes; of a model without classes all labels are None.

    The model's ``class_weights`` become the frequencies of the training part, or the weights that are given.

    Args:
        model: the model.
        dataset: its data.
        feed: the feed of its training rows.
        weights: the recipe's ``data.class_weights``.

    Raises:
        UsageError: the model has classes, and the data have no labels or another number of classes; or weights are given for
            a model without classes, or for a class without rows.
        RecipeError: the weights do not fit the classes.

    Warns:
        GebmKitWarning: a class has no training rows.
    """

    def __init__(self, model: GEBM, dataset: Dataset, feed: Feed, weights: ClassWeights | None = None) -> None:
        self._feed = feed
        self._cumulated: Tensor | None = None
        if model.num_classes is None:
            if weights is not None:
                raise UsageError(
                    "data.class_weights weighs classes, and the model has none: no part of it is conditional",
                    hint="Set conditional to true in base or energy, or leave data.class_weights out.",
                )
            return
        labels = labels_of(dataset, "train", model.num_classes)
        names = class_names_of(dataset)
        counts = torch.bincount(labels, minlength=model.num_classes).double()
        feed.labels = labels.to(feed.device)
        if weights is not None:
            wanted = torch.tensor(shares(weights, model.num_classes, names), dtype=torch.float64)
            if len(empty := ((counts == 0) & (wanted > 0)).nonzero().flatten().tolist()):
                raise UsageError(
                    f"data.class_weights gives weight to {_listed(empty, names)}, and it has no training rows",
                    hint="Give such a class the weight 0, or add rows.",
                )
            feed.weigh(wanted)
            counts = wanted
        elif len(empty := (counts == 0).nonzero().flatten().tolist()):
            it = "it" if len(empty) == 1 else "them"
            warn(f"no training rows of {_listed(empty, names)}: the model can't learn {it}, and will not draw {it}")
        model.class_weights.copy_(counts / counts.sum())
        # the last end is exactly 1, above every number in [0, 1)
        self._cumulated = (counts.cumsum(0) / counts.cumsum(0)[-1]).to(feed.device)

    def of_data(self) -> Tensor | None:
        """Return the labels of this rank's part of the batch of data that the feed gave last, (B,)."""
        return None if self._cumulated is None else self._feed.last_labels()

    def drawn(self, generator: torch.Generator, num: int | None = None) -> Tensor | None:
        """Draw the labels of this rank's part of ``num`` base draws by the classes' weights, (B,); None: of a batch."""
        if self._cumulated is None:
            return None
        size, device = (num or self._feed.batch_size,), self._cumulated.device
        numbers = torch.rand(size, generator=generator, device=device, dtype=torch.float64)
        return reduce.share(torch.searchsorted(self._cumulated, numbers, right=True))


def _listed(labels: Sequence[int], names: Sequence[str] | None) -> str:
    """Name classes in a message: ``class 3 (dress)``, ``classes 1, 2``."""
    more = f" and {len(labels) - MOST_NAMED} more" if len(labels) > MOST_NAMED else ""
    which = "class" if len(labels) == 1 else "classes"
    return f"{which} {', '.join(titled(label, names) for label in labels[:MOST_NAMED])}{more}"


def facts_of(recipe: Recipe, dataset: Dataset) -> dict[str, Any]:
    """Return `data_facts`, once data without labels are known not to meet parts that need them.

    Raises:
        UsageError: a part is conditional, or there are class weights, and the data have no labels or one class only.
    """
    count = getattr(dataset, "num_classes", None)
    if count is None or count < 2:
        found = "the dataset has no labels" if count is None else f"the dataset has {count} class"
        node = recipe.final_energy
        parts = {f"base {recipe.base.title}": recipe.base, f"energy {recipe.energy.title}": recipe.energy}
        parts |= {} if node is None else {f"train.final.energy {node.title}": node}
        asking = [name for name, part in parts.items() if part.parameters.get("conditional") is True]
        what = f"{asking[0]}: conditional is true" if asking else "data.class_weights weighs classes"
        if asking or recipe.class_weights is not None:
            raise UsageError(
                f"{what}, and {found} ({recipe.data.title}); at least two classes are needed",
                hint=f"{how_to_label(recipe)} Or leave {'conditional' if asking else 'data.class_weights'} out.",
            )
    return data_facts(recipe, dataset)


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
    for key, (seen, allowed) in settings.items():
        if seen != allowed:
            raise UsageError(f"{key} is {seen}, which does not serve models with classes; allowed: {allowed}")
