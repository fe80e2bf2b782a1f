"""The rows of an evaluation's data by class."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gebm_kit.core.interfaces import Dataset, Split, SplitName
from gebm_kit.engine.datasets.class_rows import OneClass, labels_of, rows_in_shares
from gebm_kit.engine.datasets.held_out import HeldOut, evenly_spaced, evenly_spaced_rows
from gebm_kit.engine.evaluation.settings import FLOOR_PART, EvaluationSettings


@dataclass(frozen=True)
class LabelledRows:
    """The parts of a dataset that an evaluation reads, by class.

    Attributes:
        dataset: a dataset with labels.
        weights: the model's class weights, (K,).
        settings: which parts are read, and how many rows; ``weighted``: whether rows of all classes come in the weights.
    """

    dataset: Dataset
    weights: Tensor
    settings: EvaluationSettings

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.weights)

    def check(self) -> None:
        """Raise UsageError if a part that is read has no labels."""
        for part in {self.settings.reference, FLOOR_PART[self.settings.reference]}:
            labels_of(self.dataset, part, self.num_classes)

    def labels(self) -> Tensor:
        """Return the class of each row of the reference, (N,)."""
        labels = labels_of(self.dataset, self.settings.reference, self.num_classes)
        if self.settings.weighted:  # as `InShares` chooses the rows
            labels = labels[rows_in_shares(labels, self.weights)]
        return labels[evenly_spaced(len(labels), self.settings.num_reference)]

    def reference(self, label: int) -> Tensor | None:
        """Return the rows of a class in the reference part, at most its share of the rows that are read; None: none."""
        part = self.settings.reference
        split = self._split(part, label)
        limit = max(self.settings.num_reference // self.num_classes, 1)
        return evenly_spaced_rows(split, f"{part} data", limit) if len(split) else None

    def floor(self, label: int) -> Tensor | None:
        """Return the rows of a class in the held-out part of the floor; None: none."""
        part = FLOOR_PART[self.settings.reference]
        split = self._split(part, label)
        return evenly_spaced_rows(split, f"{part} data") if len(split) else None

    def train(self, label: int) -> Split | None:
        """Return the training rows of a class; None: none."""
        if isinstance(self.dataset, HeldOut):
            return None
        split = self._split("train", label)
        return split if len(split) else None

    def _split(self, part: SplitName, label: int) -> OneClass:
        return OneClass(self.dataset.split(part), labels_of(self.dataset, part, self.num_classes), label)
