"""The rows of a dataset by class."""

from __future__ import annotations

import torch
from torch import Tensor

from gebm_kit.core import contracts
from gebm_kit.core.attribution import describe
from gebm_kit.core.errors import UsageError
from gebm_kit.core.interfaces import Dataset, HasLabels, Split, SplitName


class OneClass(Split):
    """The rows of a split that have one label."""

    def __init__(self, split: Split, labels: Tensor, label: int) -> None:
        self._split, self._indices = split, (labels == label).nonzero().squeeze(1)

    def __len__(self) -> int:
        return len(self._indices)

    def batch(self, indices: Tensor) -> Tensor:
        return self._split.batch(self._indices[indices])


def labels_of(dataset: Dataset, part: SplitName, num_classes: int) -> Tensor:
    """Return the labels of a part of the data that a model of ``num_classes`` classes works on, (N,) int64 on the CPU.

    Raises:
        UsageError: the dataset has no labels, or another number of classes.
        PluginError: it returns no labels of the kind that it must.
    """
    if not isinstance(dataset, HasLabels):
        raise UsageError(
            f"the model has {num_classes} classes, and {describe(dataset, 'dataset')} has no labels",
            hint="Use a dataset with labels, such as digits, idx or cifar10, or leave conditional out of base and energy.",
        )
    if dataset.num_classes != num_classes:
        raise UsageError(f"the model has {num_classes} classes, and the dataset has {dataset.num_classes}")
    labels = dataset.labels(part)
    contracts.check_labels(dataset, labels, len(dataset.split(part)), part)
    return labels.cpu()


def apportioned(weights: Tensor, num: int) -> list[int]:
    """Divide ``num`` among classes in proportion to their weights, (K,), by largest remainders."""
    shares = weights.detach().double().cpu() / weights.double().sum().cpu() * num
    counts = shares.floor().long()
    rest = (shares - counts).argsort(descending=True, stable=True)[: num - int(counts.sum())]
    counts[rest] += 1
    found: list[int] = counts.tolist()
    return found


def labels_in_shares(weights: Tensor, num: int) -> Tensor:
    """Return ``num`` labels in proportion to the classes' weights, sorted, (num,) int64."""
    counts = torch.tensor(apportioned(weights, num))
    return torch.arange(len(counts)).repeat_interleave(counts)
